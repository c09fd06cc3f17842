"""How each 3D tensor comes about: from the 2D tensor of its name, or, where there is none, as a new one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from i3dconvert.lift.kernels import INITS, identity, phased


@dataclass(frozen=True)
class Filling(ABC):
    """How one 3D tensor comes about: of the 2D tensor of its name, or, where it is new, of those that it is `like`."""

    like: tuple[str, ...] = field(default=(), kw_only=True)
    """For a new tensor: the 2D tensors that it is made from, in order, or whose dtype it takes."""
    is_kernel: ClassVar[bool] = False
    """Whether it is a 2D kernel with a temporal axis, `(O, I, T, kH, kW)`, which is filled as `--init` says."""

    @property
    def is_new(self) -> bool:
        """Whether there is no such tensor in 2D."""
        return bool(self.like)

    @property
    def times(self) -> int:
        """How many times larger than in 2D the tensor is."""
        return 1

    @property
    def copies(self) -> int:
        """How many times the 2D kernel is in the sum of the taps."""
        return 1

    def of(self, layer: str) -> Filling:
        """The same, with the names that it is `like` being those of a layer's tensors."""
        return replace(self, like=tuple(f"{layer}.{name}" for name in self.like))

    @abstractmethod
    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """That of the 3D tensor, without making it."""

    @abstractmethod
    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """The 3D tensor."""


@dataclass(frozen=True)
class Taps(Filling):
    """A kernel inflated to so many taps."""

    taps: int
    is_kernel = True

    @property
    def times(self) -> int:
        """The number of taps."""
        return self.taps

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """`(O, I, kH, kW)` → `(O, I, T, kH, kW)`."""
        return (*shape2d[:2], self.taps, *shape2d[2:])

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """By the init's way."""
        return INITS[init].inflate(tensor2d, self.taps)


@dataclass(frozen=True)
class Phases(Taps):
    """The kernel of a transposed convolution, the same at `stride` taps from the `first`."""

    first: int
    stride: int

    @property
    def copies(self) -> int:
        """One for each phase."""
        return self.stride

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """The same for every init."""
        return phased(tensor2d, self.taps, self.first, self.stride)


@dataclass(frozen=True)
class Identity(Filling):
    """A temporal convolution `(O, I, T, 1, 1)` of its own, that starts as the identity."""

    outputs: int
    inputs: int
    taps: int

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """`(O, I, T, 1, 1)`."""
        return (self.outputs, self.inputs, self.taps, 1, 1)

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """In the dtype of `tensor2d`."""
        return INITS[init].inflate(identity(self.outputs, self.inputs, tensor2d.dtype), self.taps)


@dataclass(frozen=True)
class Zeros(Filling):
    """A parameter that starts as zeros."""

    size: tuple[int, ...]

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """Its own."""
        return self.size

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """In the dtype of `tensor2d`."""
        return tensor2d.new_zeros(self.size)


@dataclass(frozen=True)
class Copy(Filling):
    """A parameter that starts as a copy of the 2D network's, or of several, one after the other."""

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        return shape2d

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """A copy."""
        return tensor2d.clone()


@dataclass(frozen=True)
class Repeated(Filling):
    """A table of relative positions, repeated for each of so many distances in time."""

    distances: int

    @property
    def times(self) -> int:
        """The number of distances."""
        return self.distances

    def shape(self, shape2d: tuple[int, ...]) -> tuple[int, ...]:
        """`(entries, heads)` → `(distances · entries, heads)`."""
        return (self.distances * shape2d[0], *shape2d[1:])

    def __call__(self, tensor2d: Tensor, init: str) -> Tensor:
        """The table of one frame beside itself."""
        return tensor2d.repeat(self.distances, 1)
