"""The lifted graph under construction: what each value of the 2D graph became, in either layout."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from i3dconvert.errors import RecipeError
from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.fillings import Filling
from i3dconvert.lift.forms import FRAMES
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.reading import Reading
from i3dconvert.lift.sizes import BatchSizes
from i3dconvert.recipes import Geometry, Recipe, Temporal

if TYPE_CHECKING:
    from i3dconvert.lift.attention.joint import AttentionOverTime


@dataclass(frozen=True)
class Layer:
    """A layer that recipes apply to. `lifted` is false if its input is not a clip (windows, tables)."""

    name: str
    node: str
    geometry: Geometry
    temporal: Temporal
    lifted: bool = True
    refusal: str = ""
    """Why an attention can't see other frames under any recipe."""
    apart: str = ""
    """Why attention to other frames is computed as product, softmax, product instead of one fused operation."""


New = tuple[fx.Node, Layout]
"""The result for a 2D node: a 3D node, and the layout of its value."""


class Rewriting:
    """`env` maps each 2D node to what it became."""

    attention: AttentionOverTime

    def __init__(self, traced: Reading, recipe: Recipe, style: Style) -> None:
        self.traced, self.recipe, self.style = traced, recipe, style
        self.old, self.root = traced.graph, traced.root
        self.graph = fx.Graph()
        self.sizes = BatchSizes(self.graph, self.frames, lambda node: self.attention.nodes.rows(node))
        self.env: dict[fx.Node, New] = {}
        self.converted: dict[tuple[fx.Node, Layout], fx.Node] = {}
        self.modules: dict[str, nn.Module] = {}
        self.layers: dict[str, Layer] = {}
        self.fillings: dict[str, Filling] = {}
        self.clips: fx.Node

    def misfit(self, name: str, why: str) -> RecipeError:
        """Return the error that the recipe does not fit the layer `name`, with the rule that keeps it 2D."""
        return RecipeError(f"recipe {self.recipe.name!r} does not fit {name}: {why}; to keep it 2D: -t '{name}=1/1'")

    def layout_of(self, node: fx.Node) -> Layout:
        return self.env[node][1]

    def frames(self, node: fx.Node) -> fx.Node:
        return self.convert(node, Layout.FRAMES)

    def clip(self, node: fx.Node) -> fx.Node:
        return self.convert(node, Layout.CLIP)

    def convert(self, node: fx.Node, wanted: Layout) -> fx.Node:
        new, is_in = self.env[node]
        if is_in in (wanted, Layout.PLAIN):
            return new
        if (new, wanted) not in self.converted:
            self.converted[new, wanted] = self.convert_value(new, facts_of(node)["value"], wanted)
        return self.converted[new, wanted]

    def convert_value(self, new: fx.Node, value: Any, wanted: Layout) -> fx.Node:
        if isinstance(value, tuple | list):
            items = [
                self.convert_value(self.call(operator.getitem, new, i), item, wanted) for i, item in enumerate(value)
            ]
            together = self.call(layout.together, *items)
            facts_of(together)["form"] = [facts_of(item).get("form") for item in items]
            return together
        if wanted is Layout.FRAMES:
            converted = self.call(layout.fold, new, name=f"{new.name}_frames")
        else:
            converted = self.call(layout.unfold, new, self.clips, name=f"{new.name}_clip")
        facts_of(converted)["form"] = FRAMES if wanted is Layout.FRAMES else "clip"
        return converted

    def call(self, function: Any, *args: Any, name: str | None = None) -> fx.Node:
        return self.graph.create_node("call_function", function, args, {}, name)

    def plain(self, new: fx.Node) -> fx.Node:
        """Note that a node's value does not vary with the clip, and return the node."""
        facts_of(new)["plain"] = True
        return new

    def along_time(self, new: fx.Node, temporal: Temporal, layer: str) -> fx.Node:
        """Note that a node is a layer over time, and return the node."""
        facts_of(new).update({"temporal": temporal, "layer": layer})
        return new

    def copy(self, node: fx.Node, value: Any) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        return self.graph.create_node(node.op, node.target, args, kwargs, node.name)
