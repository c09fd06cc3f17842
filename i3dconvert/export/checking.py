"""Check an export: onnxruntime against torch, also at other shapes than the traced one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from torch import Tensor

from i3dconvert.comparison.forward import OwnRounding, check_outputs, evaluating, outputs
from i3dconvert.comparison.report import Check
from i3dconvert.errors import CheckpointError, ExportError, first_line
from i3dconvert.export.deployed import best_beside
from i3dconvert.export.runtime import Runtime, as_input, give_back
from i3dconvert.lift.network import Network3d
from i3dconvert.video.preprocessing import Preprocessing

Shape = tuple[int, ...]


class Run(NamedTuple):
    """A run of the network in torch."""

    given: Tensor
    """The input of the file."""
    meant: Tensor
    """The clip that it represents."""
    outputs: list[Tensor]


@dataclass(frozen=True)
class Compared:
    """A network in torch, and the tolerance of its exported files."""

    network: Network3d
    preprocessing: Preprocessing
    tolerance: float
    strict: bool = False
    """Whether the tolerance also holds if the network's own rounding is coarser."""

    def check(self, path: Path, shapes: Sequence[Shape]) -> tuple[Check, Shape]:
        """Return the worst comparison at any of the `shapes`, or the first that fails, and its shape.

        The smallest shape also runs in a session with default options. Shapes after the first at which the network
        itself fails are skipped. Raises `ExportError` if the file does not load.
        """
        _check_graph(path)
        runtime = _loaded(path)
        found: list[tuple[Check, Shape]] = []
        runs: dict[Shape, Run] = {}
        for shape in dict.fromkeys(shapes):
            if run := self._run(runtime.dtype, shape):
                runs[shape] = run
                found.append((self._compare(runtime, run), shape))
                if not found[-1][0].passed:
                    return found[-1]
            elif shape == shapes[0]:
                found.append((Check(_NAME, False, "the network itself fails there"), shape))
        smallest = min(runs, key=math.prod, default=None)
        del runtime
        give_back()  # before reading the weights again
        usual = _loaded(path, sparing=False)
        if smallest is not None and not (compared := self._compare(usual, runs[smallest])).passed:
            return replace(compared, detail=f"in a session with default options, {compared.detail}"), smallest
        return max(found, key=lambda one: (not one[0].passed, one[0].error or 0.0))

    def _run(self, dtype: torch.dtype, shape: Shape) -> Run | None:
        """Run the network at one shape of a clip; None if it fails there."""
        clip = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        own = next(self.network.parameters()).dtype
        given, meant = as_input(clip.to(own).float(), dtype, self.preprocessing)
        try:
            return Run(given, meant, self._torch(meant))
        except Exception:  # noqa: BLE001 - a network may raise anything at an unsupported size
            return None

    def _compare(self, runtime: Runtime, run: Run) -> Check:
        given, meant, reference = run
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


def _check_graph(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=False)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported file is invalid: {first_line(error)}") from None
    give_back()


def _loaded(path: Path, sparing: bool = True) -> Runtime:
    try:
        return Runtime(path, sparing=sparing)
    except CheckpointError as error:
        raise ExportError(f"the exported file is invalid: {first_line(error)}") from None


_NAME = "onnxruntime against torch"
