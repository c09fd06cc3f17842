"""Check that memory suffices for the scores of attention over many frames before allocating it.

Linux does not refuse a CPU allocation that is too large: it ends the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from i3dconvert.errors import FramesError
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.lengths import lengths
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.recipes import Attending

COPIES = 3
"""Copies of the scores in memory at once: products, with biases and masks, after the softmax."""


def available(device: str = "cpu") -> int:
    """Return the free bytes of the machine or the GPU; no limit if the system does not say."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    with suppress(OSError, StopIteration):
        return told_by_linux("/proc/meminfo", "MemAvailable")
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sys.maxsize


def told_by_linux(file: str, field: str) -> int:
    """Return the bytes in a field of one of Linux's files; raises `OSError`, `StopIteration` elsewhere."""
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
    """Raise `FramesError` if an attention's scores over clips of `frames` frames need more memory than there is.

    `size` is the height and width in pixels, by default the traced ones; `room` is in bytes, by default the free
    memory.
    """
    room = available(device) if room is None else room
    for layer, count in _scores(network, frames):
        scale = (size / inflation_of(network).input[-1]) ** 4 if size else 1
        wanted = COPIES * clips * count * scale * dtype.itemsize
        if wanted > room:
            raise FramesError(
                f"{layer} over clips of {frames} frames needs about {wanted / 2**30:.0f} GiB for its scores, and "
                f"{room / 2**30:.0f} GiB are free; reduce --frames, or use --temporal '{layer}=span:8'"
            )


def _scores(network: Network3d, frames: int) -> Iterator[tuple[str, int]]:
    """Yield each attention over time that holds all scores at once, with their number for one clip."""
    length = lengths(graph_of(network), frames)
    for node, count in length.items():
        temporal = facts_of(node).get("temporal")
        if isinstance(temporal, Attending) and facts_of(node).get("scores"):
            group = min(temporal.group, count) if temporal.group else count
            yield facts_of(node)["layer"], count * group * facts_of(node)["scores"]
