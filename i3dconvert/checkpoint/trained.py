"""Which of a network's tensors moved since they were inflated."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NO_LONGER = "equality with the 2D network no longer applies"


@dataclass(frozen=True)
class Trained:
    """The tensors that training moved."""

    kernels: int
    """The number of kernels: weights with two axes or more."""
    moved: tuple[str, ...]
    """Keys of the kernels that no longer equal the inflated ones."""
    others: tuple[str, ...] = ()
    """Keys of other tensors that moved, such as biases and the statistics of norms."""

    @classmethod
    def of(cls, state: Mapping[str, Tensor], moved: Collection[str]) -> Trained | None:
        """Return what moved in a state dict; None if nothing did."""
        kernels = {key for key, tensor in state.items() if tensor.is_floating_point() and tensor.dim() > 1}
        keys = sorted(set(moved) & state.keys())
        own = tuple(key for key in keys if key in kernels), tuple(key for key in keys if key not in kernels)
        return cls(len(kernels), *own) if keys else None

    @property
    def keys(self) -> set[str]:
        """The keys of all tensors that moved."""
        return {*self.moved, *self.others}

    def __str__(self) -> str:
        beside = f", and {len(self.others)} other tensors" if self.others and not self.moved else ""
        return f"{len(self.moved)} of {self.kernels} kernels moved{beside}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is the inverse."""
        return {"kernels": self.kernels, "moved": list(self.moved), "others": list(self.others)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Trained:
        """Read the data written by `to_dict`."""
        moved, others = (tuple(map(str, document[key])) for key in ("moved", "others"))
        return cls(int(document["kernels"]), moved, others)


def sentence(trained: Trained | None) -> str:
    """Return the sentence for a network whose weights are no longer the 2D network's."""
    return f"trained: {trained or 'its weights were fine-tuned'}; {NO_LONGER}"
