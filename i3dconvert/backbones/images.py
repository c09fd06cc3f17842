"""Find out which images a user's own network takes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from i3dconvert.backbones.changes import RGB
from i3dconvert.backbones.library import first_channels
from i3dconvert.comparison.forward import given
from i3dconvert.errors import BackboneError
from i3dconvert.lift.reading import can_run, on_meta

SIZE = 224
"""The default height and width."""

Shape = tuple[int, int, int]


def shape_of(
    model: nn.Module,
    shape: Shape | None = None,
    size: int | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Shape:
    """Return the image shape `(C, H, W)` that a network is read at: `shape`, or one of `size` that it accepts.

    Raises `BackboneError` if the two contradict each other.
    """
    if shape is None:
        height = width = size or SIZE
        return (channels_of(model, height, width, constants or {}), height, width)
    check_shape(shape, size)
    return shape


def check_shape(shape: Shape, size: int | None) -> None:
    """Raise `BackboneError` if `shape` is not an image's, or is of another size."""
    if len(shape) != 3 or min(shape) < 1:
        raise BackboneError(f"input must be (channels, height, width), not {shape}")
    if size is not None and tuple(shape[1:]) != (size, size):
        raise BackboneError(f"input={shape} and size={size} contradict each other; input already sets the size")


def channels_of(model: nn.Module, height: int, width: int, constants: Mapping[str, Any]) -> int:
    """Return the first number of channels that the network runs with: its first convolution's, 3, 1, or another's.

    The network runs on the meta device, without arithmetic; if it refuses, since it makes tensors on another device, it
    is read. If none works, the first convolution's is returned.
    """
    first = first_channels(model)
    others = [int(m.in_channels) for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    for runs in (_runs, can_run):
        for channels in dict.fromkeys([first, RGB, 1, *others]):
            with suppress(Exception), given(model, constants):  # a user's network may raise anything
                if runs(model, (channels, height, width)):
                    return channels
    return first


def _runs(model: nn.Module, shape: Shape) -> bool:
    network = on_meta(model).eval()
    tensor = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    with torch.no_grad():
        network(torch.empty(2, *shape, dtype=tensor.dtype, device="meta"))
    return True
