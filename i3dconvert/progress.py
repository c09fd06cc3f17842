"""Report the progress of work."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol


class Progress(Protocol):
    """Receives the current step, and the share of the work that is done, from 0 to 1, if known."""

    def __call__(self, step: str, share: float | None = None, /) -> None: ...


def silent(step: str, share: float | None = None, /) -> None:
    """Report nothing."""


class Timed:
    """Forwards progress and records how long each step took."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._seconds = progress, dict[str, float]()
        self._step, self._began = "", time.perf_counter()

    def __call__(self, step: str, share: float | None = None, /) -> None:
        """Begin or continue a step."""
        if step != self._step:
            self._end()
            self._step = step
        self._progress(step, share)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each step, in the order in which they began; the last one ends here."""
        self._end()
        return dict(self._seconds)

    def _end(self) -> None:
        now = time.perf_counter()
        if self._step:
            self._seconds[self._step] = self._seconds.get(self._step, 0.0) + now - self._began
        self._began = now


def stages(progress: Progress, names: Sequence[str]) -> Callable[[str], None]:
    """Return a function that reports which stage began, such as `writing, 2 of 3`."""

    def begin(name: str) -> None:
        index = names.index(name)
        progress(f"{name}, {index + 1} of {len(names)}", index / len(names))

    return begin


def within(progress: Progress, index: int, count: int, name: str) -> Progress:
    """Return a function that reports one of several pieces of work as a part of them all."""

    def told(step: str, share: float | None = None, /) -> None:
        which = f"{name}, {index + 1} of {count}" if count > 1 else name
        progress(f"{which}: {step}", share if count == 1 else (index + (share or 0.0)) / count)

    return told
