"""Lift or fold: rewrite the graph of a 2D network into one over clips.

An operation with a 3D counterpart is lifted and works on clips; every other operation is left as it is and works on
frames. Element-wise operations, and those along the channels, follow their inputs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from i3dconvert.errors import LiftError, RecipeError
from i3dconvert.fillings import Filling, Repeated, Zeros
from i3dconvert.kernels import Style
from i3dconvert.lift import layout
from i3dconvert.lift.attention import (
    Attention,
    attend_jointly,
    attend_pairs,
    attentions,
    beyond,
    by_distance,
    for_each_key,
    frames_of,
    middle,
    operands,
    score_pairs,
    shifted,
    softmax_of_pairs,
    tokens,
)
from i3dconvert.lift.canonical import canonical, function_name, leaves
from i3dconvert.lift.divided import Block, NoBlockError, block_of, leading_alike
from i3dconvert.lift.layers import ANY_RANK, UPSAMPLES, Counterpart, counterpart, full_name
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.lengths import above_of, minimum_frames
from i3dconvert.lift.modules import TIME_EMBEDDINGS, SpatialPad
from i3dconvert.lift.sizes import BatchSizes
from i3dconvert.lift.trace import BATCH, Traced, place, reason
from i3dconvert.recipes import Attending, Geometry, InsertedPool, Recipe, Temporal

ATTENTION = Geometry("attention", 1, 1, 0)
EMBEDDED_FRAMES = 16
"""Of a time embedding's table; of one by sinusoids, as many of those."""

RELATIVE = "relative_position_bias_table"
"""The last name of tables of relative positions, as Swin has them in torchvision, timm and transformers."""

_POOLS = {"max_pool": nn.MaxPool3d, "avg_pool": nn.AvgPool3d}

Ties = Sequence[Sequence[str]]

_OF_ANY_RANK = ("dtype", "device")
"""What is the same of a kernel in 2D and in 3D."""


@dataclass(frozen=True)
class Layer:
    """A layer that a recipe has a say in. `lifted` is false where its input is no clip (windows, tables)."""

    name: str
    node: str
    geometry: Geometry
    temporal: Temporal
    lifted: bool = True
    refusal: str = ""
    """Why an attention can't see other frames, whatever the recipe says."""


@dataclass
class Lifted:
    """The lifted graph over `modules`, not yet filled with weights."""

    graph: fx.Graph
    modules: dict[str, nn.Module]
    layers: list[Layer]
    minimum_frames: int = 1
    fillings: dict[str, Filling] = field(default_factory=dict)
    """By state-dict key, for each tensor that gains a temporal axis or has no 2D form."""
    any_size: bool = False
    """Whether all values are images or vectors, all operations torch's own and no padding computed from the size."""
    folded: int = 0
    """How many times a clip is folded into frames."""


