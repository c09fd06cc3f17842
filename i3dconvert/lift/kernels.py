"""The temporal inits: how a 2D kernel fills the taps of a 3D one. Pure functions, each exactly invertible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from i3dconvert.choices import Conv, Padding, TemporalPool, TimeEmbedding
from i3dconvert.errors import RecipeError


def center(kernel: Tensor, taps: int) -> Tensor:
    """Inflate `(O, I, kH, kW)` to `(O, I, taps, kH, kW)`: the 2D kernel at tap `taps // 2`, zeros elsewhere.

    Girdhar et al., "Detect-and-Track", arXiv:1712.09184, section 3.1 (central initialisation). The network equals the
    2D one on a replicated image with any temporal padding.
    """
    inflated = kernel.new_zeros((*kernel.shape[:2], taps, *kernel.shape[2:]))
    inflated[:, :, taps // 2] = kernel
    return inflated


def mean(kernel: Tensor, taps: int) -> Tensor:
    """Inflate `(O, I, kH, kW)` to `(O, I, taps, kH, kW)`: the 2D kernel divided by `taps` at every tap.

    Carreira & Zisserman, "Quo Vadis, Action Recognition?", arXiv:1705.07750, section 2.4. A third of a float is not a
    float, so the middle tap takes the rounding error: the taps sum to the 2D kernel exactly (in arithmetic wide enough
    for the sum; in float64 itself, up to rounding). The network equals the 2D one on a replicated image if the temporal
    border is replicated.
    """
    wide = kernel.double()
    share = (wide / taps).to(kernel.dtype)
    rest = wide - (taps - 1) * share.double()
    # At the top of a binade, the rest can need one bit more than the dtype has; larger shares correct that.
    away = torch.nextafter(share, share * 2)
    share = torch.where(rest.to(kernel.dtype).double() == rest, share, away)
    rest = wide - (taps - 1) * share.double()
    inflated = share.unsqueeze(2).repeat_interleave(taps, dim=2)
    inflated[:, :, taps // 2] = rest.to(kernel.dtype)
    return inflated


def phased(kernel: Tensor, taps: int, first: int, stride: int) -> Tensor:
    """Inflate `(I, O, kH, kW)` to `(I, O, taps, kH, kW)`, for transposed convolutions: `stride` copies from `first` on.

    Only every `stride`-th tap reaches a frame of a transposed convolution's output, so each such set of taps has to sum
    to the 2D kernel.
    """
    inflated = kernel.new_zeros((*kernel.shape[:2], taps, *kernel.shape[2:]))
    inflated[:, :, first : first + stride] = kernel.unsqueeze(2)
    return inflated


def deflate(kernel: Tensor) -> Tensor:
    """Return the sum over the taps in float64, `(O, I, T, kH, kW)` to `(O, I, kH, kW)`: the inverse of every init."""
    return kernel.double().sum(dim=2)


@dataclass(frozen=True)
class Init:
    """A way to fill the taps, and the temporal padding with which the networks stay equal."""

    inflate: Callable[[Tensor, int], Tensor]
    padding: str


INITS = {"center": Init(center, "zeros"), "mean": Init(mean, "replicate")}


@dataclass(frozen=True)
class Style:
    """Options of all convolutions: how taps are filled, the temporal padding, and the form."""

    init: str = "center"
    padding: str = ""
    """Padding of time: `zeros` or `replicate`; empty selects the one that keeps the networks equal."""
    conv: str = "3d"
    """`3d`, or `2plus1d`: the 2D kernel followed by a temporal one that starts as the identity (Tran et al.,
    arXiv:1711.11248)."""
    temporal_pool: str = "mean"
    """Pooling of scores and features without space: `mean` over time, or `none`, one for each frame, `(N, T', K)`."""
    time_embedding: str = "none"
    """Position embedding of attention over time: `none`; `zeros`, a trained table over frames that starts at zero; or
    `sinusoidal-learned`, sinusoids of the frame's index through a trained projection that starts at zero."""

    def checked(self) -> Style:
        """Return the style with its padding set; raises `RecipeError` for unknown names."""
        for what, name, known in (
            ("init", self.init, INITS),
            ("form of convolution", self.conv, get_args(Conv)),
            ("temporal pool", self.temporal_pool, get_args(TemporalPool)),
            ("time embedding", self.time_embedding, get_args(TimeEmbedding)),
            ("temporal padding", self.padding or "zeros", get_args(Padding)),
        ):
            if name not in known:
                raise RecipeError(f"unknown {what} {name!r}; known: {', '.join(known)}")
        return replace(self, padding=self.padding or INITS[self.init].padding)


def identity(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """Return the grouped 1×1 convolution that changes nothing, `(outputs, inputs, 1, 1)`."""
    eye = torch.eye(inputs, dtype=dtype).repeat(outputs // inputs, 1)
    return eye.reshape(outputs, inputs, 1, 1)
