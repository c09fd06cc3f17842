"""Write inverse real Fourier transforms as complex ones: onnxruntime misjudges the size of the real ones' outputs, and
fails in a session with default options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ComplexInverses(TorchFunctionMode):
    """While active, `torch.fft.irfft`, `irfft2` and `irfftn` compute the same with `torch.fft.ifftn`."""

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
    sizes = [given.shape[axis] for axis in others] if s is None else list(s[:-1])
    size = 2 * (given.shape[last] - 1) if s is None else s[-1]
    if others:
        given = torch.fft.ifftn(given, sizes, others, norm)
    half = size // 2 + 1
    given = given.narrow(last, 0, half)
    # The frequencies of real values above the middle mirror those below it.
    mirrored = given.narrow(last, 1, size - half).flip(last).conj().resolve_conj()
    real: Tensor = torch.fft.ifft(torch.cat((given, mirrored), last), size, last, norm).real
    return real


_INVERSES: dict[Any, Any] = {torch.fft.irfft: _irfft, torch.fft.irfft2: _irfft2, torch.fft.irfftn: _irfftn}
