"""Lift or fold: rewrite the graph of a 2D network into one over clips.

An operation with a 3D counterpart is lifted and works on clips; every other operation is left as it is and works on
frames. Element-wise operations, and those along the channels, follow their inputs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from i3dconvert.errors import LiftError, RecipeError
from i3dconvert.kernels import Style
from i3dconvert.lift import layout
from i3dconvert.lift.attention.found import attentions
from i3dconvert.lift.attention.joint import AttentionOverTime
from i3dconvert.lift.calls import Calls
from i3dconvert.lift.canonical import canonical, function_name, leaves
from i3dconvert.lift.computed import CLASSES, Called, ComputedConv3d, called, parameter_of
from i3dconvert.lift.convolutions import convolutions
from i3dconvert.lift.counterparts import (
    ANY_RANK,
    UPSAMPLES,
    Counterpart,
    counterpart,
    counterpart_of_base,
    draws_rows,
    full_name,
)
from i3dconvert.lift.inflation import Inflation
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.lengths import minimum_frames
from i3dconvert.lift.modules import SpatialPad
from i3dconvert.lift.reading import CallOf, Multiples, Reading, is_image, one_each, place, reason, rows, rows_in, varies
from i3dconvert.lift.rewriting import Layer, New, Rewriting
from i3dconvert.recipes import Geometry, InsertedPool, Recipe, Temporal

_GLOBAL_POOLS: dict[Any, str] = {nn.AdaptiveAvgPool2d: "mean", nn.AdaptiveMaxPool2d: "amax"}
_NORMS = ("group_norm", "instance_norm")
_POOLS = {"max_pool": nn.MaxPool3d, "avg_pool": nn.AvgPool3d}

Ties = tuple[tuple[str, ...], ...]

_OF_ANY_RANK = ("dtype", "device")
"""What is the same of a kernel in 2D and in 3D."""


@dataclass(frozen=True)
class Lifted:
    """The lifted graph over `modules`, not yet filled with weights."""

    graph: fx.Graph
    modules: dict[str, nn.Module]
    inflation: Inflation
    calls: tuple[CallOf, ...]
    """The calls of modules, with nodes of this graph; each node has its call's number in `meta["call"]`."""


