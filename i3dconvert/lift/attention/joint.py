"""Rewrite the attentions that a recipe extends to other frames, node by node, and add the time embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from i3dconvert.errors import RecipeError
from i3dconvert.lift.attention.divided import AttentionBlock, NoBlockError, block_of, leading_alike
from i3dconvert.lift.attention.found import Attention, attentions, operands
from i3dconvert.lift.attention.fusing import NotFusedError, Step, steps_of
from i3dconvert.lift.attention.groups import (
    attend_jointly,
    attend_pairs,
    beyond,
    by_distance,
    middle,
    score_pairs,
    softmax_of_pairs,
)
from i3dconvert.lift.attention.nodes import Nodes, Parts
from i3dconvert.lift.attention.order import Orders
from i3dconvert.lift.counterparts import counterpart
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.fillings import Repeated, Zeros
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.lengths import above_of
from i3dconvert.lift.modules import TIME_EMBEDDINGS
from i3dconvert.lift.reading import Reading, is_image, rows
from i3dconvert.lift.rewriting import Layer, New, Rewriting
from i3dconvert.recipes import Attending, Geometry, Temporal

ATTENTION = Geometry("attention", 1, 1, 0)
EMBEDDED_FRAMES = 16
"""Rows of a time embedding's table, or its number of sinusoids."""

RELATIVE = "relative_position_bias_table"
"""The last name of tables of relative positions, as in the Swins of torchvision, timm and transformers."""


