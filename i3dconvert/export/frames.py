"""The deployment form: an inflated network over frames, with 2D convolutions, which CPU runtimes run faster.

"Fold everything" is a valid lifting too. What mixes frames becomes a 2D operation and a little gathering of frames
(`framewise`); everything else is what the 2D network does. BatchNorms behind convolutions are folded into them. The
form is for inference: its weights are constants.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from i3dconvert.errors import FramesError
from i3dconvert.export.framewise import (
    ConvGeometry,
    FramesPool,
    LayerNormOverChannels,
    MinimalConv,
    StackedConv,
    StemInHalves,
    frames_conv,
    minimal_transforms,
)
from i3dconvert.lift import layout
from i3dconvert.lift.computed import OF_ANY_IMAGE, ComputedConv3d
from i3dconvert.lift.counterparts import ANY_RANK, full_name
from i3dconvert.lift.lengths import lengths as counted
from i3dconvert.lift.modules import BatchNormAct3d, GlobalAvgPool, LayerNorm3d, PaddedConv3d, PaddedPool3d, in_space
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.tree.calling import named
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.lift.tree.straight import Straight
from i3dconvert.recipes import Temporal

FRAMES = 16
"""Of the clips that the form is chosen for; it computes any number."""

_LOOKS_ALONG_TIME = frozenset(("group_norm", "instance_norm", "resize_time", "whole_clip"))


def frames_form(network: Network3d, minimal: bool = True) -> Straight:
    """The same function of clips `(N, C, T, H, W)` as `network` in eval mode, computed over frames `(N·T, C, H, W)`.

    Without `minimal`, no convolution is one by minimal filtering, whose transformed kernels take more precision.
    """
    return OverFrames(network, minimal).run()


def optimize(network: Network3d) -> Straight:
    """`frames_form` with channels-last kernels: in torch on a CPU 1.1 to 4 times faster (docs/performance.md).

    For inference: its weights are constants, apart from the network's own where a layer is rewritten.
    """
    return channels_last(copy.deepcopy(frames_form(network)))  # layers that stay have the network's own tensors


Form = TypeVar("Form", bound=Straight)


def channels_last(form: Form) -> Form:
    """The same module, whose kernels torch's CPU convolutions run fastest with; what its code reads stays as it is."""
    code = form._i3d_code
    read = {str(node.target) for node in code.graph.nodes if node.op == "get_attr"} if code is not None else set()
    for name, parameter in (*form.named_parameters(), *form.named_buffers()):
        if parameter.dim() == 4 and name not in read:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return form


def windows(length: int, room: int, stride: int) -> int:
    """How many temporal windows there are in `length` frames, `room` being the padding less the window."""
    return (length + room) // stride + 1


