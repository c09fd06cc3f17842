"""How much to verify on, so that it ends in bounded time, and how much of it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from i3dconvert.comparison.forward import evaluating, replicated
from i3dconvert.comparison.report import Report
from i3dconvert.errors import FramesError, VerificationError
from i3dconvert.lift.lengths import checked, left
from i3dconvert.lift.memory import check_room, has_room
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.progress import Progress
from i3dconvert.verification.running import run
from i3dconvert.verification.settings import CLIPS, FRAMES, Settings, noise

COSTS = {torch.float64: 1.0, torch.float32: 0.4}
"""Of one pass, in units of one in float64."""

SHARES = (0.75, 0.5, 0.375, 0.25)
"""Of the backbone's size, tried when the fewest frames take too long."""

SMALLEST = 64
"""Height and width below which nothing is made smaller to save time."""

STRIDE = 32
"""Of most networks, of which their images have to be multiples."""


def cost(dtypes: Sequence[torch.dtype], images: int) -> float:
    """Of the forward passes on so many images, in units of one image in float64."""
    return images * sum(COSTS.get(dtype, 1.0) for dtype in dtypes)


def legal_lengths(network: Network3d, usual: int) -> list[int]:
    """Clip lengths that the network takes, from the usual one down to two frames, or as few as its recipe allows."""
    fewest, graph = max(min(2, usual), inflation_of(network).minimum_frames), graph_of(network)
    return [frames for frames in range(usual, fewest - 1, -1) if frames == usual or left(graph, frames)]


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


def bounded(network: Network3d, settings: Settings, report: Report, progress: Progress) -> Settings:
    """The settings with their frames, and where those of a user's leave it open, no more than they have time for.

    How long a pass takes is measured on one clip of the fewest frames. Raises `FramesError`.
    """
    least = inflation_of(network).minimum_frames
    usual = settings.frames or max(FRAMES, least)
    try:
        checked(graph_of(network), usual)
    except FramesError as error:
        raise FramesError(f"{error}; --frames {least}" if usual < least else str(error)) from None
    widest = max(settings.dtypes, key=lambda dtype: dtype.itemsize)
    room = (settings.clips, settings.size, widest, settings.device)
    if settings.frames is not None:
        check_room(network, usual, *room)
        return settings
    frames, dtype = legal_lengths(network, usual), settings.dtypes[-1]
    check_room(network, frames[-1], *room)
    frames = [count for count in frames if has_room(network, count, *room)]
    if frames[0] != usual:
        report.notes.append(f"{frames[0]} frames: {usual} take more memory than is free")
        usual = frames[0]
    progress("how long it takes")
    whole = settings.size or inflation_of(network).input[-1]

    def run_once(size: int) -> None:
        one = replace(settings, size=size if size != whole else settings.size)
        clip = replicated(noise(inflation_of(network).input, one)[:1], frames[-1]).to(settings.device, dtype)
        with evaluating(network, dtype, device=settings.device):
            run("3D", network, clip)

    spent = timed(lambda: run_once(whole))
    one = spent / frames[-1] / COSTS.get(dtype, 1.0)

    def estimate(count: int, size: int) -> float:
        noise_and_pictures = cost(settings.dtypes, CLIPS) * (size / whole) ** 2, cost(settings.dtypes, pictures)
        return one * (count + 1) * sum(noise_and_pictures)

    pictures = len(settings.images)

    def sizes() -> Iterator[int]:
        """The whole one, and smaller ones that the network takes, of whole strides."""
        yield whole
        for size in (int(whole * share) // STRIDE * STRIDE for share in SHARES):
            if inflation_of(network).any_size and settings.size is None and size >= SMALLEST:
                with suppress(VerificationError):
                    run_once(size)
                    yield size

    count, size = within(settings.seconds - spent, frames, sizes(), estimate)
    if (count, size) != (usual, whole):
        report.notes.append(
            f"{count} frames{f' of {size}×{size}' if size != whole else ''}: --frames {usual}"
            f"{f' --size {whole}' if size != whole else ''} would take about {spoken(estimate(usual, whole))}"
        )
    # Where even that takes twice the time, one clip has to do.
    clips = settings.clips if estimate(count, size) <= 2 * settings.seconds or settings.seconds <= 0 else 1
    if clips < settings.clips:
        report.notes.append("one clip at a time instead of two")
    return replace(settings, frames=count, size=settings.size if size == whole else size, clips=clips)


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
