"""Functions in a graph that check decisions on sizes, or depend on the mode."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading.numbers import COMPARISONS


def by_mode(training: bool, in_training: Any, in_evaluation: Any) -> Any:
    """Return the value for a module's mode."""
    return in_training if training else in_evaluation


def decided(result: bool, operation: str, operands: tuple[Any, ...], line: str) -> None:
    """Raise `LiftError` if a decision on sizes differs from that of the recorded runs."""
    operands = tuple(one.item() if isinstance(one, Tensor) else one for one in operands)  # of torch.jit.trace
    if COMPARISONS[operation](*operands) != result:
        left, right = operands if len(operands) > 1 else (*operands, 0)
        raise LiftError(
            f"{line}: the network's code depends on {left} {_SIGNS[operation]} {right} here, which had another "
            "result at the size of the inflation; inflate it at this size (size=)"
        )


_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "bool": "!="}
