"""What a report says of one file, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from i3dconvert import checkpoint
from i3dconvert.checkpoint import Document
from i3dconvert.export.runtime import read_document
from i3dconvert.lift.describe import LayerRow, describe, energy_by_tap, frames_left, from_inflated, with_training
from i3dconvert.lift.network import inflation_of
from i3dconvert.verification import FRAMES, Report
from i3dconvert.weights import State

_STAGE = re.compile(r"^(.*?\d+)(?:\.|$)")


@dataclass(frozen=True)
class Subject:
    """A file, what was proved of it, and its network in time."""

    path: Path
    document: Document
    report: Report | None = None
    unproved: str = ""
    """Why there is no report."""
    layers: Sequence[LayerRow] = ()
    frames: int = FRAMES
    """The frames of the clip whose way through the network is drawn."""
    left: Mapping[str, int] = field(default_factory=dict)
    """Frames at each layer's output."""
    taps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By layer, each tap's share of its kernel's energy."""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.report is None:
            return f"not proved: {self.unproved}"
        if self.report.trained and self.report.passed:
            return self.report.trained
        return "equals its 2D network" if self.report.passed else f"not equal to its 2D network: {self.report.reason}"

    @property
    def network(self) -> tuple[Any, ...]:
        """What two files of one network have in common."""
        inflation, origin = self.document.inflation, self.document.origin
        return inflation.recipe, inflation.style, origin and (origin.backbone, origin.changes)


@dataclass(frozen=True)
class Stage:
    """Layers one after the other whose names begin alike."""

    name: str
    layers: int
    kernels: tuple[int, ...]
    """In time, those that there are."""
    stride: int
    frames: int | None
    """Left at its end."""
    receptive_field: int | None
    """In frames of the clip, at its end; None: all."""


Reader = Callable[[Path], tuple[Document, State]]


def subject_of(
    path: Path, report: Report | None, unproved: str = "", frames: int | None = None, read: Reader = checkpoint.read
) -> Subject:
    """What there is to show of a file, of whose network a clip of `frames` is followed.

    Of an exported file there are no taps to show: its tensors are not the network's any more; nor of one whose tensors
    are not those of its recipe, which `report` tells. Raises `CheckpointError`.
    """
    exported = path.suffix == ".onnx"
    document, state = (read_document(path), {}) if exported else read(path)
    if document.origin is None:
        return Subject(path, document, report, unproved)
    network = checkpoint.rebuild(document)
    layers, taps = describe(network), {}
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    if shapes == {key: tensor.shape for key, tensor in state.items()}:
        layers = with_training(layers, from_inflated(inflation_of(network), state))
        taps = energy_by_tap(inflation_of(network), state)
    frames = max(frames or FRAMES, inflation_of(network).minimum_frames)
    return Subject(path, document, report, unproved, layers, frames, frames_left(network, frames), taps)


def stage_of(layer: str) -> str:
    """The part of the network that a layer is of: its name up to the first number, as in `layer1` and `blocks.0`."""
    found = _STAGE.match(layer)
    return found[1] if found else layer


def stages(subject: Subject) -> list[Stage]:
    """The network from input to output."""
    found = []
    for name, group in groupby(subject.layers, lambda layer: stage_of(layer.name)):
        layers = list(group)
        strides = 1
        frames = [subject.left[layer.name] for layer in layers if layer.name in subject.left]
        for layer in layers:
            strides = max(strides, *layer.stride3d[:1], 1)
        kernels = tuple(sorted({layer.kernel3d[0] for layer in layers if layer.kernel3d}))
        fields = [layer.receptive_field for layer in layers]
        field = None if None in fields else max(field for field in fields if field is not None)
        found.append(Stage(name, len(layers), kernels, strides, frames[-1] if frames else None, field))
    return found
