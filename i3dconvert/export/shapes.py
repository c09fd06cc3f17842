"""The free axes of an exported graph, and the shapes at which it is checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from i3dconvert.errors import ExportError
from i3dconvert.export.checking import Shape
from i3dconvert.export.frames import FRAMES as FRAMES_OF_FORM
from i3dconvert.export.framewise import MinimalConv, StackedConv
from i3dconvert.export.runtime import AXES, CLIP
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.lengths import left, lengths
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.recipes import Attending

LONGEST = 256
"""The most frames in clips for tracing and checking."""


def attempts(static: bool, sizes_too: bool) -> list[frozenset[str]]:
    """Return the sets of free axes, in the order in which they are tried."""
    over_time = [frozenset(axes) for axes in (("batch", "frames"), ("batch",), ())]
    sizes = [over_time[0] | {"height", "width"}] if sizes_too else []
    return over_time[-1:] if static else [*sizes, *over_time]


def fixed_as_in(model: Any, shape: Shape, traced: Shape) -> Shape:
    """Return `shape` with the traced sizes on the axes that the graph has fixed."""
    (given,) = model.graph.inputs
    fixed = {axis for axis, size in zip(AXES[given.name], given.shape, strict=True) if isinstance(size, int)}
    return tuple(t if axis in fixed else s for axis, s, t in zip(AXES[CLIP], shape, traced, strict=True))


def fixed_axes(name: str, shape: tuple[int | str, ...]) -> str:
    sizes = dict(zip(AXES[name], shape, strict=True))
    fixed = [f"{axis} {size}" for axis, size in sizes.items() if isinstance(size, int) and axis != "channels"]
    return f"the graph is only for {', '.join(fixed)}"


def example_shapes(network: Network3d, form: nn.Module, free: frozenset[str]) -> tuple[Shape, list[Shape]]:
    """Return the shapes of the clip to trace on with `free` axes, and of those to check on: other sizes, some odd.

    In tracing, no axis is ever 1, nor is the number of tiles of a minimal filtering or of groups of attention: the
    exporter would take a 1 for a constant.
    """
    channels, height, width = inflation_of(network).input
    graph, over_time = graph_of(network), "frames" in free
    all_legal = [n for n in range(1, LONGEST + 1) if left(graph, n) >= 1]
    legal = [n for n in all_legal if not over_time or _in_groups(graph, n)]
    if not legal or (legal[-1] == 1 and over_time):
        raise ExportError(f"no clip of 2 to {LONGEST} frames has several groups of frames in every attention: --static")
    tile = max((module.m for module in form.modules() if isinstance(module, MinimalConv)), default=1)
    halved = any(isinstance(module, StackedConv) and module.halved for module in form.modules())
    fewest = FRAMES_OF_FORM if halved else 2  # each half has two frames or more
    long = (n for least in (tile, 1) for n in legal if n >= fewest and left(graph, n) > least)
    traced = next(long, legal[-1]) if over_time else next((n for n in legal if n >= FRAMES_OF_FORM), legal[-1])
    others = [n for n in legal if n not in (1, traced)] or [traced]
    lengths_of_others = (others[0], all_legal[0], others[min(1, len(others) - 1)])
    return (2 if "batch" in free else 1, channels, traced, height, width), [
        (clips, channels, frames, height + taller, width + wider)
        for (clips, taller, wider), frames in zip(_OTHERS, lengths_of_others, strict=True)
    ]


_OTHERS = ((3, 32, 32), (1, 1, 15), (2, 18, 6))
"""Clips, and pixels added to height and width, to check on: sizes with other remainders than the traced ones."""


def _in_groups(graph: torch.fx.Graph, frames: int) -> bool:
    """Return whether each attention has more frames than a group: one group's length would become a constant."""
    count = lengths(graph, frames)
    return all(
        count[node] > temporal.group
        for node in count
        if isinstance(temporal := facts_of(node).get("temporal"), Attending) and not temporal.pairs
    )