class Lift(Rewriting):
    """One pass over the 2D graph: a method for each kind of node, which gives its 3D node and the layout of that."""

    def __init__(self, traced: Reading, recipe: Recipe, style: Style, ties: Ties) -> None:
        super().__init__(traced, recipe, style)
        self.ties, self.fixed, self.eval_only = ties, traced.fixed, traced.eval_only
        calls = [node for node in traced.graph.nodes if node.op == "call_module"]
        self.flat = {str(node.target) for node in calls if not _takes_an_image_alone(node)}
        self.attention, self.traced = AttentionOverTime(self, traced), traced
        self.calls = Calls(self, traced.calls)
        self.functions: dict[fx.Node, str] = {}
        """Of each convolution that a function computes, why it stays 2D; empty for those that are 3D."""
        self.pools = {_last_node(traced.graph, pool.after): pool for pool in recipe.pools}

    def run(self) -> Lifted:
        for node in self.old.nodes:
            mark = next(iter(reversed(self.graph.nodes)), None)
            self.calls.enter(node)
            self.attention.before(node)
            try:
                result = self.attention.attended(node) or getattr(self, node.op)(node)
                result = self.pooled(node, result)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise LiftError(f"{place(node)} can't be lifted: {reason(error)}") from error
            if result is None:
                self.calls.own(mark, node.meta["call"])
                continue
            self.env[node] = result
            self.attention.behind(node)
            self.calls.own(mark, node.meta["call"])
            self.calls.leave(node)
            if node in self.pools:
                mark = next(iter(reversed(self.graph.nodes)), None)
                self.env[node] = self.insert_pool(node, self.pools[node])
                self.calls.own(mark, self.calls.around(self.pools[node].after, node))
            if node.op in ("call_module", "call_function", "call_method") and layout.mutates(node, self.root):
                self.alias(node)
            self.calls.own(mark, node.meta["call"])
        self.tie()
        self.inflate_unreached()
        self.read_in_2d()
        _drop_unused_sizes(self.graph)
        self.graph.lint()
        least = minimum_frames(self.graph, self.recipe)
        _, *shape = next(node for node in self.old.nodes if node.op == "placeholder").meta["value"].shape
        for node in self.graph.nodes:
            if node.target is layout.check_clip:
                node.args = (*node.args[:2], least, *([tuple(shape[1:])] if self.fixed else []))
        inflation = Inflation(
            recipe=self.recipe,
            style=self.style,
            layers=tuple(self.layers.values()),
            fillings=self.fillings,
            minimum_frames=least,
            input=tuple(shape),
            any_size=self.any_size() and not self.fixed,
            folds=sum(node.target is layout.fold for node in self.graph.nodes),
            convolutions=convolutions(self.traced, self.modules, self.flat, self.functions),
            eval_only=self.eval_only,
            fixed=self.fixed,
            tried=self.traced.tried,
            ties=self.ties,
        )
        return Lifted(self.graph, self.modules, inflation, self.calls.all())

    def any_size(self) -> bool:
        """Whether all values are images or vectors, all operations torch's own and no padding follows from the size."""
        return all(_any_size(node) for node in self.old.nodes) and not any(
            isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
            or (isinstance(space := getattr(module, "space", None), SpatialPad) and space.fixed is None)
            for module in self.modules.values()
        )

    def tie(self) -> None:
        """A kernel under several names is inflated under them all, if its layers become 3D alike."""
        for names in self.ties:
            shared = {self.fillings[name] for name in names if name in self.fillings}
            free = [name for name in names if name.rpartition(".")[0] not in self.modules]
            if len(shared) == 1:
                self.fillings |= dict.fromkeys(free, shared.pop())

    def inflate_unreached(self) -> None:
        """Layers that the forward pass does not reach become 3D as the recipe says, so that a state dict fits them."""
        reached = {call.name for call in self.traced.calls} | set(self.modules)
        for name, module in self.root.named_modules():
            entry = counterpart_of_base(module) if name not in reached else None
            if entry is None:
                continue
            try:
                geometry = entry.geometry(module) if entry.geometry is not None else None
                temporal = self.recipe.temporal(name, geometry) if geometry is not None else Temporal()
                layer, fillings = entry.lift(module, temporal, self.style), entry.fillings(module, temporal, self.style)
            except RecipeError:
                continue
            named = {f"{name}.{key}": filling.of(name) for key, filling in fillings.items()}
            if all(self.fillings.get(key, filling) == filling for key, filling in named.items()):
                self.modules[name] = layer
                self.fillings |= named

    def read_in_2d(self) -> None:
        """A kernel that the network's code reads itself is a 2D one there, whatever its layer has become."""
        for node in self.graph.nodes:
            filling = self.fillings.get(str(node.target)) if node.op == "get_attr" else None
            if node.meta.get("taps") or filling is None or not filling.is_kernel:
                continue
            users = [user for user in node.users if user.target is not getattr or user.args[1] not in _OF_ANY_RANK]
            if users:
                with self.graph.inserting_after(node):
                    kernel = self.graph.call_function(layout.sum_of_taps, (node, filling.copies))
                kernel.meta |= {"plain": True, "call": node.meta["call"]}
                for user in users:
                    user.replace_input_with(node, kernel)

    def alias(self, node: fx.Node) -> None:
        """After an in-place operation its input is the output; what was converted before is out of date."""
        target = next((n for n in node.all_input_nodes), None)
        if target is None or self.layout_of(target) is Layout.PLAIN:
            return
        if layout.operation(node) == "setitem":
            self.env[target] = (self.frames(target), Layout.FRAMES)
        else:
            self.env[target] = self.env[node]

    # One method a kind of node.

    def placeholder(self, node: fx.Node) -> New:
        clip = self.graph.placeholder("clip")
        channels = node.meta["value"].shape[1]
        checked = self.call(layout.check_clip, clip, channels, 1, name="checked_clip")
        clip.meta["form"] = "clip"
        self.clips = self.graph.create_node("call_method", "size", (checked, 0), name="clips")
        return checked, Layout.CLIP

    def get_attr(self, node: fx.Node) -> New:
        return self.attention.table(node, self.graph.get_attr(str(node.target))), Layout.PLAIN

    def call_module(self, node: fx.Node) -> New:
        module: Any = self.root.get_submodule(str(node.target))
        entry = counterpart(module)
        image = _image(node)
        liftable = node.target not in self.flat and self.layout_of(image) is not Layout.PLAIN
        if entry is not None and liftable and not self.normalises_frames(node, str(node.target)):
            assert isinstance(image, fx.Node)
            return self.lift_module(node, module, entry, image)
        if entry is not None and entry.geometry is not None:
            name = str(node.target)
            self.layers[name] = Layer(name, node.name, entry.geometry(module), Temporal(), lifted=False)
        self.modules.setdefault(str(node.target), module)
        if self.normalises_frames(node, str(node.target)):
            return self.on_frames(node)
        if isinstance(image, fx.Node) and rows(node) == 1 and draws_rows(module):
            return self.dropped(node, module, image)
        if full_name(module) in ANY_RANK:
            return self.in_either_layout(node)
        if full_name(module) in UPSAMPLES and liftable:
            return self.interpolation(node, str(node.target), module.mode, module.align_corners)
        return self.on_frames(node)

    def dropped(self, node: fx.Node, module: nn.Module, image: fx.Node) -> New:
        """A module that draws a number for each image, which is one for each clip here."""
        is_in = self.layout_of(image)
        given = self.env[image][0]
        if is_in is Layout.FRAMES:
            given = self.call(layout.over_time, given, self.clips)
        new = self.graph.create_node("call_module", str(node.target), (given,), {}, node.name)
        new.meta["given"] = type(module).__qualname__
        return (self.call(layout.all_frames, new) if is_in is Layout.FRAMES else new), is_in

    def lift_module(self, node: fx.Node, module: nn.Module, entry: Counterpart, image: fx.Node) -> New:
        name, temporal = str(node.target), Temporal()
        if entry.geometry is not None:
            geometry = _padded_before(entry.geometry(module), image)
            temporal = self.recipe.temporal(name, geometry, bool(getattr(module, "ceil_mode", False)))
            self.layers[name] = Layer(name, node.name, geometry, temporal)
        if name not in self.modules:
            try:
                self.modules[name] = entry.lift(module, temporal, self.style)
                fillings = entry.fillings(module, temporal, self.style)
            except RecipeError as error:
                raise RecipeError(f"recipe {self.recipe.name!r} does not fit {name}: {error}") from None
            new_fillings = {f"{name}.{key}": filling.of(name) for key, filling in fillings.items()}
            if any(self.fillings.get(key, filling) != filling for key, filling in new_fillings.items()):
                raise RecipeError(
                    f"recipe {self.recipe.name!r} does not fit {name}: its kernel has other taps elsewhere"
                )
            self.fillings |= new_fillings
        new = self.graph.create_node("call_module", name, (self.clip(image),), {}, node.name)
        new.meta |= {"temporal": temporal, "layer": name}
        return new, Layout.CLIP

    def insert_pool(self, node: fx.Node, pool: InsertedPool) -> New:
        name = f"{pool.after}_temporal_pool"
        temporal = Temporal(pool.kernel, pool.stride, pool.padding, pool.padding)
        self.modules[name] = _POOLS[pool.kind]((pool.kernel, 1, 1), (pool.stride, 1, 1), (pool.padding, 0, 0))
        self.layers[name] = Layer(name, name.replace(".", "_"), Geometry(pool.kind, 1, 1, 0), temporal)
        new = self.graph.create_node("call_module", name, (self.clip(node),), {}, name.replace(".", "_"))
        new.meta |= {"temporal": temporal, "layer": name}
        return new, Layout.CLIP

    def convolution(self, node: fx.Node) -> New:
        """A function's convolution with a kernel of the network's own."""
        call = called(node)
        weight = parameter_of(call.kernel) if call is not None else None
        self.functions[node] = reason = self.why_flat(call, weight)
        if reason or call is None or weight is None:
            return self.on_frames(node)
        entry, key = counterpart(call.layer), str(weight.target)
        assert entry is not None
        assert entry.geometry is not None
        scope = str(node.meta["scope"])
        name = scope if scope and scope not in self.layers else function_name(node)
        geometry = _padded_before(entry.geometry(call.layer), call.image)
        temporal, style = self.recipe.temporal(name, geometry), replace(self.style, conv="3d")
        try:
            layer = entry.lift(call.layer, temporal, style)
            filling = entry.fillings(call.layer, temporal, style)["weight"]
        except RecipeError as error:
            raise RecipeError(f"recipe {self.recipe.name!r} does not fit {name}: {error}") from None
        if self.fillings.setdefault(key, filling) != filling:
            self.functions[node] = f"its kernel {key} is used otherwise over time elsewhere"
            return self.on_frames(node)
        self.layers[name] = Layer(name, node.name, geometry, temporal)
        self.modules[function_name(node)] = ComputedConv3d(layer, filling, self.style.init)
        taps = self.graph.get_attr(key)
        taps.meta |= {"plain": True, "taps": True}
        kernel, bias = (self.env[n][0] if isinstance(n, fx.Node) else n for n in (call.kernel, call.bias))
        arguments = (self.clip(call.image), taps, None if weight is call.kernel else kernel, bias)
        new = self.graph.create_node("call_module", function_name(node), arguments, {}, node.name)
        new.meta |= {"temporal": temporal, "layer": name}
        return new, Layout.CLIP

    def why_flat(self, call: Called | None, weight: fx.Node | None) -> str:
        """Why a function's convolution stays 2D; empty where it need not."""
        if call is None:
            return "what it is called with is computed in the forward pass"
        if not is_image(call.image) or self.layout_of(call.image) is Layout.PLAIN:
            return "it is called with no image"
        if weight is None:
            return "no tensor of the network has the shape of its kernel, which is computed in the forward pass"
        return ""

    def call_function(self, node: fx.Node) -> New:
        if layout.operation(node) in CLASSES:
            return self.convolution(node)
        if layout.operation(node) in _LIKE and self.layout_of(node.all_input_nodes[0]) is Layout.PLAIN:
            new = self.copy(node, lambda n: self.env[n][0])
            new.meta["plain"] = True
            self.sizes.note(node, [])
            return new, Layout.PLAIN
        if layout.operation(node) == "interpolate" and is_image(node.args[0]):
            mode, corners = layout.argument(node, "mode", 3, "nearest"), layout.argument(node, "align_corners", 4)
            return self.interpolation(node, function_name(node), mode, corners)
        if self.is_norm(node) and self.normalises_frames(node, function_name(node)):
            return self.on_frames(node)
        return self.in_either_layout(node) if layout.keeps_clip(node) else self.on_frames(node)

    call_method = call_function

    def pooled(self, node: fx.Node, result: New | None) -> New | None:
        """A pool over all of space, which is one over time too where the recipe says so."""
        how = self.global_pool(node)
        name = str(node.target) if node.op == "call_module" else function_name(node)
        if result is None or result[1] is Layout.PLAIN or not how or not self.recipe.pools_all_frames(name):
            return result
        new, is_in = result
        if is_in is Layout.CLIP:
            return self.call(layout.whole_clip, new, how), is_in
        if not rows(node):
            return result
        each = self.attention.nodes.rows(node)
        return self.call(layout.whole_clip_of_frames, new, self.clips, how, *([] if each == 1 else [each])), is_in

    def global_pool(self, node: fx.Node) -> str:
        """How a node pools all of space, `mean` or `amax`; empty where it does not."""
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            for cls, how in _GLOBAL_POOLS.items():
                one = isinstance(module, cls) and module.output_size in (1, (1, 1))
                if one and not getattr(module, "return_indices", False):
                    return how
        operation = layout.operation(node)
        if operation in _GLOBAL_POOLS.values() and node.args and is_image(node.args[0]):
            dim = layout.argument(node, "dim", 1)
            return operation if isinstance(dim, list | tuple) and set(dim) == {-2, -1} else ""
        return ""

    def normalises_frames(self, node: fx.Node, name: str) -> bool:
        """Whether the recipe has a norm over space, which in 3D is one over time too, stay within each frame."""
        return self.is_norm(node) and self.recipe.normalises_frames(name)

    def is_norm(self, node: fx.Node) -> bool:
        """Whether it is a norm with statistics over space: GroupNorm, InstanceNorm."""
        if node.op == "call_module":
            return isinstance(self.root.get_submodule(str(node.target)), nn.GroupNorm | nn.InstanceNorm2d)
        return layout.operation(node) in _NORMS

    def interpolation(self, node: fx.Node, name: str, mode: str, corners: bool | None) -> New:
        """An interpolation: of each frame, and then of time where the recipe says so."""
        ratio = _upsampling(node)
        shrinks = ratio < 1
        geometry = Geometry("upsample", 1, math.ceil(1 / ratio if shrinks else ratio), 0)
        temporal = self.recipe.temporal(name, geometry)
        result = self.on_frames(node)
        if temporal.stride == 1 or result[1] is Layout.PLAIN:
            return result
        like = self.size_source(node)
        if like is None and shrinks:
            return result
        self.env[node] = result
        clip = self.clip(node)
        self.layers[name] = Layer(name, node.name, geometry, temporal)
        if like is not None:
            frames = self.graph.create_node("call_method", "size", (self.clip(like), 2))
        elif temporal.stride == geometry.stride != ratio:
            raise RecipeError(
                f"recipe {self.recipe.name!r} does not fit {name}: time can't grow by {ratio:.4g}; to keep its length: "
                f"-t '{name}=1/1'"
            )
        else:
            old = self.graph.create_node("call_method", "size", (clip, 2))
            frames = self.call(operator.mul, old, temporal.stride)
        new = self.call(layout.resize_time, clip, frames, mode, corners)
        new.meta |= {"temporal": temporal, "layer": name}
        return new, Layout.CLIP

    def size_source(self, node: fx.Node) -> fx.Node | None:
        """The image whose height and width an interpolation is told to reach, if the graph says which."""
        seen = [leaf for leaf in leaves((node.args[1:], dict(node.kwargs))) if isinstance(leaf, fx.Node)]
        for candidate in seen:
            if candidate is node.args[0]:
                continue
            if isinstance(candidate.meta["value"], Tensor):
                return candidate if self.is_clip_of_size(candidate, node) else self.first_of_size(node)
            seen += [n for n in candidate.all_input_nodes if n not in seen]
        return None

    def first_of_size(self, node: fx.Node) -> fx.Node | None:
        """The first clip of the height and width that an interpolation reaches by arithmetic on another's size."""
        return next((n for n in self.env if n is not node and self.is_clip_of_size(n, node)), None)

    def is_clip_of_size(self, candidate: fx.Node, node: fx.Node) -> bool:
        """Whether the candidate is an image that varies with the clip, as high and wide as the node's."""
        if not is_image(candidate) or self.layout_of(candidate) is Layout.PLAIN:
            return False
        value = candidate.meta["value"]
        return isinstance(value, Tensor) and value.shape[2:] == node.meta["value"].shape[2:]

    def in_either_layout(self, node: fx.Node) -> New:
        """An operation that works in either layout: on clips if any input is one and all can be."""
        inputs = node.all_input_nodes
        layouts = [self.layout_of(n) for n in inputs]
        varying = [n for n, found in zip(inputs, layouts, strict=True) if found is not Layout.PLAIN]
        plain = [n for n, found in zip(inputs, layouts, strict=True) if found is Layout.PLAIN]
        as_clip = (
            Layout.CLIP in layouts
            and all(is_image(n) for n in varying)
            and all(_broadcasts(n.meta["value"]) for n in plain)
        )
        if not as_clip:
            return self.on_frames(node)
        return self.copy(node, lambda n: self.clip(n) if n in varying else self.beside_clips(n)), Layout.CLIP

    def beside_clips(self, node: fx.Node) -> fx.Node:
        """A parameter that broadcasts over images, shaped to broadcast over clips: `(C, 1, 1)` → `(C, 1, 1, 1)`."""
        new, value = self.env[node][0], node.meta["value"]
        if not isinstance(value, Tensor) or value.dim() < 3:
            return new
        beside = self.graph.create_node("call_method", "unsqueeze", (new, -3))
        beside.meta["beside_clips"] = True
        return beside

    def on_frames(self, node: fx.Node) -> New:
        varying = [n for n in node.all_input_nodes if self.layout_of(n) is not Layout.PLAIN]
        new = self.copy(node, lambda n: self.sizes.beside(n, varying))
        if varying and varies(node):
            return (self.call(layout.once_a_clip, new, self.clips) if _draws_rows(node) else new), Layout.FRAMES
        new.meta["plain"] = True
        self.sizes.note(node, varying)
        return new, Layout.PLAIN

    def output(self, node: fx.Node) -> None:
        self.graph.output(fx.node.map_arg(node.args[0], self.result))

    def result(self, node: fx.Node) -> fx.Node:
        (new, is_in), value = self.env[node], node.meta["value"]
        # What is made from the sizes alone (positions of each image) has a row for each frame as well.
        follows = is_in is Layout.FRAMES or (is_in is Layout.PLAIN and rows(node) == 1)
        ranked = _holds_places(node) or (_is_part(node) and _holds_places(node.all_input_nodes[0]))
        return self.result_value(new, value, node.meta["batch"], node.name, ranked) if follows else new

    def result_value(self, new: fx.Node, value: Any, multiples: Multiples, name: str, ranked: bool) -> fx.Node:
        """Class scores are averaged over what is left of time, unless the style says not to; dense outputs keep it,
        and so do places and flags, and what was `ranked` (by topk, sort) with them."""
        if isinstance(value, tuple | list):
            parts = [self.call(operator.getitem, new, i) for i in range(len(value))]
            items = zip(parts, value, multiples, strict=True)
            return self.call(layout.together, *(self.result_value(*item, name, ranked) for item in items))
        if not isinstance(value, Tensor):
            return new
        if rows_in(value, multiples) != 1:
            raise LiftError(
                f"the output {name!r} of shape {tuple(value.shape)} does not have the batch first: wrap the network in "
                "a module that moves it there"
            )
        if not one_each(value, multiples):
            self.fixed = f"at other sizes the output {name!r} has another number of rows for each image"
        if value.dim() == 2 and self.style.temporal_pool == "mean" and value.is_floating_point() and not ranked:
            return self.call(layout.mean_over_time, new, self.clips)
        if value.dim() == 4:
            return self.call(layout.unfold, new, self.clips, name=f"{new.name}_clip")
        return self.call(layout.over_time, new, self.clips)


