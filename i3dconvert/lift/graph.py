"""Rewrite the graph of a 2D network into a graph over clips.

An operation with a 3D counterpart is lifted and runs on clips; every other operation stays as it is and runs on
frames. Element-wise operations, and those along the channels, use the layout of their inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from i3dconvert.errors import LiftError, RecipeError
from i3dconvert.lift import layout
from i3dconvert.lift.attention.found import attentions
from i3dconvert.lift.attention.joint import AttentionOverTime
from i3dconvert.lift.beside import Beside, Ties
from i3dconvert.lift.calls import Calls
from i3dconvert.lift.canonical import canonical, function_name
from i3dconvert.lift.computed import CLASSES, called
from i3dconvert.lift.convolutions import convolutions
from i3dconvert.lift.counterparts import (
    ANY_RANK,
    UPSAMPLES,
    Counterpart,
    counterpart,
    draws_rows,
    full_name,
)
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.functions import Functions, padded_before
from i3dconvert.lift.interpolation import Interpolations
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.lengths import minimum_frames, uneven
from i3dconvert.lift.modules import OVER_VOLUMES, SpatialPad
from i3dconvert.lift.outputs import Outputs
from i3dconvert.lift.reading import CallOf, Reading, is_image, one_each, place, reason, rows
from i3dconvert.lift.record import Inflation
from i3dconvert.lift.rewriting import Layer, New
from i3dconvert.lift.space import NORMS, OverSpace
from i3dconvert.recipes import Geometry, InsertedPool, Recipe, Temporal

_POOLS = {"max_pool": nn.MaxPool3d, "avg_pool": nn.AvgPool3d}


@dataclass(frozen=True)
class Lifted:
    """The lifted graph and its `modules`, without inflated weights."""

    graph: fx.Graph
    modules: dict[str, nn.Module]
    inflation: Inflation
    calls: tuple[CallOf, ...]
    """The calls of modules, as nodes of this graph; the fact `call` of a node is the index of its call."""


class Lift(Functions, Interpolations, OverSpace, Outputs, Beside):
    """One pass over the 2D graph: the method for each kind of node returns its 3D node and layout."""

    def __init__(self, traced: Reading, recipe: Recipe, style: Style, ties: Ties) -> None:
        super().__init__(traced, recipe, style)
        self.ties, self.fixed = ties, traced.fixed
        calls = [node for node in traced.graph.nodes if node.op == "call_module"]
        self.flat = {str(node.target) for node in calls if not self.takes_images_alone(node)}
        self.attention = AttentionOverTime(self, traced, self.orders)
        self.calls = Calls(self, traced.calls)
        self.functions = {}
        self.pools = {_last_node(traced.graph, pool.after): pool for pool in recipe.pools}

    def run(self) -> Lifted:
        for node in self.old.nodes:
            mark = self.calls.mark()
            self.calls.enter(node)
            self.attention.before(node)
            try:
                result = self.attention.attended(node) or getattr(self, node.op)(node)
                result = self.pooled(node, result)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise LiftError(f"{place(node)} can't be lifted: {reason(error)}") from error
            if result is not None:
                self.env[node] = result
                self.attention.behind(node)
                self.calls.leave(node)
                if node in self.pools:
                    self.insert_pool(node, self.pools[node])
                if node.op in ("call_module", "call_function", "call_method") and layout.mutates(node, self.root):
                    self.alias(node)
            self.calls.own(mark, facts_of(node)["call"])
        self.tie()
        self.inflate_unreached()
        self.read_in_2d()
        _drop_unused_sizes(self.graph)
        self.graph.lint()
        return Lifted(self.graph, self.modules, self.inflation(), self.calls.all())

    def inflation(self) -> Inflation:
        """Return the record, and let the graph check clips by it."""
        least = minimum_frames(self.graph, self.recipe)
        _, *shape = facts_of(next(node for node in self.old.nodes if node.op == "placeholder"))["value"].shape
        for node in self.graph.nodes:
            if node.target is layout.check_clip:
                size, odd = tuple(shape[1:]) if self.fixed else None, uneven(self.graph, least)
                node.args = (*node.args[:2], least, *((size, odd) if odd else (size,) if size else ()))
        return Inflation(
            recipe=self.recipe,
            style=self.style,
            layers=tuple(self.layers.values()),
            fillings=self.fillings,
            minimum_frames=least,
            input=tuple(shape),
            any_size=self.any_size() and not self.fixed,
            folds=sum(node.target is layout.fold for node in self.graph.nodes),
            convolutions=convolutions(self.traced, self.modules, self.flat, self.functions),
            eval_only=self.traced.eval_only,
            fixed=self.fixed,
            tried=self.traced.tried,
            ties=self.ties,
        )

    def any_size(self) -> bool:
        """Return whether all values are images or vectors, all functions torch's, and no padding depends on size."""
        return all(_any_size(node) for node in self.old.nodes) and not any(
            isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
            or (isinstance(space := getattr(module, "space", None), SpatialPad) and space.fixed is None)
            for module in self.modules.values()
        )

    def alias(self, node: fx.Node) -> None:
        """Replace the input of an in-place operation by its output; earlier conversions of it are out of date."""
        target = next((n for n in node.all_input_nodes), None)
        if target is None or self.layout_of(target) is Layout.PLAIN:
            return
        if layout.operation(node) == "setitem":
            self.env[target] = (self.frames(target), Layout.FRAMES)
        else:
            self.env[target] = self.env[node]

    # One method for each kind of node.

    def placeholder(self, node: fx.Node) -> New:
        clip = self.graph.placeholder("clip")
        channels = facts_of(node)["value"].shape[1]
        checked = self.call(layout.check_clip, clip, channels, 1, name="checked_clip")
        facts_of(clip)["form"] = "clip"
        self.clips = self.graph.create_node("call_method", "size", (checked, 0), name="clips")
        return checked, Layout.CLIP

    def get_attr(self, node: fx.Node) -> New:
        return self.attention.table(node, self.graph.get_attr(str(node.target))), Layout.PLAIN

    def call_module(self, node: fx.Node) -> New:
        name, image = str(node.target), _image(node)
        module: Any = self.root.get_submodule(name)
        entry, on_frames = counterpart(module), self.normalises_frames(node, name)
        liftable = name not in self.flat and self.layout_of(image) is not Layout.PLAIN
        if entry is not None and liftable and not on_frames:
            assert isinstance(image, fx.Node)
            return self.lift_module(node, module, entry, image)
        if entry is not None and entry.geometry is not None:
            self.layers[name] = Layer(name, node.name, entry.geometry(module), Temporal(), lifted=False)
        self.modules.setdefault(name, module)
        if on_frames:
            return self.on_frames(node)
        if isinstance(image, fx.Node) and rows(node) == 1 and draws_rows(module):
            return self.dropped(node, module, image)
        if full_name(module) in ANY_RANK:
            return self.in_either_layout(node)
        if full_name(module) in UPSAMPLES and liftable:
            return self.interpolation(node, name, module.mode, module.align_corners)
        new, is_in = self.on_frames(node)
        if isinstance(module, OVER_VOLUMES):
            facts_of(new)["given"] = type(module).__qualname__
        return new, is_in

    def takes_images_alone(self, node: fx.Node) -> bool:
        """Return whether images are the only argument. A module with any other call stays 2D."""
        entry, image = counterpart(self.root.get_submodule(str(node.target))), _image(node)
        if not isinstance(image, fx.Node) or len(node.args) + len(node.kwargs) != 1:
            return False
        return is_image(image) or (entry is not None and entry.geometry is not None and self.holds_images(image))

    def dropped(self, node: fx.Node, module: nn.Module, image: fx.Node) -> New:
        """Add a module that draws a number for each image, which here draws one for each clip."""
        is_in = self.layout_of(image)
        given = self.env[image][0]
        if is_in is Layout.FRAMES:
            given = self.call(layout.over_time, given, self.clips)
        new = self.graph.create_node("call_module", str(node.target), (given,), {}, node.name)
        facts_of(new)["given"] = type(module).__qualname__
        return (self.call(layout.all_frames, new) if is_in is Layout.FRAMES else new), is_in

    def lift_module(self, node: fx.Node, module: nn.Module, entry: Counterpart, image: fx.Node) -> New:
        name, temporal = str(node.target), Temporal()
        if entry.geometry is not None:
            geometry = padded_before(entry.geometry(module), image)
            temporal = self.recipe.temporal(name, geometry, bool(getattr(module, "ceil_mode", False)))
            self.layers[name] = Layer(name, node.name, geometry, temporal)
        if name not in self.modules:
            try:
                self.modules[name] = entry.lift(module, temporal, self.style)
                fillings = entry.fillings(module, temporal, self.style)
            except RecipeError as error:
                raise self.misfit(name, str(error)) from None
            new_fillings = {f"{name}.{key}": filling.of(name) for key, filling in fillings.items()}
            if any(self.fillings.get(key, filling) != filling for key, filling in new_fillings.items()):
                raise self.misfit(name, "another call inflates its kernel differently")
            self.fillings |= new_fillings

        def layer(clip: fx.Node) -> fx.Node:
            new = self.graph.create_node("call_module", name, (clip,), {}, node.name)
            return self.along_time(new, temporal, name)

        return self.on_clips(image, layer)

    def insert_pool(self, node: fx.Node, pool: InsertedPool) -> None:
        """Pool a node's value along time, in the call around the module that is pooled after."""
        name, mark = f"{pool.after}_temporal_pool", self.calls.mark()
        temporal = Temporal(pool.kernel, pool.stride, pool.padding, pool.padding)
        self.modules[name] = _POOLS[pool.kind]((pool.kernel, 1, 1), (pool.stride, 1, 1), (pool.padding, 0, 0))
        self.layers[name] = Layer(name, name.replace(".", "_"), Geometry(pool.kind, 1, 1, 0), temporal)
        new = self.graph.create_node("call_module", name, (self.clip(node),), {}, name.replace(".", "_"))
        self.env[node] = self.along_time(new, temporal, name), Layout.CLIP
        self.calls.own(mark, self.calls.around(pool.after, node))

    def call_function(self, node: fx.Node) -> New:
        if layout.operation(node) in CLASSES:
            return self.convolution(node)
        if layout.operation(node) in _LIKE and self.layout_of(node.all_input_nodes[0]) is Layout.PLAIN:
            new = self.plain(self.copy(node, lambda n: self.env[n][0]))
            self.sizes.note(node, [])
            return new, Layout.PLAIN
        if layout.operation(node) == "interpolate" and is_image(node.args[0]):
            mode, corners = layout.argument(node, "mode", 3, "nearest"), layout.argument(node, "align_corners", 4)
            return self.interpolation(node, function_name(node), mode, corners)
        if self.is_norm(node) and self.normalises_frames(node, function_name(node)):
            return self.on_frames(node)
        return self.in_either_layout(node) if layout.keeps_clip(node) else self.on_frames(node)

    call_method = call_function