class _Lift:
    """One pass over the 2D graph. `env` holds, for each 2D node, its 3D node and the layout that it is in."""

    def __init__(self, traced: Traced, recipe: Recipe, style: Style, ties: Ties) -> None:
        self.old, self.root, self.recipe, self.style, self.ties = traced.graph, traced.root, recipe, style, ties
        self.graph = fx.Graph()
        self.sizes = BatchSizes(self.graph, self.frames)
        self.env: dict[fx.Node, tuple[fx.Node, Layout]] = {}
        self.converted: dict[tuple[fx.Node, Layout], fx.Node] = {}
        self.modules: dict[str, nn.Module] = {}
        self.layers: dict[str, Layer] = {}
        self.fillings: dict[str, Filling] = {}
        self.found = {attention.last: attention for attention in attentions(traced)}
        self.told = {attention.last: self._told(attention) for attention in self.found.values()}
        self.attending = self._attending()
        self.blocks = {n: block for block in self._blocks(traced) for n in (block.norm, block.branch, block.sum)}
        self.embedded = self._before_attention() if style.time_embedding != "none" else None
        self.tables = self._tables()
        self.before_block: dict[fx.Node, tuple[fx.Node, Layout]] = {}
        self.whole: dict[str, tuple[fx.Node, fx.Node]] = {}
        self.repeated: dict[tuple[fx.Node, str], fx.Node] = {}
        self.pools = {_last_node(traced.graph, pool.after): pool for pool in recipe.pools}
        self.clips: fx.Node

    def run(self) -> Lifted:
        for node in self.old.nodes:
            if node in self.blocks:
                self.attend_over_time(node, self.blocks[node])
            try:
                result = self.attended(node) if node in self.attending else getattr(self, node.op)(node)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise LiftError(f"{place(node)} can't be lifted: {reason(error)}") from error
            if result is None:
                continue
            self.env[node] = result
            if node in self.blocks:
                self.mix_leading(node, self.blocks[node])
            if node == self.embedded:
                self.env[node] = self.embed_time(node)
            if node in self.found:
                self.note_attention(node)
            if node in self.pools:
                self.env[node] = self.insert_pool(node, self.pools[node])
            if node.op in ("call_module", "call_function", "call_method") and layout.mutates(node, self.root):
                self.alias(node)
        self.tie()
        self.read_in_2d()
        _drop_unused_sizes(self.graph)
        self.graph.lint()
        folds = sum(node.target is layout.fold for node in self.graph.nodes)
        return Lifted(self.graph, self.modules, list(self.layers.values()), fillings=self.fillings, folded=folds)

    def tie(self) -> None:
        """A kernel under several names is inflated under them all, if its layers become 3D alike."""
        for names in self.ties:
            known = {self.fillings[name] for name in names if name in self.fillings}
            free = [name for name in names if name.rpartition(".")[0] not in self.modules]
            if len(known) == 1:
                self.fillings |= dict.fromkeys(free, known.pop())

    def read_in_2d(self) -> None:
        """A kernel that the network's code reads itself is a 2D one there, whatever its layer has become."""
        for node in self.graph.nodes:
            filling = self.fillings.get(str(node.target)) if node.op == "get_attr" else None
            if filling is None or not filling.is_kernel:
                continue
            users = [user for user in node.users if user.target is not getattr or user.args[1] not in _OF_ANY_RANK]
            if users:
                with self.graph.inserting_after(node):
                    kernel = self.graph.call_function(layout.sum_of_taps, (node, filling.copies))
                kernel.meta["plain"] = True
                for user in users:
                    user.replace_input_with(node, kernel)

    # What a value is, and how to have it in the layout that an operation wants.

    def layout_of(self, node: fx.Node) -> Layout:
        return self.env[node][1]

    def frames(self, node: fx.Node) -> fx.Node:
        return self.convert(node, Layout.FRAMES)

    def clip(self, node: fx.Node) -> fx.Node:
        return self.convert(node, Layout.CLIP)

    def convert(self, node: fx.Node, wanted: Layout) -> fx.Node:
        new, have = self.env[node]
        if have in (wanted, Layout.PLAIN):
            return new
        if (new, wanted) not in self.converted:
            self.converted[new, wanted] = self.convert_value(new, node.meta["value"], wanted)
        return self.converted[new, wanted]

    def convert_value(self, new: fx.Node, value: Any, wanted: Layout) -> fx.Node:
        if isinstance(value, tuple | list):
            items = [
                self.convert_value(self.call(operator.getitem, new, i), item, wanted) for i, item in enumerate(value)
            ]
            return self.call(layout.together, *items)
        if wanted is Layout.FRAMES:
            return self.call(layout.fold, new, name=f"{new.name}_frames")
        return self.call(layout.unfold, new, self.clips, name=f"{new.name}_clip")

    def call(self, function: Any, *args: Any, name: str | None = None) -> fx.Node:
        return self.graph.create_node("call_function", function, args, {}, name)

    def is_image(self, node: Any) -> bool:
        """Whether a 2D value is `(batch, C, H, W)`, so that it has a clip layout."""
        value = node.meta["value"]
        if isinstance(value, tuple | list):
            return all(isinstance(item, Tensor) and item.dim() == 4 and len(item) == BATCH for item in value)
        return isinstance(value, Tensor) and value.dim() == 4 and len(value) == BATCH

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

    def placeholder(self, node: fx.Node) -> tuple[fx.Node, Layout]:
        clip = self.graph.placeholder("clip")
        channels = node.meta["value"].shape[1]
        checked = self.call(layout.check_clip, clip, channels, 1, name="checked_clip")
        self.clips = self.graph.create_node("call_method", "size", (checked, 0), name="clips")
        return checked, Layout.CLIP

    def get_attr(self, node: fx.Node) -> tuple[fx.Node, Layout]:
        new = self.graph.get_attr(str(node.target))
        if node in self.tables:
            new = self.repeat_in_time(node, new)
        return new, Layout.PLAIN

    def call_module(self, node: fx.Node) -> tuple[fx.Node, Layout]:
        module: Any = self.root.get_submodule(str(node.target))
        entry = counterpart(module)
        image = node.args[0] if node.args else None
        liftable = isinstance(image, fx.Node) and self.is_image(image) and self.layout_of(image) is not Layout.PLAIN
        if entry is not None and liftable:
            assert isinstance(image, fx.Node)
            return self.lifted(node, module, entry, image)
        if entry is not None and entry.geometry is not None:
            name = str(node.target)
            self.layers[name] = Layer(name, node.name, entry.geometry(module), Temporal(), lifted=False)
        self.modules.setdefault(str(node.target), module)
        if full_name(module) in ANY_RANK:
            return self.following(node)
        if full_name(module) in UPSAMPLES and liftable:
            return self.enlarged(node, str(node.target), module.mode, module.align_corners)
        return self.folded(node)

    def lifted(self, node: fx.Node, module: nn.Module, entry: Counterpart, image: fx.Node) -> tuple[fx.Node, Layout]:
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
            self.fillings |= {f"{name}.{key}": filling.of(name) for key, filling in fillings.items()}
        new = self.graph.create_node("call_module", name, (self.clip(image),), {}, node.name)
        new.meta |= {"temporal": temporal, "layer": name}
        return new, Layout.CLIP

    # Attention over the tokens of several frames.

    def _told(self, attention: Attention) -> Attending | None:
        """What the recipe says of an attention that can see other frames."""
        return None if attention.refusal else self.recipe.attending(attention.name)

    def _attending(self) -> dict[fx.Node, tuple[Attention, Attending]]:
        """The attention that each node of the 2D graph is part of, where the recipe has it attend to other frames."""
        nodes: dict[fx.Node, tuple[Attention, Attending]] = {}
        for attention in self.found.values():
            temporal = self.told[attention.last]
            if temporal is not None and not temporal.divided:
                parts = (attention.first, attention.last, *attention.between)
                nodes |= {node: (attention, temporal) for node in parts if node is not None}
        return nodes

    def _blocks(self, traced: Traced) -> list[Block]:
        """The blocks that get an attention over time; an attention that is in none stays within a frame."""
        blocks: list[Block] = []
        refused: dict[fx.Node, str] = {}
        for last, attention in self.found.items():
            if (told := self.told[last]) is not None and told.divided:
                try:
                    blocks.append(block_of(traced, attention))
                except NoBlockError as error:
                    refused[last] = str(error)
        if refused and not blocks:
            last, why = next(iter(refused.items()))
            raise RecipeError(
                f"recipe {self.recipe.name!r} does not fit {self.found[last].name}: {why}; attention over time at each "
                "place is for blocks tokens + attention(norm(tokens)), as in plain vision transformers"
            )
        self.found |= {last: replace(self.found[last], refusal=why) for last, why in refused.items()}
        self.told |= dict.fromkeys(refused)
        return blocks

    def _tables(self) -> dict[fx.Node, tuple[Attention, Attending]]:
        """The tables of relative positions that are repeated in time, and the attentions that they are of."""
        tables = {}
        for attention, temporal in {id(of): of for of in self.attending.values()}.values():
            if not temporal.relative:
                continue
            own = [n for n in self.old.nodes if n.op == "get_attr" and f"{n.target}".startswith(f"{attention.name}.")]
            found = [n for n in own if str(n.target).endswith(RELATIVE)]
            if len(found) != 1 or len(found[0].users) != 1:
                raise RecipeError(
                    f"recipe {self.recipe.name!r} does not fit {attention.name}: it has no table of relative positions "
                    f"of its own ({RELATIVE}, as Swin has) to repeat over time"
                )
            tables[found[0]] = (attention, temporal)
        return tables

    def repeat_in_time(self, node: fx.Node, table: fx.Node) -> fx.Node:
        """The part of a table that is within a frame, which the 2D network's code reads."""
        distances = 2 * self.tables[node][1].group - 1
        self.fillings[str(node.target)] = Repeated(distances)
        self.whole[self.tables[node][0].name] = (node, table)
        within = self.call(middle, table, distances)
        within.meta["plain"] = table.meta["plain"] = True
        return within

    def in_time(self, attention: Attention, temporal: Attending) -> tuple[Any, ...]:
        return temporal.shift, self.bias_in_time(attention, temporal)

    def bias_in_time(self, attention: Attention, temporal: Attending) -> fx.Node | None:
        """What a repeated table adds to the scores of two frames, by what the 2D network makes of it in one."""
        if attention.name not in self.whole:
            return None
        bias, table = self.whole[attention.name]
        distances = 2 * temporal.group - 1
        copies = {bias: self.call(beyond, table, distances)}
        while (user := next(iter(bias.users))) in self.env and self.layout_of(user) is Layout.PLAIN:
            if any(n not in copies and _is_floating(n.meta["value"]) for n in user.all_input_nodes):
                break  # a mask, which is added once
            copies[user] = self.copy(user, lambda n: copies[n] if n in copies else self.env[n][0])
            bias = user
        new = self.call(by_distance, copies[bias], distances)
        for plain in (*copies.values(), new):
            plain.meta["plain"] = True
        return new

    def _before_attention(self) -> fx.Node | None:
        """The last layer over images in front of the first attention that sees other frames, if there is one."""
        first = next((n for n in self.old.nodes if n in self.attending or n in self.blocks), None)
        if first is None:
            return None
        above = above_of(first)
        layers = [n for n in self.old.nodes if n in above and self.is_image(n) and n.op == "call_module"]
        modules = {n: self.root.get_submodule(str(n.target)) for n in layers}
        lifted = [n for n, module in modules.items() if counterpart(module) is not None and [*module.parameters()]]
        if not lifted:
            raise RecipeError("there is no layer over images in front of the attention to put a time embedding behind")
        last: fx.Node = lifted[-1]
        return last

    def embed_time(self, node: fx.Node) -> tuple[fx.Node, Layout]:
        """Add a table over frames to a clip."""
        name, channels = f"{node.target}_time", node.meta["value"].shape[1]
        weight = next(iter(self.root.get_submodule(str(node.target)).parameters()))
        kind = TIME_EMBEDDINGS[self.style.time_embedding]
        self.modules[name] = kind(channels, EMBEDDED_FRAMES, device="meta", dtype=weight.dtype)
        like = next(key for key in self.root.state_dict() if key.startswith(f"{node.target}."))
        self.fillings[f"{name}.table"] = Zeros((channels, EMBEDDED_FRAMES), like=(like,))
        new = self.graph.create_node("call_module", name, (self.clip(node),), {}, name.replace(".", "_"))
        return new, Layout.CLIP

    def note_attention(self, node: fx.Node) -> None:
        """Enter an attention into the table of layers."""
        name, told = self.found[node].name, self.told[node]
        self.layers[name] = Layer(
            name, node.name, ATTENTION, told or Temporal(), told is not None, self.found[node].refusal
        )

    def attend_over_time(self, node: fx.Node, block: Block) -> None:
        """In front of a block, its tokens with what the attention over time adds to them in the place of its tokens."""
        if node is not block.norm:
            return
        if self.layout_of(block.tokens) is Layout.PLAIN:
            raise RecipeError(
                f"recipe {self.recipe.name!r} does not fit {block.attention.name}: its tokens do not vary"
            )
        fillings = {f"{block.name}.{key}": filling for key, filling in block.fillings.items()}
        dtype = self.root.get_parameter(fillings[f"{block.name}.proj.weight"].like[0]).dtype
        self.modules[block.name], self.fillings = block.module(dtype), self.fillings | fillings
        args = (self.frames(block.tokens), self.clips)
        new = self.graph.create_node("call_module", block.name, args, {}, block.name.replace(".", "_"))
        new.meta |= {"temporal": self.told[block.attention.last], "layer": block.attention.name}
        self.before_block[block.tokens] = self.env[block.tokens]
        self.env[block.tokens] = (new, Layout.FRAMES)

    def mix_leading(self, node: fx.Node, block: Block) -> None:
        """What a block adds to class tokens, as their mean over the frames; behind it, its tokens as they were."""
        if node is block.branch and block.leading:
            alike = self.call(leading_alike, self.frames(node), self.clips, block.leading)
            self.env[node] = (alike, Layout.FRAMES)
        if node is block.sum:
            self.env[block.tokens] = self.before_block.pop(block.tokens)

    def attended(self, node: fx.Node) -> tuple[fx.Node, Layout]:
        """A node of an attention, over the frames of a group."""
        attention, temporal = self.attending[node]
        if attention.kind == "fused":
            new = self.attend_jointly(node, temporal, self.in_time(attention, temporal))
        elif attention.kind == "module" and temporal.shift:
            raise RecipeError(f"recipe {self.recipe.name!r} does not fit {attention.name}: its groups can't be shifted")
        elif attention.kind == "module":
            new = self.attend_in_module(node, temporal.group)
        elif node is attention.first:
            query, keys = operands(node)
            new = self.over_frames(score_pairs, node, [query, keys], [query], temporal)
            temporal = replace(temporal, pairs=True)
        elif node is attention.softmax:
            assert attention.first is not None
            query = operands(attention.first)[0]
            values, in_time = [node.all_input_nodes[0], query], self.in_time(attention, temporal)
            new = self.over_frames(softmax_of_pairs, node, values, None, temporal, in_time)
            new.meta["like"] = 0
        elif node is attention.last:
            new = self.over_frames(attend_pairs, node, [*operands(node)], None, temporal)
            new.meta["like"] = 1
        else:
            return self.between_products(node, attention, temporal)
        new.meta |= {"temporal": temporal, "layer": attention.name, "of_pairs": node is not attention.last}
        if node is attention.last:
            new.meta["scores"] = attention.scores
        if node is attention.last and temporal.shift:
            new = self.shifted(new, node, temporal, back=True)
        return new, Layout.FRAMES

    def over_frames(
        self,
        function: Any,
        node: fx.Node,
        values: list[Any],
        of: list[Any] | None,
        temporal: Attending,
        in_time: tuple[Any, ...] = (),
    ) -> fx.Node:
        """A function over frames of `values`, and how many rows those (or those `of`) have for each frame."""
        rows = [len(value.meta["value"]) // BATCH for value in of or values]
        given = [self.frames(n) if n in self.attending else self.shifted(self.frames(n), n, temporal) for n in values]
        return self.call(function, *given, self.clips, *rows, temporal.group, *in_time, name=node.name)

    def shifted(self, new: fx.Node, node: fx.Node, temporal: Attending, back: bool = False) -> fx.Node:
        """The value of a 2D node over frames, its frames moved as the groups are shifted, or moved `back`."""
        if not temporal.shift:
            return new
        rows, by = len(node.meta["value"]) // BATCH, -temporal.shift if back else temporal.shift
        return self.call(shifted, new, self.clips, rows, temporal.group, by)

    def between_products(self, node: fx.Node, attention: Attention, temporal: Attending) -> tuple[fx.Node, Layout]:
        """What is computed of the scores, for each pair of frames; what comes from elsewhere is that of the query's."""
        inside = [n for n in node.all_input_nodes if n in attention.between or n is attention.first]

        def given(source: fx.Node) -> fx.Node:
            if source in inside or self.layout_of(source) is Layout.PLAIN:
                return self.sizes.beside(source, inside)
            if (source, attention.name) not in self.repeated:
                repeated = self.over_frames(for_each_key, source, [source], None, temporal)
                repeated.meta |= {"temporal": replace(temporal, pairs=True), "layer": attention.name}
                self.repeated[source, attention.name] = repeated
            return self.repeated[source, attention.name]

        if node.op == "call_module":
            self.modules.setdefault(str(node.target), self.root.get_submodule(str(node.target)))
        new = self.copy(node, given)
        new.meta["of_pairs"] = True
        return new, Layout.FRAMES

    def attend_jointly(self, node: fx.Node, temporal: Attending, in_time: tuple[Any, ...]) -> fx.Node:
        query, key, value = (layout.argument(node, name, i) for i, name in enumerate(("query", "key", "value")))
        mask, dropout = layout.argument(node, "attn_mask", 3), layout.argument(node, "dropout_p", 4, 0.0)
        options = {name: node.kwargs[name] for name in ("scale", "enable_gqa") if node.kwargs.get(name) is not None}
        given = [self.shifted(self.frames(n), n, temporal) for n in (query, key, value)]
        if isinstance(mask, fx.Node):
            varies = self.layout_of(mask) is not Layout.PLAIN
            mask = self.shifted(self.frames(mask), mask, temporal) if varies else self.frames(mask)
        dropout, options = fx.node.map_arg((dropout, options), self.frames)
        rows = len(query.meta["value"]) // BATCH
        args = (*given, mask, self.clips, rows, temporal.group, dropout, options, *in_time)
        return self.call(attend_jointly, *args, name=node.name)

    def attend_in_module(self, node: fx.Node, span: int) -> fx.Node:
        name, count = str(node.target), len(node.args)
        self.modules.setdefault(name, self.root.get_submodule(name))
        query, key, value = (layout.argument(node, name, i) for i, name in enumerate(("query", "key", "value")))
        given = {n: self.call(tokens, self.frames(n), self.clips, 1, span) for n in (query, key, value)}
        args = (given[query], given[key], given[value], *fx.node.map_arg(node.args[3:count], self.frames))
        rest = {k: v for k, v in node.kwargs.items() if k not in ("query", "key", "value")}
        joint = self.graph.create_node("call_module", name, args, fx.node.map_arg(rest, self.frames), node.name)
        attended = self.call(operator.getitem, joint, 0)
        apart = self.call(frames_of, attended, self.frames(query), self.clips, 1, span)
        return self.call(layout.together, apart, None)

    def insert_pool(self, node: fx.Node, pool: InsertedPool) -> tuple[fx.Node, Layout]:
        name = f"{pool.after}_temporal_pool"
        temporal = Temporal(pool.kernel, pool.stride, pool.padding, pool.padding)
        self.modules[name] = _POOLS[pool.kind]((pool.kernel, 1, 1), (pool.stride, 1, 1), (pool.padding, 0, 0))
        self.layers[name] = Layer(name, name.replace(".", "_"), Geometry(pool.kind, 1, 1, 0), temporal)
        new = self.graph.create_node("call_module", name, (self.clip(node),), {}, name.replace(".", "_"))
        new.meta |= {"temporal": temporal, "layer": name}
        return new, Layout.CLIP

    def call_function(self, node: fx.Node) -> tuple[fx.Node, Layout]:
        if layout.operation(node) == "interpolate" and self.is_image(node.args[0]):
            mode, corners = layout.argument(node, "mode", 3, "nearest"), layout.argument(node, "align_corners", 4)
            return self.enlarged(node, function_name(node), mode, corners)
        return self.following(node) if layout.keeps_clip(node) else self.folded(node)

    call_method = call_function

    def enlarged(self, node: fx.Node, name: str, mode: str, corners: bool | None) -> tuple[fx.Node, Layout]:
        """An interpolation: of each frame, and then of time where the recipe says so."""
        ratio = _upsampling(node)
        shrinks = ratio < 1
        geometry = Geometry("upsample", 1, math.ceil(1 / ratio if shrinks else ratio), 0)
        temporal = self.recipe.temporal(name, geometry)
        result = self.folded(node)
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
            raise RecipeError(f"recipe {self.recipe.name!r} does not fit {name}: time can't grow by {ratio:.4g}")
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
        if not self.is_image(candidate) or self.layout_of(candidate) is Layout.PLAIN:
            return False
        value = candidate.meta["value"]
        return isinstance(value, Tensor) and value.shape[2:] == node.meta["value"].shape[2:]

    def following(self, node: fx.Node) -> tuple[fx.Node, Layout]:
        """An operation that works in either layout: on clips if any input is one and all can be."""
        inputs = node.all_input_nodes
        layouts = [self.layout_of(n) for n in inputs]
        varying = [n for n, have in zip(inputs, layouts, strict=True) if have is not Layout.PLAIN]
        plain = [n for n, have in zip(inputs, layouts, strict=True) if have is Layout.PLAIN]
        as_clip = (
            Layout.CLIP in layouts
            and all(self.is_image(n) for n in varying)
            and all(_broadcasts(n.meta["value"]) for n in plain)
        )
        if not as_clip:
            return self.folded(node)
        return self.copy(node, lambda n: self.clip(n) if n in varying else self.beside_clips(n)), Layout.CLIP

    def beside_clips(self, node: fx.Node) -> fx.Node:
        """A parameter that broadcasts over images, shaped to broadcast over clips: `(C, 1, 1)` → `(C, 1, 1, 1)`."""
        new, value = self.env[node][0], node.meta["value"]
        if not isinstance(value, Tensor) or value.dim() < 3:
            return new
        beside = self.graph.create_node("call_method", "unsqueeze", (new, -3))
        beside.meta["beside_clips"] = True
        return beside

    def folded(self, node: fx.Node) -> tuple[fx.Node, Layout]:
        varying = [n for n in node.all_input_nodes if self.layout_of(n) is not Layout.PLAIN]
        new = self.copy(node, lambda n: self.sizes.beside(n, varying))
        if varying and _varies(node.meta["value"]):
            return new, Layout.FRAMES
        new.meta["plain"] = True
        self.sizes.note(node, varying)
        return new, Layout.PLAIN

    def copy(self, node: fx.Node, value: Any) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        return self.graph.create_node(node.op, node.target, args, kwargs, node.name)

    def output(self, node: fx.Node) -> None:
        self.graph.output(fx.node.map_arg(node.args[0], self.result))

    def result(self, node: fx.Node) -> fx.Node:
        (new, have), value = self.env[node], node.meta["value"]
        # What is made from the sizes alone (positions of each image) has a row for each frame as well.
        of_sizes = have is Layout.PLAIN and isinstance(value, Tensor) and value.dim() > 0 and len(value) == BATCH
        return self.result_value(new, value, node.name) if have is Layout.FRAMES or of_sizes else new

    def result_value(self, new: fx.Node, value: Any, name: str) -> fx.Node:
        """Class scores are averaged over what is left of time, unless the style says not to; dense outputs keep it."""
        if isinstance(value, tuple | list):
            items = ((self.call(operator.getitem, new, i), item) for i, item in enumerate(value))
            return self.call(layout.together, *(self.result_value(*item, name) for item in items))
        if not isinstance(value, Tensor):
            return new
        if not value.dim() or len(value) != BATCH:
            raise LiftError(f"the output {name!r} of shape {tuple(value.shape)} does not have the batch first")
        if value.dim() == 2 and self.style.temporal_pool == "mean":
            return self.call(layout.mean_over_time, new, self.clips)
        if value.dim() == 4:
            return self.call(layout.unfold, new, self.clips, name=f"{new.name}_clip")
        return self.call(layout.over_time, new, self.clips)


def _upsampling(node: fx.Node) -> float:
    """Height out over height in."""
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return float(node.meta["value"].shape[2] / source.meta["value"].shape[2])


def _broadcasts(value: Any) -> bool:
    """Whether a plain value can stand beside clips: numbers, and parameters without a batch axis of their own."""
    return not isinstance(value, Tensor) or value.dim() < 4 or (value.dim() == 4 and len(value) == 1)


def _varies(value: Any) -> bool:
    """Whether there is a tensor with an axis that the batch could be part of (not so in tables of positions)."""
    tensors = [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
    return any(size % BATCH == 0 for tensor in tensors for size in tensor.shape)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


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


def lift(traced: Traced, recipe: Recipe, style: Style, ties: Ties = ()) -> Lifted:
    """Apply `recipe` to a traced 2D network, some of whose parameters may have several names (`ties`).

    Raises `RecipeError` when a rule matches nothing or the recipe breaks a join, `LiftError` for what can't be lifted.
    """
    canonical(traced)
    recipe.check_matches(_layers(traced), [name for name, _ in traced.root.named_modules()])
    lifted = _Lift(traced, recipe, style, ties).run()
    lifted.any_size = all(_any_size(node) for node in traced.graph.nodes) and not any(
        isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        or (isinstance(space := getattr(module, "space", None), SpatialPad) and space.fixed is None)
        for module in lifted.modules.values()
    )
    lifted.minimum_frames = minimum_frames(lifted.graph, recipe)
    for node in lifted.graph.nodes:
        if node.target is layout.check_clip:
            node.args = (*node.args[:2], lifted.minimum_frames)
    return lifted


def _any_size(node: fx.Node) -> bool:
    if node.op == "call_function" and not layout.operation(node):
        return False
    tensors = [leaf for leaf in leaves(node.meta.get("value")) if isinstance(leaf, Tensor)]
    return node.op == "get_attr" or all(len(t) == BATCH and t.dim() in (1, 2, 4) for t in tensors if t.dim())


def _layers(traced: Traced) -> Iterator[tuple[str, str]]:
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.root.get_submodule(str(node.target))
            entry = counterpart(module)
            if entry is not None and entry.geometry is not None:
                yield str(node.target), entry.geometry(module).kind
            elif full_name(module) in UPSAMPLES:
                yield str(node.target), "upsample"
        elif layout.operation(node) == "interpolate":
            yield function_name(node), "upsample"
    yield from ((attention.name, "attention") for attention in attentions(traced))