class OverFrames:
    """One pass over the lifted graph: `env` holds each node over frames, `lengths` the node of its T."""

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
                if owner in parts:  # a layer in another form, whose tensor is read beside it
                    node.target = f"{owner}_{last}".replace(".", "_")
                parts[str(node.target)] = tensor
        return self.module(parts).eval()

    def module(self, parts: Mapping[str, Any]) -> Straight:
        """The graph over its parts."""
        return named(Straight, "Frames")(self.graph, parts)

    def rewritten(self) -> None:
        """What several nodes together have a better form for."""
        _average_before_the_head(self.graph, self.modules)
        _halve_the_stem(self.graph, self.modules)

    def visit(self, node: fx.Node) -> fx.Node:
        """The node's value over frames; what does not vary with the clip stays as it is."""
        if node.op == "output":
            output: fx.Node = self.graph.output(fx.node.map_arg(node.args[0], self.as_given))
            return output
        if node.target is layout.check_clip:
            return self.start(node)
        if node.meta.get("beside_clips"):
            return self.env[node.all_input_nodes[0]]
        source = next((n for n in node.all_input_nodes if n in self.lengths), None)
        if source is None or node.meta.get("plain"):
            return self.copy(node)
        if layout.is_size(node) and source in self.on_clips:
            return self.clips if node.args[1] == 0 else self.lengths[source]
        self.lengths[node] = self.lengths[source]
        if node.target is layout.fold:
            return self.env[source]
        if node.target is layout.unfold:
            self.on_clips.add(node)
            return self.env[source]
        if not any(n in self.on_clips for n in node.all_input_nodes):
            return self.copy(node)
        self.on_clips.add(node)
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
        """The value in the layout that it has in the lifted graph."""
        if node.target is layout.together:
            return self.graph.call_function(layout.together, fx.node.map_arg(node.args, self.as_given))
        new = self.env[node]
        return self.graph.call_function(layout.unfold, (new, self.clips)) if node in self.on_clips else new

    def copy(self, node: fx.Node, value: Callable[[fx.Node], fx.Node] | None = None) -> fx.Node:
        """The same of other values: by default those over frames."""
        if node.op == "call_module":
            self.modules[str(node.target)] = self.network.get_submodule(str(node.target))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value or self.env.__getitem__)
        viewed = node.op == "call_method" and node.target == "view" and not isinstance(args[1], torch.dtype)
        # What is a view in the 2D network's memory need not be one in channels-last memory.
        return self.graph.create_node(node.op, "reshape" if viewed else node.target, args, kwargs, node.name)

    def unfolded(self, node: fx.Node) -> fx.Node:
        """What looks along time in a way of its own, on clips."""
        clip = self.copy(node, self.as_given)
        self.lengths[node] = self.graph.call_method("size", (clip, 2))
        return self.graph.call_function(layout.fold, (clip,))

    def layer(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """A module on a clip."""
        name, frames, temporal = str(node.target), self.env[source], node.meta.get("temporal", Temporal())
        module = self.network.get_submodule(name)
        if isinstance(module, ComputedConv3d):
            module = module.with_kernel(*(self.constant(argument) for argument in node.args[1:]))
        if node in self.norms.values():
            if isinstance(module, BatchNormAct3d):
                self.modules[f"{name}.act"] = module.act
                return self.graph.call_module(f"{name}.act", (frames,))
            return frames
        alike = _same_on_frames(module)
        if alike is not None:
            self.modules[name] = alike
            return self.graph.create_node("call_module", name, (frames,), {}, node.name)
        norm = self.network.get_submodule(str(self.norms[node].target)) if node in self.norms else None
        if isinstance(module, PaddedConv3d) and module.temporal is not None:
            frames = self.convolved(f"{name}.spatial", module, frames, node, Temporal(), None)
            return self.convolved(f"{name}.temporal", module.temporal, frames, node, temporal, norm)
        if isinstance(module, nn.Conv3d):
            if module.padding_mode != "zeros":  # one of the user's: ours have a padding of their own
                return self.unfolded(node)
            return self.convolved(name, module, frames, node, temporal, norm)
        return self.pooled(name, module, frames, node, temporal)

    def convolved(
        self, name: str, module: Any, frames: fx.Node, node: fx.Node, temporal: Temporal, norm: nn.Module | None
    ) -> fx.Node:
        """A convolution, with the BatchNorm behind it."""
        source = next(n for n in node.all_input_nodes if n in self.lengths)
        kernel, bias, replicate, geometry = folded(module, norm)
        length = self.usual[source] if self.minimal else 1
        form = frames_conv(kernel, bias, temporal, replicate, geometry, length)
        return self.mixed(name, form, frames, node, temporal)

    def pooled(self, name: str, module: nn.Module, frames: fx.Node, node: fx.Node, temporal: Temporal) -> fx.Node:
        """A pooling; what has no form over frames stays on clips."""
        pool = _framewise_pool(module, temporal)
        return self.unfolded(node) if pool is None else self.mixed(name, pool, frames, node, temporal)

    def constant(self, value: Any) -> Any:
        """What the 2D network's code makes of its parameters alone."""
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
        """A call of a layer over frames, and the length of time behind it."""
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
            return self.graph.call_module(name, (frames, self.clips, before, after))
        form = (before, module.m, module.replicate)
        if form not in self.transforms:
            self.transforms[form] = self.graph.call_function(minimal_transforms, (frames, *form))
        return self.graph.call_module(name, (frames, self.clips, before, self.transforms[form]))


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
    """T at each node for a clip of 16 frames, or the next length that the recipe allows."""
    for frames in (*range(FRAMES, 4 * FRAMES), inflation_of(network).minimum_frames):
        with suppress(FramesError):
            return counted(graph, frames)
    raise FramesError("no clip length goes through the recipe")


def _norms_behind_convolutions(network: Network3d, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Each convolution whose value goes to a BatchNorm alone, with that BatchNorm."""
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
    """Scores averaged over time are the scores of the averaged features, where the head is linear."""
    for node in graph.nodes:
        head = node.args[0] if node.target is layout.mean_over_time else None
        if isinstance(head, fx.Node) and isinstance(modules.get(str(head.target)), nn.Linear) and len(head.users) == 1:
            with graph.inserting_before(node):
                mean = graph.call_function(layout.mean_over_time, (head.args[0], node.args[1]))
                node.replace_all_uses_with(graph.call_module(str(head.target), (mean,)))
            graph.erase_node(node)
            graph.erase_node(head)


def _halve_the_stem(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """A convolution of the clip's own stacked frames, an activation and a pooling, as one, in halves of the frames."""
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


def _same_on_frames(module: nn.Module) -> nn.Module | None:
    """The 2D form of a layer in which time plays no part."""
    if isinstance(module, nn.GroupNorm):
        return None
    if isinstance(module, GlobalAvgPool | nn.Dropout3d) or full_name(module) in ANY_RANK:
        return module
    if isinstance(module, nn.BatchNorm3d):
        norm = nn.BatchNorm2d(module.num_features, module.eps, None, module.affine, module.track_running_stats)
        norm.load_state_dict(module.state_dict(), strict=False, assign=True)
        return nn.Sequential(norm, module.act) if isinstance(module, BatchNormAct3d) else norm
    if isinstance(module, LayerNorm3d):
        layer_norm = LayerNormOverChannels(module.normalized_shape, module.eps, module.elementwise_affine)
        layer_norm.weight, layer_norm.bias = module.weight, module.bias
        return layer_norm
    return None


def _framewise_pool(module: Any, temporal: Temporal) -> nn.Module | None:
    """The pooling over frames, where it has such a form."""
    pool, space = (module.pool, module.space) if isinstance(module, PaddedPool3d) else (module, None)
    if not isinstance(pool, nn.MaxPool3d | nn.AvgPool3d):
        return None
    if isinstance(pool, nn.AvgPool3d) and pool is module and temporal.before:
        return None  # it averages zeros in, and not the border frames
    if temporal.ceil and temporal.kernel > 1 and temporal.stride > 1:
        # A last window that is cut off is as good as a full one for the largest, if it never starts behind the clip.
        starts_inside = temporal.stride <= temporal.span - temporal.after
        if not isinstance(pool, nn.MaxPool3d) or not starts_inside:
            return None
    largest = isinstance(pool, nn.MaxPool3d)
    gaps = largest and temporal.dilation > 1 and not isinstance(module, PaddedPool3d)
    return FramesPool(pool_of_images(pool, temporal.kernel), temporal, largest, space, gaps)


def pool_of_images(pool: nn.MaxPool3d | nn.AvgPool3d, kernel: int) -> nn.Module:
    """What a 3D pooling, of `kernel` frames, does to each of them."""
    size, stride, padding = (in_space(size) for size in (pool.kernel_size, pool.stride, pool.padding))
    if isinstance(pool, nn.MaxPool3d):
        return nn.MaxPool2d(size, stride, padding, in_space(pool.dilation), ceil_mode=pool.ceil_mode)
    divisor = pool.divisor_override and pool.divisor_override // kernel
    return nn.AvgPool2d(size, stride, padding, pool.ceil_mode, pool.count_include_pad, divisor)


class Folded(NamedTuple):
    """A convolution over clips, as one in space and its taps along time."""

    kernel: Tensor
    """`(O, I/groups, T, kH, kW)`."""
    bias: Tensor | None
    replicate: bool
    """Whether the border frames are replicated, or there are zeros outside the clip."""
    geometry: ConvGeometry


def folded(module: Any, norm: Any) -> Folded:
    """A `Conv3d`, and the BatchNorm behind it where there is one, as one convolution."""
    kernel: Tensor = module.kernel() if isinstance(module, PaddedConv3d) else module.weight
    bias: Tensor | None = module.bias
    if norm is not None:
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        kernel, bias = fuse_conv_bn_weights(kernel, bias, *statistics)
    spatial = (in_space(module.stride), in_space(module.padding), in_space(module.dilation))
    geometry = ConvGeometry(*spatial, module.groups, getattr(module, "space", None))
    replicate = isinstance(module, PaddedConv3d) and module.time[2] == "replicate"
    return Folded(kernel.detach(), None if bias is None else bias.detach(), replicate, geometry)
