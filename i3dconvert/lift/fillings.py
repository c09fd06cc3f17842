"""Compute each 3D tensor from the 2D tensor of its name, or, if there is none, as a new one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from i3dconvert.lift.kernels import INITS, identity, phased


@dataclass(frozen=True)
class Filling(ABC):
    """The rule for one 3D tensor: from the 2D tensor of its name, or, if it is new, from those that it is `like`."""

    like: tuple[str, ...] = field(default=(), kw_only=True)
    """For a new tensor: the 2D tensors that it is made from, in order, or whose dtype it takes."""
    is_kernel: ClassVar[bool] = False
    """Whether it is a 2D kernel with a temporal axis, `(O, I, T, kH, kW)`, filled according to `--init`."""

    @property
    def is_new(self) -> bool:
        """Whether there is no such tensor in 2D."""
        return bool(self.like)

    @property
    def times(self) -> int:
        """The ratio of the tensor's size to the 2D one."""
        return 1

    @property
    def copies(self) -> int:
        """Return the sum of the taps as a multiple of the 2D kernel."""
        return 1

    def of(self, layer: str) -> Filling:
        """Return the filling with the names in `like` prefixed by a layer's."""
        return replace(self, like=tuple(f"{layer}.{name}" for name in self.like))

    @abstractmethod
    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """Return the 3D tensor's shape without computing it."""

    @abstractmethod
    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """Return the 3D tensor."""


@dataclass(frozen=True)
class Taps(Filling):
    """A kernel inflated to `taps` taps."""

    taps: int
    is_kernel = True

    @property
    def times(self) -> int:
        """The number of taps."""
        return self.taps

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """Return `(O, I, T, kH, kW)` for `(O, I, kH, kW)`."""
        return (*shape2d[:2], self.taps, *shape2d[2:])

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """Fill the taps according to the init."""
        return INITS[init].inflate(tensor2d, self.taps)


@dataclass(frozen=True)
class Phases(Taps):
    """The kernel of a transposed convolution, repeated at `stride` taps from `first`."""

    first: int
    stride: int

    @property
    def copies(self) -> int:
        """One for each phase."""
        return self.stride

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """Fill the taps in the same way for every init."""
        return phased(tensor2d, self.taps, self.first, self.stride)


@dataclass(frozen=True)
class Identity(Filling):
    """A new temporal convolution `(O, I, T, 1, 1)` that starts as the identity."""

    outputs: int
    inputs: int
    taps: int

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """Return `(O, I, T, 1, 1)`."""
        return (self.outputs, self.inputs, self.taps, 1, 1)

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """Return it in the dtype of `tensor2d`."""
        return INITS[init].inflate(identity(self.outputs, self.inputs, tensor2d.dtype), self.taps)


@dataclass(frozen=True)
class Zeros(Filling):
    """A parameter that starts as zeros."""

    size: tuple[int, ...]

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """Return its own size."""
        return self.size

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """Return it in the dtype of `tensor2d`."""
        return tensor2d.new_zeros(self.size)


@dataclass(frozen=True)
class Copy(Filling):
    """A parameter that starts as a copy of the 2D network's, or of several concatenated."""

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same shape."""
        return shape2d

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """Return a copy."""
        return tensor2d.clone()


@dataclass(frozen=True)
class Repeated(Filling):
    """A table of relative positions, repeated for each distance in time."""

    distances: int

    @property
    def times(self) -> int:
        """The number of distances."""
        return self.distances

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """Return `(distances · entries, heads)` for `(entries, heads)`."""
        return (self.distances * shape2d[0], *shape2d[1:])

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """Repeat the table of one frame."""
        return tensor2d.repeat(self.distances, 1)
