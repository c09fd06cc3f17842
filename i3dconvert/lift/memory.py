"""Whether there is room for the scores of attention over many frames, before they are asked for.

Where more is asked of a CPU than there is, Linux does not refuse: it ends the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from i3dconvert.errors import FramesError
from i3dconvert.lift.lengths import lengths
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.recipes import Attending

COPIES = 3
"""Copies of the scores in memory at once: products, with biases and masks, after the softmax."""


def available(device: str = "cpu") -> int:
    """Bytes that are free, of the machine or of the GPU; no bound where the system doesn't say."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    with suppress(OSError, StopIteration):
        return told_by_linux("/proc/meminfo", "MemAvailable")
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sys.maxsize


def told_by_linux(file: str, field: str) -> int:
    """The bytes that a field of a file of Linux's has; raises `OSError`, `StopIteration` elsewhere."""
    lines = Path(file).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def check_room(
    network: Network3d,
    frames: int,
    clips: int,
    size: int | None,
    dtype: torch.dtype,
    device: str = "cpu",
    room: int | None = None,
) -> None:
    """Raise `FramesError` where the scores of an attention over clips of so many `frames` take more than there is.

    `size` is the height and width in pixels, by default those that the network was traced at; `room` is in bytes, by
    default what is free.
    """
    room = available(device) if room is None else room
    for layer, count in _scores(network, frames):
        scale = (size / inflation_of(network).input[-1]) ** 4 if size else 1
        wanted = COPIES * clips * count * scale * dtype.itemsize
        if wanted > room:
            raise FramesError(
                f"{layer} over clips of {frames} frames takes about {wanted / 2**30:.0f} GiB for its scores, and "
                f"{room / 2**30:.0f} GiB are free; fewer --frames, or groups of them: --temporal '{layer}=span:8'"
            )


def has_room(network: Network3d, frames: int, *rest: Any) -> bool:
    """Whether `check_room` raises nothing."""
    with suppress(FramesError):
        check_room(network, frames, *rest)
        return True
    return False


def _scores(network: Network3d, frames: int) -> Iterator[tuple[str, int]]:
    """The scores of one clip that each attention over time holds, where it holds them all at once."""
    length = lengths(graph_of(network), frames)
    for node, count in length.items():
        temporal = node.meta.get("temporal")
        if isinstance(temporal, Attending) and node.meta.get("scores"):
            group = min(temporal.group, count) if temporal.group else count
            yield node.meta["layer"], count * group * node.meta["scores"]
