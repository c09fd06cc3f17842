"""Additions for deployment: decoded frames as input, and the best classes as output."""

from __future__ import annotations

from torch import Tensor, nn

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
