"""The deployment form: an inflated network over frames, with 2D convolutions, which are faster on CPUs.

Operations that mix frames become 2D operations and a gathering of frames (`framewise`); all others are the 2D
network's. BatchNorms after convolutions are folded into them. The form is for inference: its weights are
constants.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import fx, nn

from i3dconvert.errors import FramesError
from i3dconvert.export.framewise import (
    FramesPool,
    MinimalConv,
    StackedConv,
    StemInHalves,
    frames_conv,
    minimal_transforms,
)
from i3dconvert.export.images import folded, framewise_pool, same_on_frames
from i3dconvert.lift import layout
from i3dconvert.lift.computed import OF_ANY_IMAGE, ComputedConv3d
from i3dconvert.lift.counterparts import ANY_RANK, full_name
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.lengths import lengths as counted
from i3dconvert.lift.modules import BatchNormAct3d, PaddedConv3d
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.tree.calling import named
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.lift.tree.straight import Straight
from i3dconvert.recipes import Temporal

FRAMES = 16
"""Frames in the clips that the form is chosen for; it accepts any number."""

_LOOKS_ALONG_TIME = frozenset(("group_norm", "instance_norm", "resize_time", "whole_clip"))


def frames_form(network: Network3d, minimal: bool = True) -> Straight:
    """Return the same function of clips `(N, C, T, H, W)` as `network` in eval mode, computed on frames.

    Without `minimal`, no convolution uses minimal filtering, whose transformed kernels need more precision.
    """
    return OverFrames(network, minimal).run()


def optimize(network: Network3d) -> Straight:
    """Return `frames_form` with channels-last kernels, 1.1 to 4 times faster in torch on a CPU (docs/performance.md).

    For inference only: rewritten layers have constant weights, the others share the network's.
    """
    return channels_last(copy.deepcopy(frames_form(network)))  # unchanged layers share the network's tensors


Form = TypeVar("Form", bound=Straight)


def channels_last(form: Form) -> Form:
    """Convert kernels to channels-last, with which torch's CPU convolutions are fastest; returns the module.

    Tensors that the network's code reads stay as they are.
    """
    code = form._i3d_code
    read = {str(node.target) for node in code.graph.nodes if node.op == "get_attr"} if code is not None else set()
    for name, parameter in (*form.named_parameters(), *form.named_buffers()):
        if parameter.dim() == 4 and name not in read:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return form


def windows(length: int, room: int, stride: int) -> int:
    """Return the number of temporal windows in `length` frames; `room` is the padding minus the window."""
    return (length + room) // stride + 1


class OverFrames:
    """One pass over the lifted graph: `env` holds each node on frames, `lengths` the node of its T."""

    def __init__(self, network: Network3d, minimal: bool) -> None:
        self.network, self.minimal, self.graph = network, minimal, fx.Graph()
        self.source = graph_of(network)
        self.modules: dict[str, nn.Module] = {}
        self.env: dict[fx.Node, fx.Node] = {}
        self.lengths: dict[fx.Node, fx.Node] = {}
        self.on_clips: set[fx.Node] = set()
        self.counted: dict[tuple[fx.Node, int, int], fx.Node] = {}
        self.transforms: dict[tuple[fx.Node, int, bool], fx.Node] = {}
        self.norms = _norms_behind_convolutions(network, self.source)
        self.usual = _usual_lengths(network, self.source)
        self.constants: dict[fx.Node, Any] = {}
        self.clips: fx.Node
        self.images: dict[fx.Node, fx.Node] = {}
        """The number of clips at nodes on clips of which each clip of the network has several (windows, heads)."""

    def run(self) -> Straight:
        for node in self.source.nodes:
            self.env[node] = self.visit(node)
        self.rewritten()
        self.graph.lint()
        parts: dict[str, Any] = dict(self.modules)
        for node in self.graph.nodes:
            owner, _, last = str(node.target).rpartition(".")
            if node.op == "get_attr" and not hasattr(parts.get(owner), last):
                tensor = getattr(self.network.get_submodule(owner), last)
                if owner in parts:  # a rewritten layer whose tensor is also read elsewhere
                    node.target = f"{owner}_{last}".replace(".", "_")
                parts[str(node.target)] = tensor
        return self.module(parts).eval()

    def module(self, parts: Mapping[str, Any]) -> Straight:
        """Return a module of the graph and its parts."""
        return named(Straight, "Frames")(self.graph, parts)

    def rewritten(self) -> None:
        """Rewrite groups of nodes that have a better form together."""
        _average_before_the_head(self.graph, self.modules)
        _halve_the_stem(self.graph, self.modules)

    def visit(self, node: fx.Node) -> fx.Node:
        """Return the node on frames; values that do not vary with the clip are unchanged."""
        if node.op == "output":
            output: fx.Node = self.graph.output(fx.node.map_arg(node.args[0], self.as_given))
            return output
        if node.target is layout.check_clip:
            return self.start(node)
        if facts_of(node).get("beside_clips"):
            return self.env[node.all_input_nodes[0]]
        source = next((n for n in node.all_input_nodes if n in self.lengths), None)
        if source is None or facts_of(node).get("plain"):
            return self.copy(node)
        if layout.is_size(node) and source in self.on_clips:
            return self.clips_at(source) if node.args[1] == 0 else self.lengths[source]
        self.lengths[node] = self.lengths[source]
        if node.target is layout.fold:
            return self.env[source]
        if node.target is layout.unfold:
            self.on_clips.add(node)
            return self.env[source]
        if node.target is layout.clips_of_rows:
            self.on_clips.add(node)
            clip = self.copy(node)
            self.images[node] = self.graph.call_method("size", (clip, 0))
            return self.graph.call_function(layout.fold, (clip,))
        if node.target is layout.rows_of_clips:
            return self.copy(node, self.as_given)
        if not any(n in self.on_clips for n in node.all_input_nodes):
            return self.copy(node)
        self.on_clips.add(node)
        if source in self.images:
            self.images[node] = self.images[source]
        if node.op == "call_module":
            return self.layer(node, source)
        name = getattr(node.target, "__name__", str(node.target))
        return self.unfolded(node) if name in _LOOKS_ALONG_TIME else self.copy(node)

    def start(self, node: fx.Node) -> fx.Node:
        checked = self.copy(node)
        self.clips = self.graph.call_method("size", (checked, 0))
        self.lengths[node] = self.graph.call_method("size", (checked, 2))
        self.on_clips.add(node)
        return self.graph.call_function(layout.fold, (checked,))

    def as_given(self, node: fx.Node) -> fx.Node:
        """Return the value in the layout that it has in the lifted graph."""
        if node.target is layout.together:
            return self.graph.call_function(layout.together, fx.node.map_arg(node.args, self.as_given))
        new = self.env[node]
        return self.graph.call_function(layout.unfold, (new, self.clips_at(node))) if node in self.on_clips else new

    def clips_at(self, node: fx.Node) -> fx.Node:
        """Return the number of clips in the value of a node on clips."""
        return self.images.get(node, self.clips)

    def copy(self, node: fx.Node, value: Callable[[fx.Node], fx.Node] | None = None) -> fx.Node:
        """Copy a node with other arguments, by default the values on frames."""
        if node.op == "call_module":
            self.modules[str(node.target)] = self.network.get_submodule(str(node.target))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value or self.env.__getitem__)
        viewed = node.op == "call_method" and node.target == "view" and not isinstance(args[1], torch.dtype)
        # A view in the 2D network's memory may not be one in channels-last memory.
        return self.graph.create_node(node.op, "reshape" if viewed else node.target, args, kwargs, node.name)

    def unfolded(self, node: fx.Node) -> fx.Node:
        """Compute an operation along time on clips."""
        clip = self.copy(node, self.as_given)
        self.lengths[node] = self.graph.call_method("size", (clip, 2))
        return self.graph.call_function(layout.fold, (clip,))

    def layer(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """Return a module's output for a clip."""
        name, frames, temporal = str(node.target), self.env[source], facts_of(node).get("temporal", Temporal())
        module = self.network.get_submodule(name)
        if isinstance(module, ComputedConv3d):
            module = module.with_kernel(*(self.constant(argument) for argument in node.args[1:]))
        if node in self.norms.values():
            if isinstance(module, BatchNormAct3d):
                self.modules[f"{name}.act"] = module.act
                return self.graph.call_module(f"{name}.act", (frames,))
            return frames
        if (alike := same_on_frames(module)) is not None:
            self.modules[name] = alike
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.env.__getitem__)
            return self.graph.create_node("call_module", name, args, kwargs, node.name)
        norm = self.network.get_submodule(str(self.norms[node].target)) if node in self.norms else None
        if isinstance(module, PaddedConv3d) and module.temporal is not None:
            frames = self.convolved(f"{name}.spatial", module, frames, node, Temporal(), None)
            return self.convolved(f"{name}.temporal", module.temporal, frames, node, temporal, norm)
        if isinstance(module, nn.Conv3d):
            if module.padding_mode != "zeros":  # the user's own; ours pad separately
                return self.unfolded(node)
            return self.convolved(name, module, frames, node, temporal, norm)
        return self.pooled(name, module, frames, node, temporal)

    def convolved(
        self, name: str, module: Any, frames: fx.Node, node: fx.Node, temporal: Temporal, norm: nn.Module | None
    ) -> fx.Node:
        """Return a convolution, with the BatchNorm after it folded in."""
        source = next(n for n in node.all_input_nodes if n in self.lengths)
        kernel, bias, replicate, geometry = folded(module, norm)
        length = self.usual[source] if self.minimal else 1
        form = frames_conv(kernel, bias, temporal, replicate, geometry, length)
        return self.mixed(name, form, frames, node, temporal)

    def pooled(self, name: str, module: nn.Module, frames: fx.Node, node: fx.Node, temporal: Temporal) -> fx.Node:
        """Return a pooling; one without a form on frames runs on clips."""
        pool = framewise_pool(module, temporal)
        return self.unfolded(node) if pool is None else self.mixed(name, pool, frames, node, temporal)

    def constant(self, value: Any) -> Any:
        """Return a value that the 2D network computes from its parameters alone."""
        if not isinstance(value, fx.Node):
            return value
        if value.target is getattr and value.args[1] in OF_ANY_IMAGE:
            return getattr(next(self.network.parameters()), str(value.args[1]))
        if value not in self.constants:
            args, kwargs = fx.node.map_arg((value.args, value.kwargs), self.constant)
            with torch.no_grad():
                self.constants[value] = _computed(self.network, value, args, kwargs)
        return self.constants[value]

    def mixed(self, name: str, module: nn.Module, frames: fx.Node, node: fx.Node, temporal: Temporal) -> fx.Node:
        """Call a layer on frames, and record the number of frames after it."""
        before = self.lengths[node]
        room = temporal.before + temporal.after - temporal.span
        if temporal.ceil and temporal.kernel > 1:
            room += temporal.stride - 1
        if (room, temporal.stride) == (-1, 1):
            after = before
        else:
            key = (before, room, temporal.stride)
            if key not in self.counted:
                self.counted[key] = self.graph.call_function(windows, key)
            after = self.counted[key]
        name = name if name not in self.modules else f"{name}_{node.name}"  # a layer that is called twice
        self.modules[name], self.lengths[node] = module, after
        if not isinstance(module, MinimalConv):
            return self.graph.call_module(name, (frames, self.clips_at(node), before, after))
        form = (before, module.m, module.replicate)
        if form not in self.transforms:
            self.transforms[form] = self.graph.call_function(minimal_transforms, (frames, *form))
        return self.graph.call_module(name, (frames, self.clips_at(node), self.transforms[form]))


