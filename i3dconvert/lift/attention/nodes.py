"""The nodes of an attention over the frames of a group: a fused operation, a module, or product, softmax, product."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from i3dconvert.errors import LiftError
from i3dconvert.lift import layout
from i3dconvert.lift.attention.found import Attention, operands
from i3dconvert.lift.attention.fusing import Step, chance, chance_of, merge, nothing, shared, split
from i3dconvert.lift.attention.groups import Groups, another, attend_jointly, for_each_key, frames_of, shifted, tokens
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.lengths import nearest_above
from i3dconvert.lift.reading import PerSize, is_image, one_each, place, rows
from i3dconvert.lift.rewriting import New, Rewriting
from i3dconvert.recipes import Attending

Parts = dict[fx.Node, tuple[Attention, Attending]]
"""The attention of each node of the 2D graph, if the recipe extends it to other frames."""


class Nodes:
    """Adds the nodes of attentions to the lifted graph."""

    def __init__(self, to: Rewriting, parts: Parts, steps: dict[fx.Node, dict[fx.Node, Step]]) -> None:
        self.to, self.parts, self.steps = to, parts, steps
        self.repeated: dict[tuple[fx.Node, str], fx.Node] = {}

    def groups(self, node: fx.Node, temporal: Attending) -> Groups:
        return Groups(self.to.clips, self.rows(node), temporal.group, temporal.shift)  # type: ignore[arg-type]

    def rows(self, node: fx.Node) -> Any:
        """Return the rows that a value has for each frame; computed at each call if they depend on the size."""
        if not isinstance(facts_of(node)["batch"][0], PerSize):
            return rows(node)
        known = [n for n in nearest_above(node) if n in self.to.env and self.to.layout_of(n) is not Layout.PLAIN]
        likes = [n for n in known if is_image(n) or one_each(facts_of(n)["value"], facts_of(n)["batch"])]
        windows = [n for n in known if n not in self.parts and rows(n) and isinstance(facts_of(n)["batch"][0], PerSize)]
        stage = {n: self.to.sizes.stage(self.to.env[n][0]) for n in (*likes, *windows)}
        pairs = ((within, like) for within in windows for like in likes if stage[within] == stage[like])
        within, like = next(pairs, (None, None))
        if like is None or within is None:
            raise LiftError(f"{place(node)} works on windows, but no value shows how many there are")
        each = self.to.call(rows_each, self.to.frames(within), self.to.frames(like), rows(node), rows(within))
        return self.to.plain(each)

    def over_frames(
        self, function: Any, node: fx.Node, values: tuple[fx.Node, ...], temporal: Attending, *rest: Any
    ) -> fx.Node:
        """Call a function on the frames of `values`, which are shifted with the groups."""
        given = [self.to.frames(n) if n in self.parts else self.moved(n, temporal) for n in values]
        return self.to.call(function, *given, self.groups(values[0], temporal), *rest, name=node.name)

    def moved(self, node: fx.Node, temporal: Attending) -> fx.Node:
        return self.shifted_frames(self.to.frames(node), node, temporal)

    def shifted_frames(self, new: fx.Node, node: fx.Node, temporal: Attending, back: bool = False) -> fx.Node:
        """Return a 2D node's value over frames, with the frames shifted with the groups, or `back`."""
        if not temporal.shift:
            return new
        groups = self.groups(node, temporal)
        return self.to.call(shifted, new, groups._replace(shift=-groups.shift) if back else groups)

    def between_products(self, node: fx.Node, attention: Attention, temporal: Attending) -> New:
        """Compute an operation on the scores for each pair of frames; for other values, the query's frame counts."""
        inside = [n for n in node.all_input_nodes if n in attention.between or n is attention.first]

        def given(source: fx.Node) -> fx.Node:
            if source in inside or self.to.layout_of(source) is Layout.PLAIN:
                return self.to.sizes.beside(source, inside)
            if (source, attention.name) not in self.repeated:
                repeated = self.over_frames(for_each_key, source, (source,), temporal)
                self.to.along_time(repeated, replace(temporal, pairs=True), attention.name)
                self.repeated[source, attention.name] = repeated
            return self.repeated[source, attention.name]

        if node.op == "call_module":
            self.to.modules.setdefault(str(node.target), self.to.root.get_submodule(str(node.target)))
        new = self.to.copy(node, given)
        facts_of(new)["of_pairs"] = True
        return new, Layout.FRAMES

    def masks(self, node: fx.Node, attention: Attention, temporal: Attending) -> New:
        """Replace scores by what the 2D network's code computes from scores of zero: their mask."""
        to, (query, *_) = self.to, attention.inputs
        step = self.steps[attention.last].get(node)
        if step is None:
            return to.plain(to.call(nothing, to.frames(query), name=node.name)), Layout.PLAIN
        before = next(n for n in node.all_input_nodes if n in self.parts)
        mask, is_in = to.env[before]
        dims = facts_of(before)["value"].dim()
        if step.kind in ("split", "merge"):
            mask = to.plain(to.call(split if step.kind == "split" else merge, mask, dims, name=node.name))
        elif step.kind == "scale" and mask.target is not nothing:
            mask = to.call(step.function, mask, self._other(step.of, query))
        elif step.kind in ("sum", "fill"):
            other, follows = self._other(step.of, query), isinstance(step.of, fx.Node) and rows(step.of)
            if follows and to.layout_of(step.of) is not Layout.PLAIN:
                other, is_in = self.moved(step.of, temporal), Layout.FRAMES
            value = tuple(arg for arg in node.args if arg not in (before, step.of)) if step.kind == "fill" else ()
            mask = to.call(step.function, mask, other, *fx.node.map_arg(value, to.frames), name=node.name)
        return (to.plain(mask) if is_in is Layout.PLAIN else mask), is_in

    def _other(self, of: Any, beside: fx.Node) -> Any:
        return self.to.sizes.beside(of, [beside]) if isinstance(of, fx.Node) else of

    def as_fused(self, attention: Attention, temporal: Attending, bias: fx.Node | None) -> fx.Node:
        """Compute product, softmax, product as one operation: scale the query, and put the rest into one mask."""
        to, last, steps = self.to, attention.last, self.steps[attention.last]
        (query, keys, value), weights = attention.inputs, operands(last)[0]
        asking, scale, drops = self.moved(query, temporal), 1.0, None
        for step in steps.values():
            if step.kind == "scale" and not isinstance(step.of, fx.Node):
                scale = step.function(scale, step.of)
            elif step.kind == "scale":
                asking = to.call(step.function, asking, self._other(step.of, query))
            elif step.kind == "dropout" and isinstance(step.of, str):
                to.modules.setdefault(step.of, to.root.get_submodule(step.of))
                drops = to.call(chance, to.graph.create_node("get_attr", step.of))
            elif step.kind == "dropout":
                drops = to.call(chance_of, *fx.node.map_arg(step.of, to.frames))
        if drops is not None:
            to.plain(drops)
        asked = to.graph.create_node("call_method", "transpose", (self.moved(keys, temporal), -2, -1))
        mask: fx.Node | None = to.env[weights][0]
        mask = None if mask.target is nothing else mask  # type: ignore[union-attr]
        options = {"scale": scale, "dropout_p": 0.0 if drops is None else drops}
        given: tuple[Any, ...] = (asking, asked, self.moved(value, temporal), mask, self.groups(query, temporal))
        return to.call(attend_jointly, *given, bias, options, name=last.name)

    @staticmethod
    def is_held_in_parts(attention: Attention) -> bool:
        """Return whether torch's fused forms, which hold no scores, apply: queries and values have the same size."""
        query, _, value = attention.inputs
        return bool(facts_of(query)["value"].shape[-1] == facts_of(value)["value"].shape[-1])

    def fused(self, attention: Attention, temporal: Attending, bias: fx.Node | None) -> fx.Node:
        to, node = self.to, attention.last
        mask = layout.argument(node, "attn_mask", 3)
        options = {name: node.kwargs[name] for name in ("scale", "enable_gqa") if node.kwargs.get(name) is not None}
        options["dropout_p"] = layout.argument(node, "dropout_p", 4, 0.0)
        given = [self.moved(n, temporal) for n in attention.inputs]
        if isinstance(mask, fx.Node):
            mask = self._repeating(mask) if to.layout_of(mask) is Layout.PLAIN else self.moved(mask, temporal)
        groups = self.groups(attention.inputs[0], temporal)
        return to.call(attend_jointly, *given, mask, groups, bias, fx.node.map_arg(options, to.frames), name=node.name)

    def _repeating(self, mask: fx.Node) -> fx.Node:
        """Return a mask that was expanded to all rows as a repeating one, such as Swin's, for an image's windows."""
        to, chain = self.to, shared(mask)
        made: dict[fx.Node, fx.Node] = {}
        for node in chain or ():
            first, *rest = (made.get(n) or to.frames(n) if isinstance(n, fx.Node) else n for n in node.args)
            assert isinstance(first, fx.Node)
            dims = facts_of(node.all_input_nodes[0])["value"].dim()
            if layout.operation(node) in ("add", "iadd"):
                made[node] = to.plain(to.call(operator.add, first, *rest))
            elif (more := facts_of(node)["value"].dim() - dims) and layout.operation(node) != "expand":
                made[node] = to.plain(to.call(split if more > 0 else merge, first, dims))
            else:
                made[node] = first
        return made.get(mask) or to.frames(mask)

    def module(self, attention: Attention, temporal: Attending) -> fx.Node:
        to, node, name = self.to, attention.last, str(attention.last.target)
        to.modules.setdefault(name, to.root.get_submodule(name))
        query, key, value = attention.inputs
        groups = self.groups(query, temporal)
        given = {n: to.call(tokens, to.frames(n), groups) for n in (query, key, value)}
        args = (to.call(another, given[query]), given[key], given[value], *fx.node.map_arg(node.args[3:], to.frames))
        rest = {k: v for k, v in node.kwargs.items() if k not in ("query", "key", "value")}
        joint = to.graph.create_node("call_module", name, args, fx.node.map_arg(rest, to.frames), node.name)
        attended = to.call(operator.getitem, joint, 0)
        return to.call(layout.together, to.call(frames_of, attended, to.frames(query), groups), None)


def rows_each(frames: Tensor, like: Tensor, times: int, of: int) -> Any:
    """How many rows there are for each frame where `frames` has `of` and another value `times`; `like` has one."""
    return frames.shape[0] // like.shape[0] * times // of
