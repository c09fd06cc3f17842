"""The check behind an export: what onnxruntime gives, beside torch, at other shapes than the one that was traced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from i3dconvert.comparison.forward import OwnRounding, check_outputs, evaluating, outputs
from i3dconvert.comparison.report import Check
from i3dconvert.errors import CheckpointError, ExportError, first_line
from i3dconvert.export.deployed import best_beside
from i3dconvert.export.runtime import Runtime, as_input
from i3dconvert.lift.network import Network3d
from i3dconvert.video.preprocessing import Preprocessing

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Compared:
    """A network in torch, and how its exported files are held against it."""

    network: Network3d
    preprocessing: Preprocessing
    tolerance: float
    strict: bool = False
    """Whether the tolerance holds where the network's own rounding is coarser too."""

    def check(self, path: Path, shapes: Sequence[Shape]) -> tuple[Check, Shape]:
        """The worst comparison at any of the `shapes`, the first that fails if one does, and its shape.

        The smallest shape also runs in a session as users make it. The network itself may stop at a shape other than
        the first; that is left out then. Raises `ExportError` for a file that does not load.
        """
        runtime = _loaded(path)
        found: list[tuple[Check, Shape]] = []
        for shape in dict.fromkeys(shapes):
            compared = self._at(runtime, shape)
            if compared is not None or shape == shapes[0]:
                found.append((compared or Check(_NAME, False, "the network itself stops there"), shape))
            if compared is not None and not compared.passed:
                return found[-1]
        smallest = min((shape for _, shape in found), key=math.prod)
        del runtime  # before the weights are read again
        usual = self._at(_loaded(path, sparing=False), smallest)
        if usual is not None and not usual.passed:
            return usual, smallest
        return max(found, key=lambda one: (not one[0].passed, one[0].error or 0.0))

    def _at(self, runtime: Runtime, shape: Shape) -> Check | None:
        """At one shape of a clip; None where the network itself stops."""
        clip = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        dtype = next(self.network.parameters()).dtype
        given, meant = as_input(clip.to(dtype).float(), runtime.dtype, self.preprocessing)
        try:
            reference = self._torch(meant)
        except Exception:  # noqa: BLE001 - a network raises what it likes at a size that it isn't made for
            return None
        try:
            value = runtime(given)
        except CheckpointError as error:
            return Check(_NAME, False, first_line(error), tolerance=self.tolerance)
        if runtime.names_best:
            return check_outputs(_NAME, *best_beside(reference[0], *value), self.tolerance)
        check = check_outputs(_NAME, reference, value, self.tolerance)
        if check.passed or self.strict:
            return check
        return OwnRounding.between(self._torch(meant.double()), reference).second_look(check, reference, value)

    def _torch(self, clip: Tensor) -> list[Tensor]:
        with evaluating(self.network, clip.dtype):
            return outputs(self.network(clip))


def _loaded(path: Path, sparing: bool = True) -> Runtime:
    try:
        onnx.checker.check_model(str(path), full_check=False)
        return Runtime(path, sparing=sparing)
    except (onnx.checker.ValidationError, CheckpointError) as error:
        raise ExportError(f"the exported file is refused: {first_line(error)}") from None


_NAME = "onnxruntime against torch"