_LIKE = frozenset(("to", "type_as"))
"""What takes dtype and device alone from a second tensor."""

_RANDOM = frozenset(("bernoulli", "rand", "rand_like", "uniform", "randn", "normal", "randint"))


def _draws_rows(node: fx.Node) -> bool:
    """Whether it draws one number for each image of the batch."""
    value = node.meta["value"]
    one_each = isinstance(value, Tensor) and value.dim() > 0 and rows(node) == 1 and value[0].numel() == 1
    return one_each and layout.operation(node) in _RANDOM


def _is_part(node: fx.Node) -> bool:
    return node.target is operator.getitem and isinstance(node.all_input_nodes[0].meta["value"], tuple | list)


def _holds_places(node: fx.Node) -> bool:
    """Whether an operation gives the places of values, beside them or alone."""
    value = node.meta["value"]
    parts = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(part, Tensor) and not part.is_floating_point() and not part.is_complex() for part in parts)


def _image(node: fx.Node) -> Any:
    """What a module is called with."""
    return node.args[0] if node.args else next(iter(node.kwargs.values()), None)


def _takes_an_image_alone(node: fx.Node) -> bool:
    """Whether a module is called with an image and nothing else; one that is not, in any of its calls, stays 2D."""
    image = _image(node)
    return isinstance(image, fx.Node) and is_image(image) and len(node.args) + len(node.kwargs) == 1


