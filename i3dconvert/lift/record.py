"""The record of an inflation, and how the 2D network's tensors become the 3D one's."""

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
"""The bytes of a tensor computed at once."""


@dataclass(frozen=True)
class Inflation:
    """The record of an inflation, from which the 3D network and its tensors follow."""

    recipe: Recipe
    style: Style
    layers: tuple[Layer, ...] = ()
    fillings: Mapping[str, Filling] = field(default_factory=dict)
    """Fillings by state-dict key, for each tensor that gains a temporal axis or has no 2D form."""
    minimum_frames: int = 1
    input: tuple[int, int, int] = (3, 224, 224)
    """The image `(C, H, W)` that the 2D network was traced at."""
    any_size: bool = False
    """Whether every value is an image or a vector, as in convolutional networks, so that any size works."""
    folds: int = 0
    """The number of conversions from clip to frames."""
    convolutions: Convolutions = field(default_factory=Convolutions)
    """The number of 2D convolutions that became 3D, and those that did not."""
    eval_only: str = ""
    """The difference of the 2D network in training, if the 3D one always behaves as in eval mode; else empty."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the 2D network besides the image, by the names of its forward's parameters."""
    fixed: str = ""
    """The reason if height and width must be those of `input`; else empty."""
    tried: Sizes | None = None
    """The least and the greatest height and width at which the networks were found equal; None: not tried."""
    ties: tuple[tuple[str, ...], ...] = ()
    """Groups of keys of the same parameter."""

    def sizes(self) -> str:
        """Return which heights and widths the network was tried at, as a sentence; empty if it was not tried."""
        if self.fixed:
            return f"only clips of {self.input[1]}×{self.input[2]}: {self.fixed}"
        if self.tried is None:
            return ""
        (low, high), (narrow, wide) = self.tried
        return f"heights {low} to {high} and widths {narrow} to {wide} were tried"

    def keys(self, state2d: Iterable[str]) -> list[str]:
        """Return the 3D network's keys: the 2D network's, and those of added temporal convolutions."""
        return [*state2d, *(key for key, filling in self.fillings.items() if filling.is_new)]

    def source(self, key: str, state2d: Mapping[str, Tensor]) -> Tensor:
        """Return the 2D tensor that the 3D one called `key` is computed from, or takes its dtype from."""
        if key in state2d:
            return state2d[key]
        parts = [state2d[name] for name in self.fillings[key].like]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def tensor(self, key: str, tensor2d: Tensor) -> Tensor:
        """Return the 3D form of a 2D tensor: `(O, I, kH, kW)` → `(O, I, T, kH, kW)` if it is inflated, else itself."""
        filling = self.fillings.get(key)
        return tensor2d if filling is None else filling(tensor2d, self.style.init)

    def pieces(self, key: str, tensor2d: Tensor) -> Iterator[Tensor]:
        """Yield `tensor(key, tensor2d)` in parts along its first axis, of about `PIECE` bytes, to save memory."""
        filling = self.fillings.get(key)
        if filling is None or not filling.is_kernel:
            yield self.tensor(key, tensor2d)
        else:
            rows = max(PIECE // (tensor2d[0].nbytes * filling.times), 1)
            yield from (filling(part, self.style.init) for part in torch.split(tensor2d, rows))

    def state(self, state2d: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the 3D tensors of the 2D `state2d`, one at a time."""
        for key in self.keys(state2d):
            yield key, self.tensor(key, self.source(key, state2d))

    def moved(self, state2d: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
        """Return the keys of `state` whose tensors are not the inflated ones of `state2d`, in their dtypes."""
        own = set(self.keys(state2d))

        def inflated(key: str) -> Tensor:
            return self.tensor(key, self.source(key, state2d)).to(state[key].dtype)

        return [key for key in state if key not in own or not torch.equal(inflated(key), state[key])]

    def shape(self, key: str, tensor2d: Tensor) -> tuple[int, ...]:
        """Return the shape of `tensor(key, tensor2d)` without computing it."""
        filling = self.fillings.get(key)
        return tuple(tensor2d.shape) if filling is None else filling.shape(tuple(tensor2d.shape))
