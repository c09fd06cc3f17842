"""The 2D kernels that a network convolves with, as PyTorch's dispatcher sees them, however the code calls them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Kernels(NamedTuple):
    """Counts the different kernels that a run convolved images with, and their calls."""

    run: int = 0
    calls: int = 0

    def __bool__(self) -> bool:
        return self.calls > 0


class KernelsSeen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the 4-D kernel of each convolution, including transposed ones; kernels are distinguished by identity.

    In this mode, function modes also see the operations of C++ code that no Python function calls.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: dict[int, Tensor] = {}
        self._calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and args[1].dim() == 4:
            self._seen[id(args[1])] = args[1]
            self._calls += 1
        return func(*args, **(kwargs or {}))

    def kernels(self) -> Kernels:
        """Return the counts so far."""
        return Kernels(len(self._seen), self._calls)
