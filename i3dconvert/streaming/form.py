"""Convert a lifted network to its stream: the form on frames, in which layers keep what they need of earlier steps.

Everything runs on the frames of a step, `(N·P, …)`, as `i3dconvert.export.frames` does on those of a clip. Layers that
look along time keep frames. Values that meet (residual branches, concatenations) are delayed to the latest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import lcm
from typing import Any

from torch import fx, nn

from i3dconvert.errors import StreamError
from i3dconvert.export.frames import OverFrames
from i3dconvert.export.framewise import used_taps
from i3dconvert.export.images import folded, pool_of_images
from i3dconvert.lift import layout
from i3dconvert.lift.attention.groups import Groups
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.modules import BlurPool3d, PaddedPool3d
from i3dconvert.lift.network import Network3d
from i3dconvert.lift.tree.calling import named
from i3dconvert.lift.tree.straight import Straight
from i3dconvert.recipes import Attending, Temporal
from i3dconvert.streaming.layers import (
    BlurOfImages,
    ConvOverTime,
    Delay,
    Given,
    OfEachImage,
    PoolOverTime,
    RunningMean,
    WindowMean,
    tick,
)
from i3dconvert.streaming.pace import Leaf, Pace, Window, window
from i3dconvert.streaming.refusals import MORE, ODD, UNEQUAL, check, refuse, refuse_module

CLOCK = "clock"


class Flow(Straight):
    """The graph of a step, from frames `(N, C, S, H, W)` and the state to the output and the next state."""

    def forward(self, *given: Any) -> Any:
        """Map `(frames, clock, *kept)` to `(output, (clock, *kept))`."""
        assert self._i3d_code is not None
        return self._i3d_code.run(self, given, {})


@dataclass(frozen=True)
class Flowing:
    """A network's stream as a graph."""

    flow: Flow
    frames: int
    delay: int
    leaves: tuple[Leaf | None, ...]
    """The output's tensors in order; None for those that do not vary with the clip."""
    names: tuple[str, ...]
    """The names of the tensors that are kept, the clock first."""