class AttentionOverTime:
    """Rewrites the nodes of attentions: `before` each node, in its place (`attended`), and after it (`behind`)."""

    def __init__(self, to: Rewriting, traced: Reading, orders: Orders) -> None:
        self.to = to
        self.found = {attention.last: attention for attention in attentions(traced)}
        for last, attention in self.found.items():
            if self._wanted(attention) is not None:
                self.found[last] = in_order(attention, orders)
        self.wanted = {last: self._wanted(attention) for last, attention in self.found.items()}
        wanted = {last: temporal for last, temporal in self.wanted.items() if temporal is not None}
        self.joint = [(self.found[last], temporal) for last, temporal in wanted.items() if not temporal.divided]
        """The attentions that the recipe extends to other frames."""
        self.parts = self._parts()
        self.steps, self.apart = self._steps(traced)
        self.blocks = {n: block for block in self._blocks(traced) for n in (block.norm, block.branch, block.sum)}
        self.embedded = self._before_attention() if to.style.time_embedding != "none" else None
        self.tables = self._tables()
        self.before_block: dict[fx.Node, New] = {}
        self.whole: dict[str, tuple[fx.Node, fx.Node]] = {}
        self.nodes = Nodes(to, self.parts, self.steps)

    def before(self, node: fx.Node) -> None:
        """Before a block, replace its tokens by those with the attention over time added."""
        block = self.blocks.get(node)
        if block is None or node is not block.norm:
            return
        to, name = self.to, block.name
        if to.layout_of(block.tokens) is Layout.PLAIN:
            raise self._misfit(block.attention, "its tokens do not vary with the image")
        fillings = {f"{name}.{key}": filling for key, filling in block.fillings.items()}
        dtype = to.root.get_parameter(fillings[f"{name}.proj.weight"].like[0]).dtype
        to.modules[name], to.fillings = block.module(dtype), to.fillings | fillings
        new = to.graph.create_node("call_module", name, (to.frames(block.tokens), to.clips), {}, name.replace(".", "_"))
        wanted = self.wanted[block.attention.last]
        assert wanted is not None
        self.before_block[block.tokens] = to.env[block.tokens]
        to.env[block.tokens] = (to.along_time(new, wanted, block.attention.name), Layout.FRAMES)

    def attended(self, node: fx.Node) -> New | None:
        """Rewrite a node of an attention over a group's frames; return None for other nodes."""
        if node not in self.parts:
            return None
        attention, temporal = self.parts[node]
        if attention.last in self.steps and node is not attention.last:
            return self.nodes.masks(node, attention, temporal)
        if attention.last in self.steps:
            new = self.nodes.as_fused(attention, temporal, self._bias_in_time(attention, temporal))
        elif attention.kind == "fused":
            new = self.nodes.fused(attention, temporal, self._bias_in_time(attention, temporal))
        elif attention.kind == "module" and temporal.shift:
            raise self._misfit(attention, "it does not support shifted groups")
        elif attention.kind == "module":
            new = self.nodes.module(attention, temporal)
        elif node is attention.first:
            new = self.nodes.over_frames(score_pairs, node, operands(node), temporal)
            temporal = replace(temporal, pairs=True)
        elif node is attention.softmax:
            query, bias = attention.inputs[0], self._bias_in_time(attention, temporal)
            values = (node.all_input_nodes[0], query)
            new = self.nodes.over_frames(softmax_of_pairs, node, values, temporal, self.nodes.rows(query), bias)
            facts_of(new)["like"] = 0
        elif node is attention.last:
            values = operands(node)
            new = self.nodes.over_frames(attend_pairs, node, values, temporal, self.nodes.rows(values[1]))
            facts_of(new)["like"] = 1
        else:
            return self.nodes.between_products(node, attention, temporal)
        facts_of(new).update({"temporal": temporal, "layer": attention.name, "of_pairs": node is not attention.last})
        if node is attention.last:
            facts_of(new)["scores"] = (
                0 if new.target is attend_jointly and self.nodes.is_held_in_parts(attention) else attention.scores
            )
            new = self.nodes.shifted_frames(new, node, temporal, back=True)
        return new, Layout.FRAMES

    def behind(self, node: fx.Node) -> None:
        """After a block, restore its tokens; add the time embedding; record attentions in the table of layers."""
        to, block = self.to, self.blocks.get(node)
        if block is not None and node is block.branch and block.leading:
            # A block adds to class tokens the mean over the frames.
            to.env[node] = (to.call(leading_alike, to.frames(node), to.clips, block.leading), Layout.FRAMES)
        if block is not None and node is block.sum:
            to.env[block.tokens] = self.before_block.pop(block.tokens)
        if node == self.embedded:
            to.env[node] = self._embed_time(node)
        if node in self.found:
            attention, temporal = self.found[node], self.wanted[node]
            along, attends = temporal or Temporal(), temporal is not None
            layer = Layer(attention.name, node.name, ATTENTION, along, attends, attention.refusal)
            to.layers[attention.name] = replace(layer, apart=self.apart.get(node, ""))

    def table(self, node: fx.Node, new: fx.Node) -> fx.Node:
        """Return a parameter; for a table repeated in time, the part within a frame, which the 2D code reads."""
        if node not in self.tables:
            return new
        attention, temporal = self.tables[node]
        distances = 2 * temporal.group - 1
        self.to.fillings[str(node.target)] = Repeated(distances)
        self.whole[attention.name] = (node, new)
        return self.to.plain(self.to.call(middle, self.to.plain(new), distances))

    # What the recipe says about each attention.

    def _wanted(self, attention: Attention) -> Attending | None:
        return None if attention.refusal else self.to.recipe.attending(attention.name)

    def _misfit(self, attention: Attention, why: str) -> RecipeError:
        return RecipeError(f"recipe {self.to.recipe.name!r} does not fit {attention.name}: {why}")

    def _parts(self) -> Parts:
        """Map the nodes of the 2D graph to their attention, if the recipe extends it to other frames."""
        nodes: Parts = {}
        for attention, temporal in self.joint:
            parts = (attention.first, attention.last, *attention.between)
            nodes |= {node: (attention, temporal) for node in parts if node is not None}
        return nodes

    def _blocks(self, traced: Reading) -> list[AttentionBlock]:
        """Return the blocks that get an attention over time; attentions without such a block stay within a frame."""
        blocks: list[AttentionBlock] = []
        refused: dict[fx.Node, str] = {}
        for last, attention in self.found.items():
            if (temporal := self.wanted[last]) is not None and temporal.divided:
                try:
                    blocks.append(block_of(traced, attention))
                except NoBlockError as error:
                    refused[last] = str(error)
        if refused and not blocks:
            last, why = next(iter(refused.items()))
            raise self._misfit(
                self.found[last],
                f"{why}; divided attention needs blocks tokens + attention(norm(tokens)), as in plain "
                "vision transformers",
            )
        self.found |= {last: replace(self.found[last], refusal=why) for last, why in refused.items()}
        self.wanted |= dict.fromkeys(refused)
        return blocks

    def _tables(self) -> Parts:
        """Return the tables of relative positions that are repeated in time, with their attentions."""
        tables = {}
        for attention, temporal in self.joint:
            if not temporal.relative:
                continue
            names = {n: str(n.target) for n in self.to.old.nodes if n.op == "get_attr"}
            own = [n for n, name in names.items() if name.startswith(f"{attention.name}.") and name.endswith(RELATIVE)]
            if len(own) != 1 or len(own[0].users) != 1:
                raise self._misfit(
                    attention,
                    f"it has no table of relative positions of its own ({RELATIVE}, as in Swin) to repeat",
                )
            tables[own[0]] = (attention, temporal)
        return tables

    def _bias_in_time(self, attention: Attention, temporal: Attending) -> fx.Node | None:
        """Return the bias that a repeated table adds to the scores of two frames, computed by the 2D network's code."""
        if attention.name not in self.whole:
            return None
        to, (bias, table), distances = self.to, self.whole[attention.name], 2 * temporal.group - 1
        copies = {bias: to.call(beyond, table, distances)}
        while (user := next(iter(bias.users))) in to.env and to.layout_of(user) is Layout.PLAIN:
            if any(n not in copies and _is_floating(facts_of(n)["value"]) for n in user.all_input_nodes):
                break  # a mask is added once
            copies[user] = to.copy(user, lambda n: copies[n] if n in copies else to.env[n][0])
            bias = user
        new = to.call(by_distance, copies[bias], distances)
        for plain in (*copies.values(), new):
            facts_of(plain)["plain"] = True
        return new

    # The time embedding.

    def _before_attention(self) -> fx.Node | None:
        """Return the last layer over images before the first attention that sees other frames, if there is one."""
        to = self.to
        first = next((n for n in to.old.nodes if n in self.parts or n in self.blocks), None)
        if first is None:
            return None
        above = above_of(first)
        layers = [n for n in to.old.nodes if n in above and is_image(n) and n.op == "call_module"]
        modules = {n: to.root.get_submodule(str(n.target)) for n in layers}
        lifted = [n for n, module in modules.items() if counterpart(module) is not None and [*module.parameters()]]
        if not lifted:
            raise RecipeError("there is no layer over images before the attention to add a time embedding to")
        last: fx.Node = lifted[-1]
        return last

    def _embed_time(self, node: fx.Node) -> New:
        """Add a table over frames to a clip."""
        to, name, channels = self.to, f"{node.target}_time", facts_of(node)["value"].shape[1]
        weight = next(iter(to.root.get_submodule(str(node.target)).parameters()))
        kind = TIME_EMBEDDINGS[to.style.time_embedding]
        to.modules[name] = kind(channels, EMBEDDED_FRAMES, device="meta", dtype=weight.dtype)
        like = next(key for key in to.root.state_dict() if key.startswith(f"{node.target}."))
        to.fillings[f"{name}.table"] = Zeros((channels, EMBEDDED_FRAMES), like=(like,))
        return to.graph.create_node("call_module", name, (to.clip(node),), {}, name.replace(".", "_")), Layout.CLIP

    def _steps(self, traced: Reading) -> tuple[dict[fx.Node, dict[fx.Node, Step]], dict[fx.Node, str]]:
        """Return, for each attention between two products, the steps on its scores, or why it stays two products."""
        steps: dict[fx.Node, dict[fx.Node, Step]] = {}
        apart: dict[fx.Node, str] = {}
        for attention, _ in self.joint:
            if attention.first is not None:
                try:
                    steps[attention.last] = steps_of(traced, attention)
                except NotFusedError as error:
                    apart[attention.last] = str(error)
        return steps, apart


def in_order(attention: Attention, orders: Orders) -> Attention:
    """Return an attention with a refusal if its rows are not surely grouped by image."""
    values = _values(attention)
    if all(map(orders.surely, values)):
        return attention
    known = all(map(orders.is_known, values))
    why = "its rows are not grouped by image (heads or windows come before the images)"
    return replace(attention, refusal=why if known else "it is unknown whether its rows are grouped by image")


def _values(attention: Attention) -> list[fx.Node]:
    """Return the inputs of an attention."""
    nodes = attention.last.all_input_nodes + (attention.first.all_input_nodes if attention.first is not None else [])
    return [node for node in nodes if rows(node)]


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
