"""How much to verify on, so that it ends in bounded time, and how much of it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from i3dconvert.errors import FramesError
from i3dconvert.lift.lengths import lengths
from i3dconvert.lift.network import Network3d

COSTS = {torch.float64: 1.0, torch.float32: 0.4}
"""Of one pass, in units of one in float64."""

SHARES = (0.75, 0.5, 0.375, 0.25)
"""Of the backbone's size, tried when the fewest frames take too long."""


class Progress(Protocol):
    """Told what is being done, and where it is known how much of it all is done, between 0 and 1."""

    def __call__(self, step: str, share: float | None = None, /) -> None: ...


def silent(step: str, share: float | None = None, /) -> None:
    """Tells nobody."""


def cost(dtypes: Sequence[torch.dtype], images: int) -> float:
    """Of the forward passes on so many images, in units of one image in float64."""
    return images * sum(COSTS.get(dtype, 1.0) for dtype in dtypes)


def legal_lengths(network: Network3d, usual: int) -> list[int]:
    """Clip lengths that the network takes, from the usual one down to two frames, or as few as its recipe allows."""
    fewest = max(min(2, usual), network.inflation.minimum_frames)
    return [frames for frames in range(usual, fewest - 1, -1) if frames == usual or _legal(network, frames)]


def _legal(network: Network3d, frames: int) -> bool:
    try:
        lengths(network.graph, frames)
    except FramesError:
        return False
    return True


def within(
    seconds: float, frames: Sequence[int], sizes: Iterable[int], estimate: Callable[[int, int], float]
) -> tuple[int, int]:
    """The most of `frames` (a falling row) at the first of `sizes` for which `estimate` is no more than `seconds`.

    Sizes are tried in order once the fewest frames take too long; the last one is taken if nothing fits.
    """
    tried = frames
    for size in sizes:
        for count in tried:
            if estimate(count, size) <= seconds:
                return count, size
        tried = frames[-1:]
    return frames[-1], size


def timed(run: Callable[[], Any]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def spoken(seconds: float) -> str:
    """A time for people: `40 s`, `3 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class Meter:
    """Counts the layers that have run, and tells `progress` which share of `total` that is."""

    def __init__(self, progress: Progress, network: nn.Module, total: float) -> None:
        self._progress, self._total, self._done = progress, total, 0.0
        self._layers = [module for module in network.modules() if not list(module.children())]

    @contextmanager
    def during(self, step: str, cost: float, passes: int) -> Iterator[None]:
        """A step that costs so much of the total, in so many passes through the network."""
        ran, calls = 0, max(passes * len(self._layers), 1)

        def count(*_: Any) -> None:
            nonlocal ran
            ran += 1
            self._progress(step, (self._done + cost * min(ran / calls, 1.0)) / self._total)

        self._progress(step, self._done / self._total)
        hooks = [layer.register_forward_hook(count) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._done += cost
