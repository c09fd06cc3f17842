"""The settings of a verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

TOLERANCES: Mapping[torch.dtype, float] = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Relative tolerances of forward equality. float64 rounds to 1e-15, so 1e-12 is a proof."""

FRAMES = 16
CLIPS = 2
"""Two clips at once, so that clips and frames can't be confused."""


@dataclass(frozen=True)
class Settings:
    """Settings of a verification. `frames`, `size`: None for 16 (or the recipe's minimum) and the backbone's own size,
    or less where that exceeds the budget `gflop`."""

    frames: int | None = None
    size: int | None = None
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32)
    tolerance: float | None = None
    layers: bool = False
    images: Sequence[Path] = ()
    seed: int = 0
    device: str = "cpu"
    """The device of both networks. On a GPU, TF32 is turned off: it would round float32 to ten bits."""
    gflop: float = 600.0
    """Budget of a forward pass in GFLOP (10⁹ floating-point operations); frames and size not set are chosen to fit."""
    clips: int = CLIPS
    """Clips per batch."""

    def tolerance_for(self, dtype: torch.dtype) -> float:
        """Return the relative tolerance for `dtype`."""
        return self.tolerance if self.tolerance is not None else TOLERANCES[dtype]


def noise(shape: tuple[int, int, int], settings: Settings) -> Tensor:
    """Return images `(N, C, H, W)` of `shape`, or of the settings' size, in float64."""
    channels, height, width = shape
    height, width = (settings.size, settings.size) if settings.size else (height, width)
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randn(settings.clips, channels, height, width, generator=generator, dtype=torch.float64)
