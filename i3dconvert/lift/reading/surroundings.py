"""What a network's code may ask of its surroundings: gradients, autocast, inference mode, the device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch

from i3dconvert.lift.reading.records import line_of_the_network

Enter = Callable[[], AbstractContextManager[Any]]

_AUTOCAST = ("cpu", "cuda")
_QUESTIONS = (
    *(torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.is_autocast_enabled),
    *(torch.is_autocast_cpu_enabled, torch.get_autocast_dtype),
)
"""Functions of C that torch's function modes do not see."""


class Held(NamedTuple):
    """A question that must have the same answer in each call: it is about `what`, in the line `line`."""

    what: str
    answer: Any
    line: str


@contextmanager
def autocast(enabled: bool) -> Iterator[None]:
    """Turn autocast on or off on all devices; on the meta device, it has no effect besides what code asks."""
    before = [torch.is_autocast_enabled(device) for device in _AUTOCAST]
    for device in _AUTOCAST:
        torch.set_autocast_enabled(device, enabled)
    try:
        yield
    finally:
        for device, was in zip(_AUTOCAST, before, strict=True):
            torch.set_autocast_enabled(device, was)


@contextmanager
def neutral() -> Iterator[None]:
    """Enter the surroundings in which networks are read, whatever the caller's are."""
    with torch.inference_mode(False), torch.enable_grad(), autocast(False):
        yield


OTHERS: dict[str, Enter] = {
    "gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: autocast(True),
}
"""Surroundings that differ from the neutral ones."""


def other_device(device: torch.device) -> torch.device:
    """Return a device of another type."""
    return torch.device("cpu" if device.type == "cuda" else "cuda:0")


@contextmanager
def questions(note: Callable[[str], None]) -> Iterator[None]:
    """Pass the line of each question for the surroundings to `note`."""
    before = sys.getprofile()

    def see(frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function in _QUESTIONS:
            note(line_of_the_network())

    sys.setprofile(see)
    try:
        yield
    finally:
        sys.setprofile(before)
