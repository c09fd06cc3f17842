"""Hash tensors one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

from i3dconvert.files import release

_changing = Lock()
_before: list[int] = []
"""For each pass that runs, in any Python thread, torch's number of threads before the first of them."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations on one thread, for passes over tensors that memory limits.

    More threads save no time there, and wait for each other if another process is busy.
    """
    with _changing:
        _before.append(_before[-1] if _before else torch.get_num_threads())  # another pass may have set it to one
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _changing:
            torch.set_num_threads(_before.pop())


class Stream:
    """Tensors that are used one after the other; memory mapped from files is released after use."""

    _PILE = 2**25

    def __init__(self, mapped: bool) -> None:
        """Release memory only if the tensors are `mapped`: others may have been changed."""
        self._mapped = mapped
        self._tensors: list[Tensor] = []
        self._bytes = 0

    def passed(self, tensor: Tensor) -> None:
        """Note that `tensor` was used. It must be unchanged, and may be used again."""
        if not self._mapped:
            return
        self._tensors.append(tensor)
        self._bytes += tensor.nbytes
        if self._bytes > self._PILE:
            release([passed.data_ptr() for passed in self._tensors])
            self._tensors.clear()
            self._bytes = 0


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of all tensors, in the order of their names."""
    total = Digest()
    for key in sorted(state):
        total.add(key, state[key])
    return total.hexdigest()


class Digest:
    """SHA-256 of a state dict, tensor by tensor; the order in which they are added does not matter."""

    def __init__(self) -> None:
        self._parts: dict[str, hashlib._Hash] = {}

    def open(self, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> hashlib._Hash:
        """Begin a tensor; update the returned hash with its bytes."""
        self._parts[key] = hashlib.sha256(f"{key}\0{dtype}\0{shape}\0".encode())
        return self._parts[key]

    def add(self, key: str, tensor: Tensor) -> None:
        """Add a tensor."""
        self.open(key, tensor.dtype, tuple(tensor.shape)).update(raw(tensor))

    def hexdigest(self) -> str:
        """Return 64 hexadecimal digits."""
        return hashlib.sha256(b"".join(self._parts[key].digest() for key in sorted(self._parts))).hexdigest()


def raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, without a copy if it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
