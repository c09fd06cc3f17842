"""Count the frames at each node of a lifted graph, and explain why a number does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from torch import fx

from i3dconvert.errors import FramesError, RecipeError
from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.recipes import Attending, Recipe, Temporal

HORIZON = range(64, 257)
"""Clip lengths of which a recipe must accept at least one: a broken join fails at all of them."""


class JoinError(FramesError):
    """The inputs of an operation have different numbers of frames, `least` or more.

    `layer` changes the number in one branch only.
    """

    def __init__(self, message: str, layer: fx.Node | None, least: int) -> None:
        super().__init__(message)
        self.layer, self.least = layer, least


def lengths(graph: fx.Graph, frames: int, kept: Collection[fx.Node] = ()) -> dict[fx.Node, int]:
    """Return the frames at each node for a clip of `frames` frames; layers in `kept` keep their number. Raises
    `FramesError`, naming the node, if the frames run out or differ."""
    count: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            count[node] = frames
            continue
        if layout.is_size(node) or node.op == "output" or facts_of(node).get("plain"):
            continue
        like = layout.length_source(node)
        inputs = {count[n]: n for n in ([like] if "like" in facts_of(node) else node.all_input_nodes) if n in count}
        if not inputs:
            continue
        if len(inputs) > 1:
            sizes = ", ".join(f"{size} after {_branch(n)}" for size, n in inputs.items())
            one, other, *_ = inputs.values()
            message = f"the inputs of {_shown(node)} have different numbers of frames: {sizes}"
            raise JoinError(message, _changing(one, other, count), min(inputs))
        (size,) = inputs
        temporal: Temporal | None = facts_of(node).get("temporal")
        if isinstance(temporal, Attending) and not temporal.fits(size):
            raise FramesError(
                f"{facts_of(node)['layer']} attends to groups of {temporal.group} frames; {size} is not a "
                "multiple of that"
            )
        if node in kept:
            count[node] = size
        else:
            count[node] = count[like] if like is not None else temporal.length(size) if temporal else size
        if count[node] < 1:
            raise FramesError(f"a clip of {frames} frames is too short: {_shown(node)} has {size} left")
    return count


def _shown(node: fx.Node) -> str:
    """Return a node in the terms of the 2D network: a layer's name, or an operation and the module that has it."""
    if node.op == "call_module":
        return repr(node.target)
    operation = str(getattr(node.target, "__name__", node.target)).strip("_")
    return f"{operation!r} in {facts_of(node).get('within') or 'the network itself'}"


def _branch(node: fx.Node) -> str:
    """Return the last layer of a branch that ends at `node`, if it has one."""
    above = above_of(node)
    layers = [n for n in node.graph.nodes if n in above and (n.op == "call_module" or facts_of(n).get("layer"))]
    return str(facts_of(layers[-1]).get("layer") or layers[-1].target) if layers else "the clip"


def _changing(one: fx.Node, other: fx.Node, count: dict[fx.Node, int]) -> fx.Node | None:
    """Return the layer that changes the number of frames on only one of two branches.

    Of several, the last one is returned, preferably one with a stride.
    """
    changing = [
        node
        for node in above_of(one) ^ above_of(other)
        if facts_of(node).get("layer") and count[node] != count[node.all_input_nodes[0]]
    ]
    order = {node: index for index, node in enumerate(one.graph.nodes)}
    return max(changing, key=lambda node: (facts_of(node)["temporal"].stride > 1, order[node]), default=None)


def _in_step(graph: fx.Graph, frames: int) -> str:
    """Return the layers that make branches differ, and the rules that keep them equal, as text."""
    kept: dict[fx.Node, str] = {}
    while len(kept) < _MOST:
        try:
            lengths(graph, frames, kept)
            break
        except JoinError as error:
            if error.layer is None or error.layer in kept:
                return ""
            kept[error.layer] = facts_of(error.layer)["layer"]
        except FramesError:
            return ""
    kernels = {name: _kernel(facts_of(node)["temporal"]) for node, name in kept.items()}
    others = {str(name) for node in graph.nodes if (name := facts_of(node).get("layer")) not in kernels}
    globs = _globs(kernels, others)
    rules = " ".join(f"-t '{glob}={kernel}/1'" for glob, kernel in globs.items())
    return f"; changed on one side only by {', '.join(globs)}; to keep both equal: {rules}" if kept else ""