class Streaming(OverFrames):
    """One pass over the lifted graph, like `OverFrames`, with the pace of each value.

    Class scores are means over the last `size` outputs, or over all.
    """

    def __init__(self, network: Network3d, size: int | None) -> None:
        super().__init__(network, minimal=False)
        self.size = size
        self.step = frames_of_a_step(self.source)
        self.paces: dict[fx.Node, Pace] = {}
        self.numbers: set[fx.Node] = set()
        """Nodes that follow from sizes only."""
        self.later: dict[fx.Node, dict[int, fx.Node]] = {}
        """For each value, the nodes that hold it with a delay, by that delay in frames."""
        self.kept: dict[str, fx.Node] = {}
        """For each layer, what it keeps after the step."""
        self.leaves: list[Leaf | None] = []
        self.delay = 0
        self.clock: fx.Node

    def flowing(self) -> Flowing:
        """Return the stream; raises `StreamError` for layers that look along all of time."""
        flow = self.run()
        return Flowing(flow, self.step, self.delay, tuple(self.leaves), (CLOCK, *self.kept))  # type: ignore[arg-type]

    def module(self, parts: Mapping[str, Any]) -> Straight:
        """Return a module of the graph and its parts."""
        return named(Flow, "Stream")(self.graph, parts)

    def visit(self, node: fx.Node) -> fx.Node:
        """Return the node's value; raises `StreamError` for a node that looks along all of time."""
        if node.op == "output":
            return self.end(node)
        varying = [n for n in node.all_input_nodes if n in self.paces]
        if not varying or facts_of(node).get("plain"):
            return super().visit(node)
        module = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
        check(node, module, any(n in self.on_clips for n in varying))
        if layout.is_size(node) or node.target is getattr or all(n in self.numbers for n in varying):
            self.numbers.add(node)
        values = [n for n in varying if n not in self.numbers] or varying
        pace, late = self.paces[values[0]], max(self.paces[n].late for n in values)
        if len({(self.paces[n].frames, self.paces[n].beyond) for n in values}) > 1:
            refuse(node, UNEQUAL)
        temporal, group = facts_of(node).get("temporal"), group_of(node)
        if isinstance(temporal, Attending) and pace.beyond % temporal.group:
            refuse(node, ODD.format(group=temporal.group, beyond=pace.beyond))
        self.paces[node] = replace(pace, late=-(-late // group) * group)
        return super().visit(node)

    def start(self, node: fx.Node) -> fx.Node:
        """Return the frames of a step."""
        given = self.env[node.all_input_nodes[0]]
        self.clock = self.graph.placeholder(CLOCK)
        self.clips = self.graph.call_method("size", (given, 0))
        self.paces[node] = Pace(self.step)
        self.lengths[node] = self.step  # type: ignore[assignment]
        self.on_clips.add(node)
        return self.graph.call_function(layout.fold, (given,))

    def copy(self, node: fx.Node, value: Callable[[fx.Node], Any] | None = None) -> fx.Node:
        """Copy a node with other arguments, all as late as the latest."""
        if node not in self.paces:  # it reads only sizes
            return super().copy(node, value)
        return super().copy(node, value or partial(self.at, late=self.paces[node].late))

    def at(self, node: fx.Node, late: int) -> Any:
        """Return a value `late` frames late; values that do not vary with the clip are unchanged."""
        new = self.env[node]
        if node not in self.paces or node in self.numbers:
            return new
        known = self.later.setdefault(node, {self.paces[node].late: new})
        if late not in known:
            nearest = max(one for one in known if one < late)
            known[late] = self.keeping(
                f"{node.name}_late", Delay(self.paces[node], late - nearest), known[nearest], node
            )
        return known[late]

    def keeping(self, name: str, module: nn.Module, frames: fx.Node, node: fx.Node) -> fx.Node:
        """Call a layer that keeps a tensor from step to step, at a node of the network."""
        name = _unused(name.replace(".", "_"), self.modules)
        both = self.over_time(name, module, frames, self.graph.placeholder(f"kept_{name}"), node)
        value = self.graph.call_function(operator.getitem, (both, 0))
        self.kept[name] = self.graph.call_function(operator.getitem, (both, 1))
        return value

    def over_time(self, name: str, module: nn.Module, frames: fx.Node, kept: fx.Node | None, node: fx.Node) -> fx.Node:
        """Call a layer over time, which returns frames and what it keeps."""
        images = (self.images[node],) if node in self.images else ()
        self.modules[name] = OfEachImage(module) if images else module
        return self.graph.call_module(name, (frames, self.clips, kept, self.clock, *images))

    def end(self, node: fx.Node) -> fx.Node:
        """Return the output, all as late as its latest part, and the state."""
        ends: dict[fx.Node, tuple[fx.Node, Any]] = {}
        fx.node.map_arg(node.args[0], lambda one: self.find_ends(one, ends))
        self.delay = max((self.paces[value].steps for value, _ in ends.values() if value in self.paces), default=0)
        if self.size is not None and all(form is not layout.mean_over_time for _, form in ends.values()):
            raise StreamError("the network doesn't average its outputs over time, so they have no window; leave it out")
        output = fx.node.map_arg(node.args[0], lambda one: self.given(one, ends))
        clock = self.graph.call_function(tick, (self.clock,))
        result: fx.Node = self.graph.output((output, (clock, *self.kept.values())))
        return result

    def find_ends(self, node: fx.Node, ends: dict[fx.Node, tuple[fx.Node, Any]]) -> fx.Node:
        """Record the value of an output's part, and how it gets its time axis."""
        if node.target is layout.together:
            fx.node.map_arg(node.args, lambda one: self.find_ends(one, ends))
        elif node in self.on_clips or node not in self.paces:
            ends[node] = node, layout.unfold
        elif node.target in (layout.over_time, layout.mean_over_time):
            ends[node] = node.all_input_nodes[0], node.target
        else:
            refuse(node, "is part of the output in a form that a step can't have")
        return node

    def given(self, node: fx.Node, ends: dict[fx.Node, tuple[fx.Node, Any]]) -> Any:
        """Return a part of the output as a step computes it."""
        if node.target is layout.together:
            return tuple(self.given(one, ends) for one in node.all_input_nodes)
        value, form = ends[node]
        if value not in self.paces:
            self.leaves += [None] * (not _is_number(value))
            return self.env[value]
        pace = replace(self.paces[value], late=self.delay * self.paces[value].frames)
        frames = self.at(value, pace.late)
        if form is layout.mean_over_time:
            self.leaves.append(Leaf(pace, None))
            mean = RunningMean(pace) if self.size is None else WindowMean(pace, self.size)
            return self.keeping("mean", mean, frames, value)
        self.leaves.append(Leaf(pace, 2 if form is layout.unfold else 1))
        name = _unused(f"{node.name}_given", self.modules)
        self.modules[name] = Given(pace, swap=form is layout.unfold)
        return self.graph.call_module(name, (frames, self.clips, self.clock))

    def rewritten(self) -> None:
        """Keep only what the output needs."""
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)

    def unfolded(self, node: fx.Node) -> fx.Node:
        """Reject a layer on clips that has no form on frames."""
        refuse_module(node, self.network.get_submodule(str(node.target)))

    def unpadded(self, name: str, module: nn.Module, frames: fx.Node, node: fx.Node) -> fx.Node:
        """Run a layer on clips that leaves time alone: a padding of height and width."""
        if not isinstance(module, _PADDINGS) or tuple(module.padding)[4:] != (0, 0):
            refuse_module(node, module)
        self.modules[name] = module
        clip = self.graph.call_function(layout.unfold, (frames, self.clips_at(node)))
        return self.graph.call_function(layout.fold, (self.graph.call_module(name, (clip,)),))

    def convolved(
        self, name: str, module: Any, frames: fx.Node, node: fx.Node, temporal: Temporal, norm: nn.Module | None
    ) -> fx.Node:
        """Return a convolution, with the BatchNorm after it folded in."""
        if module.padding_mode != "zeros":
            refuse(node, f"pads time by {module.padding_mode!r}; use a PaddedConv3d or a convolution with zero padding")
        kernel, bias, replicate, geometry = folded(module, norm)
        taps = used_taps(kernel)
        seen = window(self.paces[node], temporal, taps, replicate)
        layer = ConvOverTime(kernel[:, :, list(taps)], bias, seen, replicate, geometry)
        return self.over(name, layer, frames, node)

    def transposed(
        self, name: str, module: nn.ConvTranspose3d, frames: fx.Node, node: fx.Node, temporal: Temporal
    ) -> fx.Node:
        """Return a transposed convolution that keeps the number of frames: one over time with its taps reversed."""
        if temporal.stride > 1:
            refuse(node, MORE)
        kernel, bias, _, geometry = folded(module, None)
        kernel, padding = kernel.flip(2), temporal.span - 1 - temporal.before
        taps = used_taps(kernel)
        seen = window(self.paces[node], Temporal(temporal.kernel, before=padding, after=padding), taps, False)
        layer = ConvOverTime(kernel[:, :, list(taps)], bias, seen, False, geometry)
        return self.over(name, layer, frames, node)

    def pooled(self, name: str, module: nn.Module, frames: fx.Node, node: fx.Node, temporal: Temporal) -> fx.Node:
        """Return a pooling, with the padding before it, or a transposed convolution."""
        if isinstance(module, nn.ConvTranspose3d):
            return self.transposed(name, module, frames, node, temporal)
        pool, space = (module.pool, module.space) if isinstance(module, PaddedPool3d) else (module, None)
        if not isinstance(pool, BlurPool3d | nn.MaxPool3d | nn.AvgPool3d):
            return self.unpadded(name, module, frames, node)
        replicate = isinstance(module, PaddedPool3d | BlurPool3d)
        seen = window(self.paces[node], temporal, tuple(range(temporal.kernel)), replicate)
        fill = None if replicate else float("-inf") if isinstance(pool, nn.MaxPool3d) else 0.0
        images = BlurOfImages(pool) if isinstance(pool, BlurPool3d) else pool_of_images(pool, temporal.kernel)
        counted = _counted(pool, temporal, replicate, seen)
        layer = PoolOverTime(images, seen, fill, space, _weights(pool, temporal.kernel), counted)
        return self.over(name, layer, frames, node)

    def over(self, name: str, layer: ConvOverTime | PoolOverTime, frames: fx.Node, node: fx.Node) -> fx.Node:
        """Call a layer over time, or its form for single frames if it sees no others."""
        seen = layer.window
        self.paces[node], self.lengths[node] = seen.out, seen.out.frames  # type: ignore[assignment]
        if seen.kept:
            return self.keeping(name, layer, frames, node)
        name = _unused(name, self.modules)
        if seen.trivial:
            self.modules[name] = layer.alone()
            return self.graph.call_module(name, (frames,))
        both = self.over_time(name, layer, frames, None, node)
        return self.graph.call_function(operator.getitem, (both, 0))


_PADDINGS = (nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d)


def frames_of_a_step(graph: fx.Graph) -> int:
    """Return the fewest frames from which every layer gets whole frames, and every grouped attention whole groups."""
    apart: dict[fx.Node, int] = {}
    sizes = [1]
    for node in graph.nodes:
        given = [apart[n] for n in node.all_input_nodes if n in apart]
        if layout.is_size(node) or facts_of(node).get("plain") or not (given or node.op == "placeholder"):
            continue
        temporal = facts_of(node).get("temporal", Temporal())
        stride = 1 if temporal.transposed else temporal.stride
        apart[node] = (given[0] if given else 1) * stride
        sizes.append(apart[node] * (getattr(temporal, "group", 1) or 1))
    return lcm(*sizes)


def group_of(node: fx.Node) -> int:
    """Return how many frames a node takes together, those of a group of an attention; 1 for other nodes."""
    return max((value.span for value in node.args if isinstance(value, Groups)), default=1) or 1


def _unused(name: str, names: Mapping[str, Any]) -> str:
    """Return the name, or another one for a layer that is called twice."""
    return next(one for one in (name, *(f"{name}_{i}" for i in range(2, len(names) + 3))) if one not in names)


def _is_number(node: fx.Node) -> bool:
    """Return whether a value is a size, or computed from sizes."""
    computed = getattr(node.target, "__module__", None) in ("_operator", "math") and bool(node.all_input_nodes)
    return layout.is_size(node) or (computed and all(map(_is_number, node.all_input_nodes)))


def _weights(pool: nn.Module, kernel: int) -> tuple[float, ...] | None:
    """Return the weights of the frames in a window; None for a maximum."""
    if isinstance(pool, BlurPool3d):
        return tuple(pool.taps.tolist())
    return None if isinstance(pool, nn.MaxPool3d) else (1 / kernel,) * kernel


def _counted(pool: nn.Module, temporal: Temporal, replicate: bool, seen: Window) -> tuple[int, int] | None:
    """Return how many frames of padding at either end count in a pooling, if windows are cut off; else None."""
    if isinstance(pool, BlurPool3d) or getattr(pool, "divisor_override", None) is not None:
        return None
    padding = (temporal.before, temporal.after)
    if isinstance(pool, nn.AvgPool3d) and not replicate and not pool.count_include_pad:
        return (0, 0) if seen.looks_before or seen.looks_behind else None
    return padding if seen.overflows else None
