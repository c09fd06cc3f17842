"""Write inverse real Fourier transforms as products with cosines and sines: onnxruntime misjudges the size of their
outputs, and fails in a session with default options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class RealInverses(TorchFunctionMode):
    """While active, `torch.fft.irfft`, `irfft2` and `irfftn` compute the same without a real inverse."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _INVERSES.get(func, func)(*args, **(kwargs or {}))


def _irfft(given: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    return _irfftn(given, None if n is None else (n,), (dim,), norm)


def _irfft2(
    given: Tensor, s: Sequence[int] | None = None, dim: Sequence[int] = (-2, -1), norm: str | None = None
) -> Tensor:
    return _irfftn(given, s, dim, norm)


def _irfftn(
    given: Tensor, s: Sequence[int] | None = None, dim: Sequence[int] | None = None, norm: str | None = None
) -> Tensor:
    if dim is None:
        dim = tuple(range(-(len(s) if s is not None else given.dim()), 0))
    *others, last = dim
    if others:
        given = torch.fft.ifftn(given, None if s is None else list(s[:-1]), others, norm)
    count = given.shape[last]
    size = 2 * (count - 1) if s is None or s[-1] == -1 else s[-1]
    # Frequencies above the middle mirror those below it, so those count twice; with another size, some are left out.
    twice, position = 2 * torch.arange(count, device=given.device), torch.arange(size, device=given.device)
    total = torch.ones_like(position).sum()  # a tensor: the exporter can't compute with a size that is free
    among = total.to(given.real.dtype)
    angles = (twice[:, None] * position % (2 * total)).to(among.dtype) / among * math.pi
    share = (2 * (twice < total) + (twice == total) - (twice == 0).long()).to(among.dtype)
    share = (share if norm == "forward" else share / (among.sqrt() if norm == "ortho" else among))[:, None]
    real, imaginary = given.real.movedim(last, -1), given.imag.movedim(last, -1)
    real = real @ (share * angles.cos()) - imaginary @ (share * angles.sin())
    return real.movedim(-1, last)


_INVERSES: dict[Any, Any] = {torch.fft.irfft: _irfft, torch.fft.irfft2: _irfft2, torch.fft.irfftn: _irfftn}