_MOST = 64
"""The most layers that a message is about."""


def _globs(kernels: Mapping[str, int], others: set[str]) -> dict[str, int]:
    """Return kernels by glob: one for all layers that differ only in numbers, if it matches no others."""
    alike: dict[tuple[str, int], list[str]] = {}
    for name, kernel in kernels.items():
        glob = ".".join("*" if part.isdigit() else part for part in name.split("."))
        alike.setdefault((glob, kernel), []).append(name)
    found: dict[str, int] = {}
    for (_, kernel), names in alike.items():
        places = zip(*(name.split(".") for name in names), strict=True)
        glob = ".".join(parts[0] if len({*parts}) == 1 else "*" for parts in places)
        matched = {name for name in (*kernels, *others) if fnmatchcase(name, glob)}
        found |= {glob: kernel} if matched == {*names} else dict.fromkeys(names, kernel)
    return found


def _kernel(temporal: Temporal) -> int:
    return temporal.kernel if temporal.kernel != temporal.stride and not temporal.transposed else 1


def above_of(node: fx.Node) -> set[fx.Node]:
    """Return the node and everything that it depends on."""
    return set(nearest_above(node))


def nearest_above(node: fx.Node) -> list[fx.Node]:
    """Return the node and everything that it depends on, the nearest first."""
    found, known = [node], {node}
    for one in found:
        new = [n for n in one.all_input_nodes if n not in known]
        found += new
        known.update(new)
    return found


def checked(graph: fx.Graph, frames: int) -> dict[fx.Node, int]:
    """Return `lengths`, or raise an error that names nearby numbers of frames that fit."""
    try:
        return lengths(graph, frames)
    except FramesError as error:
        below, above = range(frames - 1, max(frames - _NEARBY, 0), -1), range(frames + 1, frames + _NEARBY)
        nearest = (next((str(n) for n in side if left(graph, n)), "") for side in (below, above))
        fitting = " or ".join(filter(None, nearest))
        if not fitting:
            raise
        raise FramesError(f"a clip of {frames} frames does not fit, one of {fitting} does: {error}") from None


_NEARBY = 33


def left(graph: fx.Graph, frames: int) -> int:
    """Return the fewest frames at any node for a clip of `frames` frames; 0 if that length does not fit."""
    try:
        return min(lengths(graph, frames).values())
    except FramesError:
        return 0


def minimum_frames(graph: fx.Graph, recipe: Recipe) -> int:
    """Return the fewest frames that fit; raises `RecipeError`, which names the layer, if none do."""
    if not any(left(graph, frames) for frames in HORIZON):
        try:
            lengths(graph, HORIZON.stop - 1)  # the longest differs at the broken join instead of being too short
        except FramesError as error:
            remedy = _in_step(graph, HORIZON.stop - 1)
            raise RecipeError(f"recipe {recipe.name!r} does not fit: {error}{remedy}") from None
    return next(frames for frames in range(1, HORIZON.stop) if left(graph, frames))


def uneven(graph: fx.Graph, least: int) -> tuple[int, ...]:
    """Return the lengths of clips, from `least` on, at which a branch of one frame meets one of several.

    Torch would broadcast the frame. At other lengths at which branches differ, torch refuses to join them.
    """
    found = []
    for frames in range(least, HORIZON.start):
        try:
            if min(lengths(graph, frames).values()) > 1:
                break
        except JoinError as error:
            found += [frames] if error.least == 1 else []
        except FramesError:
            continue
    return tuple(found)
