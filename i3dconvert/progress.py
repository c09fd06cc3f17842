"""How long work tells of itself."""

from typing import Protocol


class Progress(Protocol):
    """Told what is being done, and where it is known how much of it all is done, between 0 and 1."""

    def __call__(self, step: str, share: float | None = None, /) -> None: ...


def silent(step: str, share: float | None = None, /) -> None:
    """Tells nobody."""
