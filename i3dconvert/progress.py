"""How long work tells of itself."""

from collections.abc import Callable, Sequence
from typing import Protocol


class Progress(Protocol):
    """Told what is being done, and where it is known how much of it all is done, between 0 and 1."""

    def __call__(self, step: str, share: float | None = None, /) -> None: ...


def silent(step: str, share: float | None = None, /) -> None:
    """Tells nobody."""


def stages(progress: Progress, names: Sequence[str]) -> Callable[[str], None]:
    """Tells which of the stages has begun, `writing, 2 of 3`, and that those before it are done."""

    def begin(name: str) -> None:
        index = names.index(name)
        progress(f"{name}, {index + 1} of {len(names)}", index / len(names))

    return begin


def within(progress: Progress, index: int, count: int, name: str) -> Progress:
    """What tells of one of several pieces of work, as a part of them all."""

    def told(step: str, share: float | None = None, /) -> None:
        which = f"{name}, {index + 1} of {count}" if count > 1 else name
        progress(f"{which}: {step}", share if count == 1 else (index + (share or 0.0)) / count)

    return told