def _computed(network: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "get_attr":
        owner, _, last = str(node.target).rpartition(".")
        return getattr(network.get_submodule(owner), last)
    if node.op == "call_module":
        return network.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _usual_lengths(network: Network3d, graph: fx.Graph) -> dict[fx.Node, int]:
    """Return T at each node for a clip of 16 frames, or of the next length that the recipe allows."""
    for frames in (*range(FRAMES, 4 * FRAMES), inflation_of(network).minimum_frames):
        with suppress(FramesError):
            return counted(graph, frames)
    raise FramesError("the recipe accepts no clip length")


def _norms_behind_convolutions(network: Network3d, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Map each convolution whose output goes only to a BatchNorm to that BatchNorm."""
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    found = {}
    for node in graph.nodes:
        user = next(iter(node.users), None)
        if node.op != "call_module" or user is None or len(node.users) > 1 or user.op != "call_module":
            continue
        convolution, norm = (network.get_submodule(str(n.target)) for n in (node, user))
        once = calls[str(node.target)] == calls[str(user.target)] == 1
        if (
            once
            and isinstance(convolution, nn.Conv3d)
            and convolution.padding_mode == "zeros"
            and isinstance(norm, nn.BatchNorm3d)
            and norm.track_running_stats
        ):
            found[node] = user
    return found


def _average_before_the_head(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Average the features instead of the scores over time, which is equal for a linear head."""
    for node in graph.nodes:
        head = node.args[0] if node.target is layout.mean_over_time else None
        if isinstance(head, fx.Node) and isinstance(modules.get(str(head.target)), nn.Linear) and len(head.users) == 1:
            with graph.inserting_before(node):
                mean = graph.call_function(layout.mean_over_time, (head.args[0], node.args[1]))
                node.replace_all_uses_with(graph.call_module(str(head.target), (mean,)))
            graph.erase_node(node)
            graph.erase_node(head)


def _halve_the_stem(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Merge a convolution of the clip's stacked frames, its activation and its pooling, and run it on halves."""
    for node in [n for n in graph.nodes if n.op == "call_module" and _is_clip_folded(n.args[0])]:
        act = _only_user(node)
        pool = _only_user(act)
        conv, between, pooling = (modules.get(str(n.target)) if n is not None else None for n in (node, act, pool))
        halved = isinstance(conv, StackedConv) and conv.halved
        if not halved or between is None or full_name(between) not in ANY_RANK or not isinstance(pooling, FramesPool):
            continue
        assert isinstance(conv, StackedConv)
        assert act is not None
        assert pool is not None
        name = f"{node.target}_to_{pool.target}".replace(".", "_")
        modules[name] = StemInHalves(conv, between, pooling)
        with graph.inserting_before(pool):
            pool.replace_all_uses_with(graph.call_module(name, (*node.args, pool.args[3])))
        for old in (pool, act, node):
            graph.erase_node(old)


def _is_clip_folded(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is layout.fold


def _only_user(node: fx.Node | None) -> fx.Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None
