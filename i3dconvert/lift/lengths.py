"""How many frames there are at each node of a lifted graph, and what to say where they do not fit."""

from __future__ import annotations

import re

from torch import fx

from i3dconvert.errors import FramesError, RecipeError
from i3dconvert.lift import layout
from i3dconvert.recipes import Attending, Recipe, Temporal

HORIZON = range(64, 257)
"""Clip lengths among which at least one must get through a recipe: a broken join fails at them all."""


def lengths(graph: fx.Graph, frames: int) -> dict[fx.Node, int]:
    """Frames at each node for a clip of `frames`; raises `FramesError` naming the node where they run out or differ."""
    count: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            count[node] = frames
            continue
        if layout.is_size(node) or node.op == "output" or node.meta.get("plain"):
            continue
        like = layout.length_source(node)
        inputs = {count[n]: n for n in ([like] if "like" in node.meta else node.all_input_nodes) if n in count}
        if not inputs:
            continue
        if len(inputs) > 1:
            sizes = ", ".join(f"{size} from {n.name!r}" for size, n in inputs.items())
            one, other, *_ = inputs.values()
            remedy = _remedy(one, other, count)
            raise FramesError(f"the inputs of {_shown(node)} have different numbers of frames: {sizes}{remedy}")
        (size,) = inputs
        temporal: Temporal | None = node.meta.get("temporal")
        if isinstance(temporal, Attending) and not temporal.fits(size):
            raise FramesError(
                f"{node.meta['layer']} attends to groups of {temporal.group} frames, of which {size} are no multiple"
            )
        count[node] = count[like] if like is not None else temporal.length(size) if temporal else size
        if count[node] < 1:
            raise FramesError(f"a clip of {frames} frames is too short: {_shown(node)} has {size} left")
    return count


def _shown(node: fx.Node) -> str:
    return repr(node.target if node.op == "call_module" else node.name)


def _remedy(one: fx.Node, other: fx.Node, count: dict[fx.Node, int]) -> str:
    """The layer that changes the number of frames on one of two branches alone, and the rule that ends that.

    Of several the last, and first of all one with a stride.
    """
    changing = [
        node
        for node in above_of(one) ^ above_of(other)
        if node.meta.get("layer") and count[node] != count[node.all_input_nodes[0]]
    ]
    if not changing:
        return ""
    order = {node: index for index, node in enumerate(one.graph.nodes)}
    last = max(changing, key=lambda node: (node.meta["temporal"].stride > 1, order[node]))
    temporal: Temporal = last.meta["temporal"]
    kernel = temporal.kernel if temporal.kernel != temporal.stride and not temporal.transposed else 1
    glob = re.sub(r"(?<=\.)\d+(?=\.)", "*", last.meta["layer"])
    return f"; {last.meta['layer']} changes it on one side alone, --temporal '{glob}={kernel}/1' keeps them in step"


def above_of(node: fx.Node) -> set[fx.Node]:
    """The node and all that it follows from."""
    found, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def checked(graph: fx.Graph, frames: int) -> dict[fx.Node, int]:
    """`lengths`, whose error says the numbers of frames nearby that go through."""
    try:
        return lengths(graph, frames)
    except FramesError as error:
        nearby = (*range(frames - 1, max(frames - _NEARBY, 0), -1), *range(frames + 1, frames + _NEARBY))
        below = next((n for n in nearby if n < frames and left(graph, n)), None)
        above = next((n for n in nearby if n > frames and left(graph, n)), None)
        fitting = " or ".join(str(n) for n in (below, above) if n is not None)
        if not fitting:
            raise
        raise FramesError(f"a clip of {fitting} frames goes through, one of {frames} does not: {error}") from None


_NEARBY = 33


def left(graph: fx.Graph, frames: int) -> int:
    """The fewest frames that there are at any node for a clip of `frames`; 0 where so many do not go through."""
    try:
        return min(lengths(graph, frames).values())
    except FramesError:
        return 0


def minimum_frames(graph: fx.Graph, recipe: Recipe) -> int:
    """The fewest frames that get through; raises `RecipeError` naming the layer when none do."""
    if not any(left(graph, frames) for frames in HORIZON):
        try:
            lengths(graph, HORIZON.stop - 1)  # the longest is out of step where it has to be, not for being too short
        except FramesError as error:
            raise RecipeError(f"recipe {recipe.name!r} does not fit: {error}") from None
    return next(frames for frames in range(1, HORIZON.stop) if left(graph, frames))
