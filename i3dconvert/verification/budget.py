"""Choose frames, size and clips of a verification to fit a budget of arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from i3dconvert.comparison.report import Report
from i3dconvert.errors import FramesError, I3DError
from i3dconvert.lift.arithmetic import flops
from i3dconvert.lift.lengths import checked, left
from i3dconvert.lift.memory import check_room
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.verification.settings import FRAMES, Settings

SHARES = (0.75, 0.5, 0.375, 0.25)
"""Shares of the backbone's height and width, tried when the fewest frames exceed the budget."""

SMALLEST = 64
"""The smallest height and width to try."""

STRIDE = 32
"""Most networks require a height and width that are multiples of it."""

GFLOP = 1e9


def legal_lengths(network: Network3d, usual: int) -> list[int]:
    """Return the clip lengths that the network accepts, from the usual one down to two or the recipe's minimum."""
    fewest, graph = max(min(2, usual), inflation_of(network).minimum_frames), graph_of(network)
    return [frames for frames in range(usual, fewest - 1, -1) if frames == usual or left(graph, frames)]


def within_budget(network: Network3d, settings: Settings, report: Report) -> Settings:
    """Return the settings with frames, size and clips filled in: as the user set them, or to fit `settings.gflop`.

    The arithmetic of the network alone decides, so that the choice is the same on every machine; `report.notes` says
    it where it is less than usual. Raises `FramesError` for frames that the recipe does not take, or whose attention
    does not fit into memory.
    """
    least = inflation_of(network).minimum_frames
    usual = settings.frames or max(FRAMES, least)
    try:
        checked(graph_of(network), usual)
    except FramesError as error:
        raise FramesError(f"{error}; --frames {least}" if usual < least else str(error)) from None
    settings = replace(settings, frames=usual) if settings.frames else _fitting(network, usual, settings, report)
    widest = max(settings.dtypes, key=lambda dtype: dtype.itemsize)
    check_room(network, settings.frames or usual, settings.clips, settings.size, widest, settings.device)
    return settings


def _fitting(network: Network3d, usual: int, settings: Settings, report: Report) -> Settings:
    """Reduce the frames first, then height and width, then the clips."""
    channels, *whole = inflation_of(network).input
    height, width = (settings.size,) * 2 if settings.size else whole
    images = settings.clips + len(settings.images)

    def cost(frames: int, *size: int) -> float:
        return flops(network, (1, channels, frames, *size)) / GFLOP * images

    try:
        full = cost(usual, height, width)
    except (RuntimeError, I3DError):  # what runs only with values: the proof itself says what is wrong, if anything is
        full = 0.0
    if full <= settings.gflop:
        return replace(settings, frames=usual)
    lengths = legal_lengths(network, usual)
    frames = next((count for count in lengths if full * count / usual <= settings.gflop), lengths[-1])
    chosen, taken = settings.size, cost(frames, height, width)
    for size in _smaller(network, width) if settings.size is None else ():
        if taken > settings.gflop:
            with suppress(RuntimeError, I3DError):  # a size that the network does not take
                chosen, taken = size, cost(frames, size, size)
    clips = settings.clips if taken <= 2 * settings.gflop else 1
    shape = f" of {chosen}×{chosen}" if chosen != settings.size else ""
    report.notes.append(
        f"{frames} frames{shape}{'' if clips == settings.clips else ', one clip'}: reduced to fit the budget of "
        f"{settings.gflop:.0f} GFLOP; --frames {usual}{f' --size {width}' if shape else ''} takes {full:.0f}"
    )
    return replace(settings, frames=frames, size=chosen, clips=clips)


def _smaller(network: Network3d, width: int) -> Iterator[int]:
    """Return smaller sizes, multiples of the stride, if the network accepts any; none below those tried."""
    inflation = inflation_of(network)
    least = max((SMALLEST, *(low for low, _ in inflation.tried or ())))
    sizes = (int(width * share) // STRIDE * STRIDE for share in SHARES)
    return (size for size in sizes if inflation.any_size and size >= least)
