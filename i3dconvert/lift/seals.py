"""Seals of a network's tensors, which tell later which of them moved since they were inflated or read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Seal(NamedTuple):
    """The seal of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    bits: int
    """The exclusive or of all values."""
    norm: float


def sealed(state: Mapping[str, Tensor]) -> dict[str, Seal]:
    """Return the seals of a state dict's tensors; those on the meta device have none."""
    return {key: _seal(tensor.detach()) for key, tensor in state.items() if not tensor.is_meta}


def moved(state: Mapping[str, Tensor], seals: Mapping[str, Seal]) -> set[str]:
    """Return the keys of tensors that differ from their seals; a cast to another type does not count."""
    return {key for key, seal in sealed(state).items() if key not in seals or not _same(seals[key], seal)}


def _seal(tensor: Tensor) -> Seal:
    wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    bits = int(torch.hash_tensor(tensor).view(torch.int64)) if tensor.numel() else 0
    return Seal(tensor.dtype, tuple(tensor.shape), bits, float(torch.linalg.vector_norm(wide)))


def _same(one: Seal, other: Seal) -> bool:
    if one.shape != other.shape or (one.dtype == other.dtype and one.bits != other.bits):
        return False
    return math.isclose(one.norm, other.norm, rel_tol=max(_ROUNDING, _eps(one), _eps(other))) or one.norm != one.norm


def _eps(seal: Seal) -> float:
    return torch.finfo(seal.dtype).eps if seal.dtype.is_floating_point else 0.0


_ROUNDING = 1e-5
"""Tolerance of a norm, whose rounding depends on the number of threads."""
