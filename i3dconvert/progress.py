"""How long work tells of itself."""

import time
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
