"""The contents of a report on one file, as data."""

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
from i3dconvert.lift.describe import LayerRow, describe, energy_by_tap, frames_by_layer, from_inflated, with_training
from i3dconvert.lift.network import inflation_of
from i3dconvert.verification import FRAMES, Report
from i3dconvert.weights import State, shapes_of

_STAGE = re.compile(r"^(.*?\d+)(?:\.|$)")


@dataclass(frozen=True)
class Subject:
    """A file, its proof, and its network along time."""

    path: Path
    document: Document
    report: Report | None = None
    unproved: str = ""
    """The reason if there is no report."""
    layers: Sequence[LayerRow] = ()
    frames: int = FRAMES
    """Frames in the clip that is followed through the network."""
    left: Mapping[str, int] = field(default_factory=dict)
    """Frames at each layer's output."""
    taps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """For each layer, the share of its kernel's energy in each tap."""

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.report is None:
            return f"not proved: {self.unproved}"
        if self.report.trained and self.report.passed:
            return self.report.trained
        return "equals its 2D network" if self.report.passed else f"not equal to its 2D network: {self.report.reason}"

    @property
    def network(self) -> tuple[Any, ...]:
        """Return what two files of the same network share."""
        inflation, origin = self.document.inflation, self.document.origin
        return inflation.recipe, inflation.style, origin and (origin.backbone, origin.changes)


@dataclass(frozen=True)
class Stage:
    """Consecutive layers whose names begin alike."""

    name: str
    layers: int
    kernels: tuple[int, ...]
    """The different temporal kernels."""
    stride: int
    frames: int | None
    """Frames left at its end."""
    receptive_field: int | None
    """Frames of the clip that its end sees; None: all."""


Reader = Callable[[Path], tuple[Document, State]]


def subject_of(
    path: Path,
    report: Report | None,
    unproved: str = "",
    frames: int | None = None,
    read: Reader = checkpoint.read,
    model: str = "",
) -> Subject:
    """Return what to show of a file; a clip of `frames` frames is followed through its network.

    Exported files, and files whose tensors do not match their recipe, have no taps to show. Raises `CheckpointError`.
    """
    exported = path.suffix == ".onnx"
    document, state = (read_document(path), {}) if exported else read(path)
    document = checkpoint.named(document, model, state)
    if document.origin is None:
        return Subject(path, document, report, unproved)
    network = checkpoint.rebuild(document)
    layers, taps = describe(network), {}
    if shapes_of(network.state_dict()) == shapes_of(state):
        layers = with_training(layers, from_inflated(inflation_of(network), state))
        taps = energy_by_tap(inflation_of(network), state)
    frames = max(frames or FRAMES, inflation_of(network).minimum_frames)
    return Subject(path, document, report, unproved, layers, frames, frames_by_layer(network, frames), taps)


def stage_of(layer: str) -> str:
    """Return the stage of a layer: its name up to the first number, such as `layer1` or `blocks.0`."""
    found = _STAGE.match(layer)
    return found[1] if found else layer


def stages(subject: Subject) -> list[Stage]:
    """Return the stages of the network from input to output."""
    found = []
    for name, group in groupby(subject.layers, lambda layer: stage_of(layer.name)):
        layers = list(group)
        frames = [subject.left[layer.name] for layer in layers if layer.name in subject.left]
        stride = max((one for layer in layers for one in layer.stride3d[:1]), default=1)
        kernels = tuple(sorted({layer.kernel3d[0] for layer in layers if layer.kernel3d}))
        fields = [layer.receptive_field for layer in layers]
        field = None if None in fields else max(field for field in fields if field is not None)
        found.append(Stage(name, len(layers), kernels, stride, frames[-1] if frames else None, field))
    return found
