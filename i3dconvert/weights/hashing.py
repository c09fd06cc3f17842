"""Hash tensors as they pass."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from i3dconvert.files import release


class Stream:
    """Tensors used one after the other, whose memory does not pile up where it is mapped from files."""

    _PILE = 2**25

    def __init__(self, mapped: bool) -> None:
        """Not `mapped` are tensors that anyone else may have changed: nothing is given back of them."""
        self._mapped = mapped
        self._tensors: list[Tensor] = []

    def passed(self, tensor: Tensor) -> None:
        """`tensor` was used; it must be as it was read, and may be used again."""
        if not self._mapped:
            return
        self._tensors.append(tensor)
        if sum(passed.nbytes for passed in self._tensors) > self._PILE:
            release([passed.data_ptr() for passed in self._tensors])
            self._tensors.clear()


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names."""
    total = Digest()
    for key in sorted(state):
        total.add(key, state[key])
    return total.hexdigest()


class Digest:
    """SHA-256 of a state dict, tensor by tensor; the order in which they are added does not matter."""

    def __init__(self) -> None:
        self._parts: dict[str, hashlib._Hash] = {}

    def open(self, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> hashlib._Hash:
        """Begin a tensor, whose bytes the hash that is returned has to be updated with."""
        self._parts[key] = hashlib.sha256(f"{key}\0{dtype}\0{shape}\0".encode())
        return self._parts[key]

    def add(self, key: str, tensor: Tensor) -> None:
        """Take one tensor in."""
        self.open(key, tensor.dtype, tuple(tensor.shape)).update(raw(tensor))

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(b"".join(self._parts[key].digest() for key in sorted(self._parts))).hexdigest()


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied when it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
