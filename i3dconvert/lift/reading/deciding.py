"""Functions in a graph that check decisions on sizes, or depend on the mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading.numbers import COMPARISONS


def by_mode(training: bool, in_training: Any, in_evaluation: Any) -> Any:
    """Return the value for a module's mode."""
    return in_training if training else in_evaluation


def decided(result: Any, operation: str, operands: tuple[Any, ...], line: str) -> None:
    """Raise `LiftError` if a decision on sizes, or on finite values, differs from that of the recorded runs.

    Exported files have no checks of values.
    """
    if operation == "item":
        if not torch.compiler.is_exporting() and operands[0].item() != result:
            raise LiftError(
                f"{line}: the network's code depends on whether values are finite here, and was read for finite ones"
            )
        return
    operands = tuple(one.item() if isinstance(one, Tensor) else one for one in operands)  # of torch.jit.trace
    if COMPARISONS[operation](*operands) != result:
        left, right = operands if len(operands) > 1 else (*operands, 0)
        raise LiftError(
            f"{line}: the network's code depends on {left} {_SIGNS[operation]} {right} here, which had another "
            "result at the size of the inflation; inflate it at this size (size=)"
        )


_NOW: dict[str, Callable[[torch.device], Any]] = {
    "the device": lambda device: device.type,
    "autocast": lambda device: torch.is_autocast_enabled(device.type),
    "inference mode": lambda device: torch.is_inference_mode_enabled(),
}
_INSTEAD = {
    "the device": "the 2D network was on {} when it was inflated: move it to {} before",
    "autocast": "the network can be called only outside of autocast",
    "inference mode": "the network can be called only outside of torch.inference_mode(); use torch.no_grad()",
}


def unchanged(device: torch.device, what: str, answer: Any, line: str) -> None:
    """Raise `LiftError` if the surroundings differ from those of the recorded runs."""
    if (now := _NOW[what](device)) != answer:
        raise LiftError(f"{line}: the network's code depends on {what}; {_INSTEAD[what].format(answer, now)}")


_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "bool": "!="}