def _upsampling(node: fx.Node) -> float:
    """Height out over height in."""
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return float(node.meta["value"].shape[2] / source.meta["value"].shape[2])


def _broadcasts(value: Any) -> bool:
    """Whether a plain value can stand beside clips: numbers, and parameters without a batch axis of their own."""
    return not isinstance(value, Tensor) or value.dim() < 4 or (value.dim() == 4 and len(value) == 1)


def _padded_before(geometry: Geometry, image: fx.Node) -> Geometry:
    """The geometry of a layer with the padding of its input that is an operation of its own."""
    pads = layout.argument(image, "pad", 1, ()) if layout.operation(image) == "pad" else image.meta.get("pads", ())
    if geometry.padding is None or len(pads) != 4:
        return geometry
    if not all(type(pad) is int for pad in pads[2:]):
        return replace(geometry, padding=None)
    return replace(geometry, outside=(max(pads[2], 0), max(pads[3], 0)))


def _last_node(graph: fx.Graph, module: str) -> fx.Node:
    """The node whose value the module called `module` returns."""
    inside: list[fx.Node] = [
        node
        for node in graph.nodes
        if f"{node.meta.get('scope', '')}.".startswith(f"{module}.") or node.target == module
    ]
    if not inside:
        raise RecipeError(f"there is no module {module!r} to pool after")
    return inside[-1]