_LIKE = frozenset(("to", "type_as"))
"""Functions that take only dtype and device from a second tensor."""


def _image(node: fx.Node) -> Any:
    """Return the first argument of a module's call."""
    return node.args[0] if node.args else next(iter(node.kwargs.values()), None)


def _last_node(graph: fx.Graph, module: str) -> fx.Node:
    """Return the node whose value the module called `module` returns."""
    inside: list[fx.Node] = [
        node
        for node in graph.nodes
        if f"{facts_of(node).get('scope', '')}.".startswith(f"{module}.") or node.target == module
    ]
    if not inside:
        raise RecipeError(f"there is no module {module!r} to pool after")
    return inside[-1]


def _drop_unused_sizes(graph: fx.Graph) -> None:
    """Remove sizes that only assertions and branches used, and then the folds that only they used."""
    pure = {layout.fold, layout.unfold, layout.together, getattr}
    methods = {"size", "dim", "numel", "unsqueeze"}
    for node in reversed(graph.nodes):
        sizes = node.target in pure or (node.op == "call_method" and node.target in methods) or node.op == "get_attr"
        arithmetic = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
        if not node.users and (sizes or (arithmetic and layout.operation(node) not in layout.MUTATING)):
            graph.erase_node(node)


def lift(traced: Reading, recipe: Recipe, style: Style, ties: Ties = ()) -> Lifted:
    """Apply `recipe` to a traced 2D network; `ties` are the groups of names of shared parameters.

    Raises `RecipeError` if a rule matches nothing or a join fails, `LiftError` if an operation can't be lifted.
    """
    canonical(traced)
    recipe.check_matches(_layers(traced), [name for name, _ in traced.root.named_modules()])
    return Lift(traced, recipe, style, ties).run()


