"""Which backbone a state dict is of, guessed from its keys and shapes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher

import torch
from torch import Tensor

from i3dconvert.backbones.origin import Backbone, build, library
from i3dconvert.errors import I3DError
from i3dconvert.names import HF, USER, names

SECONDS = 1.5
"""To look for, in a message that the user waits for."""

_HEAD = 2
"""The weight and the bias that another number of classes gives another shape."""


def likely(state: Mapping[str, Tensor], source: str, name: str) -> str | None:
    """The backbone with these keys and shapes (its head may have another class count), or None.

    `name` of `source` is what it was taken for: torchvision's are looked at by their number of parameters, timm's by
    how alike their names are.
    """
    shapes = {key: tensor.shape for key, tensor in state.items()}
    started = time.monotonic()
    for candidate in _candidates(state, source, name):
        if time.monotonic() - started > SECONDS:
            return None
        if _fits(candidate, shapes):
            return candidate.qualified
    return None


def _candidates(state: Mapping[str, Tensor], source: str, name: str) -> Iterator[Backbone]:
    if source in (USER, HF):
        return
    torchvision = library("torchvision")
    count = sum(tensor.numel() for key, tensor in state.items() if ".running_" not in key)
    sizes = {other: torchvision.parameters(other) or 0 for other in names("torchvision")}
    yield from (
        Backbone.of("torchvision", other)
        for other in sorted(sizes, key=lambda other: abs(sizes[other] - count))
        if abs(sizes[other] - count) < count / 4
    )
    if source == "timm":
        alike = sorted(names("timm"), key=lambda other: -SequenceMatcher(None, name, other).quick_ratio())
        yield from (Backbone.of("timm", other) for other in alike)


def _fits(candidate: Backbone, shapes: Mapping[str, torch.Size]) -> bool:
    try:
        with torch.device("meta"):
            theirs = build(candidate).state_dict()
    except (I3DError, RuntimeError):
        return False
    return theirs.keys() == shapes.keys() and sum(theirs[key].shape != shapes[key] for key in shapes) <= _HEAD
