"""How long work tells of itself."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol


class Progress(Protocol):
    """Told what is being done, and where it is known how much of it all is done, between 0 and 1."""

    def __call__(self, step: str, share: float | None = None, /) -> None: ...


def silent(step: str, share: float | None = None, /) -> None:
    """Tells nobody."""


class Timed:
    """Passes on what it is told, and keeps how long each step took."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._seconds = progress, dict[str, float]()
        self._step, self._began = "", time.perf_counter()

    def __call__(self, step: str, share: float | None = None, /) -> None:
        """The step that is now begun, or goes on."""
        if step != self._step:
            self._end()
            self._step = step
        self._progress(step, share)

    def seconds(self) -> dict[str, float]:
        """By step, in the order in which they began; the last one ends here."""
        self._end()
        return dict(self._seconds)

    def _end(self) -> None:
        now = time.perf_counter()
        if self._step:
            self._seconds[self._step] = self._seconds.get(self._step, 0.0) + now - self._began
        self._began = now


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
