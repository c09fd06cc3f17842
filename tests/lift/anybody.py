"""Networks as people write them, and what the 2D network gives on each frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Whatever a test gives it, in float64."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        for name, part in {"c": nn.Conv2d(3, 4, 3, padding=1), "d": nn.Conv2d(4, 2, 3, padding=1), **parts}.items():
            setattr(self, name, part)
        self.code = forward
        generator = torch.Generator().manual_seed(0)
        for parameter in self.double().parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


def clip_of(clips: int, frames: int, size: int) -> Tensor:
    return torch.randn(clips, 3, frames, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def framewise(model: nn.Module, clip: Tensor) -> Tensor:
    """What the 2D network gives on each frame: scores averaged over time, maps stacked along it."""
    frames = [model(frame.clone()) for frame in clip.unbind(2)]
    return torch.stack(frames, 2) if frames[0].dim() == 4 else torch.stack(frames, 1).mean(1)
