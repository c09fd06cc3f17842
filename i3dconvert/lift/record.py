"""What was done to a 2D network, and how its tensors become those of the 3D one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from i3dconvert.lift.convolutions import Convolutions
from i3dconvert.lift.fillings import Filling
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.rewriting import Layer
from i3dconvert.recipes import Recipe

Sizes = tuple[tuple[int, int], tuple[int, int]]
"""The least and the greatest height, and width."""

PIECE = 2**23
"""Bytes of a tensor that are made at once."""


@dataclass(frozen=True)
class Inflation:
    """What was done to a 2D network: everything that its 3D form and its tensors follow from."""

    recipe: Recipe
    style: Style
    layers: tuple[Layer, ...] = ()
    fillings: Mapping[str, Filling] = field(default_factory=dict)
    """By state-dict key, for each tensor that gains a temporal axis or has no 2D form."""
    minimum_frames: int = 1
    input: tuple[int, int, int] = (3, 224, 224)
    """The image `(C, H, W)` that the 2D network was traced at."""
    any_size: bool = False
    """Whether every value is an image or a vector, as in convolutional networks, so that any size goes through."""
    folds: int = 0
    """How many times the network turns a clip into frames."""
    convolutions: Convolutions = field(default_factory=Convolutions)
    """How many of the 2D network's convolutions became 3D, and which did not."""
    eval_only: str = ""
    """What the 2D network does otherwise in training, where the 3D one does what it does in eval mode; else empty."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """What the 2D network is called with beside the image, by the names of its forward's parameters."""
    fixed: str = ""
    """Why height and width are those of `input` alone; empty where they are free."""
    tried: Sizes | None = None
    """The least and the greatest height and width at which the network was seen to do the same; None: not tried."""
    ties: tuple[tuple[str, ...], ...] = ()
    """Keys of one and the same parameter, group by group."""

    def sizes(self) -> str:
        """Which heights and widths the network was seen to treat alike, in a sentence; empty where nobody tried."""
        if self.fixed:
            return f"clips of {self.input[1]}×{self.input[2]} alone: {self.fixed}"
        if self.tried is None:
            return ""
        (low, high), (narrow, wide) = self.tried
        return f"heights {low} to {high} and widths {narrow} to {wide} were tried"

    def keys(self, state2d: Iterable[str]) -> list[str]:
        """The 3D network's keys for the 2D network's: the same, and those of temporal convolutions of their own."""
        return [*state2d, *(key for key, filling in self.fillings.items() if filling.is_new)]

    def source(self, key: str, state2d: Mapping[str, Tensor]) -> Tensor:
        """The 2D tensor that the 3D one called `key` is made from, or takes its dtype from."""
        if key in state2d:
            return state2d[key]
        parts = [state2d[name] for name in self.fillings[key].like]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def tensor(self, key: str, tensor2d: Tensor) -> Tensor:
        """The 3D form of one 2D tensor: `(O, I, kH, kW)` → `(O, I, T, kH, kW)` where inflated, else as it is."""
        filling = self.fillings.get(key)
        return tensor2d if filling is None else filling(tensor2d, self.style.init)

    def pieces(self, key: str, tensor2d: Tensor) -> Iterator[Tensor]:
        """`tensor(key, tensor2d)` in parts along its first axis, of `PIECE` bytes or so, for want of memory."""
        filling = self.fillings.get(key)
        if filling is None or not filling.is_kernel:
            yield self.tensor(key, tensor2d)
        else:
            rows = max(PIECE // (tensor2d[0].nbytes * filling.times), 1)
            yield from (filling(part, self.style.init) for part in torch.split(tensor2d, rows))

    def state(self, state2d: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The 3D tensors of the 2D `state2d`, one at a time."""
        for key in self.keys(state2d):
            yield key, self.tensor(key, self.source(key, state2d))

    def shape(self, key: str, tensor2d: Tensor) -> tuple[int, ...]:
        """Return the shape of `tensor(key, tensor2d)` without computing it."""
        filling = self.fillings.get(key)
        return tuple(tensor2d.shape) if filling is None else filling.shape(tuple(tensor2d.shape))
