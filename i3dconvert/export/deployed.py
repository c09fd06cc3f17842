"""Additions for deployment: decoded frames as input, and the best classes as output."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.reading import on_meta
from i3dconvert.video.preprocessing import Preprocessing

SCORES, BEST = "scores", "classes"
"""The outputs of a network with `top_k`: probabilities and indices."""


class FromDecoder(nn.Module):
    """A network on frames `(N, T, H, W, C)` in uint8, which it normalises but does not resize."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing
        self.dtype = next(network.parameters()).dtype

    def forward(self, frames: Tensor) -> object:
        """Return the network's outputs."""
        return self.network(self.preprocessing.encode(frames).to(self.dtype))


class OnlyTensors(nn.Module):
    """A network without its outputs that are no tensors, such as sizes and names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clip: Tensor) -> object:
        """Return the network's outputs that are tensors, in their dicts and tuples."""
        return _only_tensors(self.network(clip))


def _only_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: kept for key, one in value.items() if (kept := _only_tensors(one)) is not None}
    if isinstance(value, tuple | list):
        return tuple(kept for one in value if (kept := _only_tensors(one)) is not None)
    return value if isinstance(value, Tensor) else None


def others_than_tensors(network: Network3d) -> str:
    """Return the types of the network's outputs that are no tensors, from a run on the meta device."""
    channels, *size = inflation_of(network).input
    clip = torch.empty(1, channels, inflation_of(network).minimum_frames, *size, device="meta")
    found: list[Any] = []
    with torch.no_grad(), suppress(Exception):  # if it does not run there, the export says more
        fx.node.map_aggregate(on_meta(network).eval()(clip.to(next(network.parameters()).dtype)), found.append)
    kinds = (type(leaf).__name__ for leaf in found if leaf is not None and not isinstance(leaf, Tensor))
    return ", ".join(dict.fromkeys(kinds))


class BestClasses(nn.Module):
    """The `count` best classes of a classifier: probabilities and indices, both `(N, count)`, the best first."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network, self.count = network, count

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities in float32, and indices."""
        scores, classes = self.network(clip).float().softmax(-1).topk(self.count)
        return scores, classes


def best_beside(logits: Tensor, scores: Tensor, classes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Compare `(N, K)` logits with the best classes `(N, count)`: the two lists are equal if these are right.

    Classes with equal scores may be swapped.
    """
    probabilities = logits.softmax(-1)
    best = probabilities.topk(classes.shape[1]).values
    return [best, probabilities.gather(1, classes)], [scores, scores]