def _any_size(node: fx.Node) -> bool:
    if node.op == "call_function" and not layout.operation(node):
        return False
    if node.op in ("get_attr", "output"):
        return True
    value, multiples = facts_of(node)["value"], facts_of(node)["batch"]
    pairs = zip(value, multiples, strict=True) if isinstance(value, tuple | list) else [(value, multiples)]
    return all(
        one_each(tensor, axes) and tensor.dim() in (1, 2, 4)
        for tensor, axes in pairs
        if isinstance(tensor, Tensor) and tensor.dim()
    )


def _layers(traced: Reading) -> Iterator[tuple[str, str]]:
    for node in traced.graph.nodes:
        if (module := traced.module(node)) is not None:
            entry = counterpart(module)
            if entry is not None and entry.geometry is not None:
                yield str(node.target), entry.geometry(module).kind
            elif full_name(module) in UPSAMPLES:
                yield str(node.target), "upsample"
            elif isinstance(module, nn.GroupNorm | nn.InstanceNorm2d):
                yield str(node.target), "norm"
        elif layout.operation(node) == "interpolate":
            yield function_name(node), "upsample"
        elif layout.operation(node) in NORMS:
            yield function_name(node), "norm"
        elif layout.operation(node) in CLASSES and (call := called(node)) is not None:
            entry = counterpart(call.layer)
            assert entry is not None
            assert entry.geometry is not None
            for name in dict.fromkeys((str(facts_of(node)["scope"]), function_name(node))):
                yield name, entry.geometry(call.layer).kind
    yield from ((attention.name, "attention") for attention in attentions(traced))