def _drop_unused_sizes(graph: fx.Graph) -> None:
    """Remove what only assertions and branches on shapes had needed, and then the folds behind it."""
    pure = {layout.fold, layout.unfold, layout.together, getattr}
    methods = {"size", "dim", "numel", "unsqueeze"}
    for node in reversed(graph.nodes):
        sizes = node.target in pure or (node.op == "call_method" and node.target in methods) or node.op == "get_attr"
        arithmetic = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
        if not node.users and (sizes or (arithmetic and layout.operation(node) not in layout.MUTATING)):
            graph.erase_node(node)


def lift(traced: Reading, recipe: Recipe, style: Style, ties: Ties = ()) -> Lifted:
    """Apply `recipe` to a traced 2D network, some of whose parameters may have several names (`ties`).

    Raises `RecipeError` when a rule matches nothing or the recipe breaks a join, `LiftError` for what can't be lifted.
    """
    canonical(traced)
    recipe.check_matches(_layers(traced), [name for name, _ in traced.root.named_modules()])
    return Lift(traced, recipe, style, ties).run()


def _any_size(node: fx.Node) -> bool:
    if node.op == "call_function" and not layout.operation(node):
        return False
    if node.op in ("get_attr", "output"):
        return True
    value, multiples = node.meta["value"], node.meta["batch"]
    pairs = zip(value, multiples, strict=True) if isinstance(value, tuple | list) else [(value, multiples)]
    return all(
        one_each(tensor, axes) and tensor.dim() in (1, 2, 4)
        for tensor, axes in pairs
        if isinstance(tensor, Tensor) and tensor.dim()
    )


def _layers(traced: Reading) -> Iterator[tuple[str, str]]:
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.root.get_submodule(str(node.target))
            entry = counterpart(module)
            if entry is not None and entry.geometry is not None:
                yield str(node.target), entry.geometry(module).kind
            elif full_name(module) in UPSAMPLES:
                yield str(node.target), "upsample"
            elif isinstance(module, nn.GroupNorm | nn.InstanceNorm2d):
                yield str(node.target), "norm"
        elif layout.operation(node) == "interpolate":
            yield function_name(node), "upsample"
        elif layout.operation(node) in _NORMS:
            yield function_name(node), "norm"
    yield from ((attention.name, "attention") for attention in attentions(traced))
