"""Which of a network's tensors moved since they were inflated."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NO_LONGER = "equality with the 2D network no longer applies"


@dataclass(frozen=True)
class Trained:
    """What training did to a network's tensors."""

    kernels: int
    """How many there are: weights of two axes or more."""
    moved: tuple[str, ...]
    """The keys of those that are not what they were inflated to."""
    others: tuple[str, ...] = ()
    """The keys of other tensors that moved, such as biases and the statistics of norms."""

    @classmethod
    def of(cls, state: Mapping[str, Tensor], moved: Collection[str]) -> Trained | None:
        """What moved of a state dict; None where nothing did."""
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
        """Plain data; `from_dict` is its inverse."""
        return {"kernels": self.kernels, "moved": list(self.moved), "others": list(self.others)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Trained:
        """Read what `to_dict` wrote."""
        moved, others = (tuple(map(str, document[key])) for key in ("moved", "others"))
        return cls(int(document["kernels"]), moved, others)


def sentence(trained: Trained | None) -> str:
    """What is said of a network whose weights are no longer the 2D network's."""
    return f"trained: {trained or 'its weights were fine-tuned'}; {NO_LONGER}"
