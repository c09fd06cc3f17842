"""What deployment puts around a network: frames as a decoder gives them before it, the best classes behind it."""

from __future__ import annotations

from torch import Tensor, nn

from i3dconvert.video.preprocessing import Preprocessing

SCORES, BEST = "scores", "classes"
"""The outputs of a network that names its best classes: their probabilities and their indices."""


class FromDecoder(nn.Module):
    """A network on frames `(N, T, H, W, C)` in uint8, normalised inside; they are not resized."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing
        self.dtype = next(network.parameters()).dtype

    def forward(self, frames: Tensor) -> object:
        """The network's outputs."""
        return self.network(self.preprocessing.encode(frames).to(self.dtype))


class BestClasses(nn.Module):
    """A classifier's `count` best classes: their probabilities and their indices, both `(N, count)`, the best first."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network, self.count = network, count

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities in float32."""
        scores, classes = self.network(clip).float().softmax(-1).topk(self.count)
        return scores, classes


def best_beside(logits: Tensor, scores: Tensor, classes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What `(N, K)` logits say of best classes `(N, count)`: each list's tensors are equal if these are the right ones.

    Two classes with the same score may change places.
    """
    probabilities = logits.softmax(-1)
    best = probabilities.topk(classes.shape[1]).values
    return [best, probabilities.gather(1, classes)], [scores, scores]
