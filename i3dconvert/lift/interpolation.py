"""Interpolation of each frame, and of time if the recipe requires it."""

from __future__ import annotations

import math
import operator

from torch import Tensor, fx

from i3dconvert.errors import RecipeError
from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.operations import Operations
from i3dconvert.lift.reading import is_image
from i3dconvert.lift.reading.records import leaves
from i3dconvert.lift.rewriting import Layer, New
from i3dconvert.recipes import Geometry


class Interpolations(Operations):
    """Interpolation of each frame, and of time if the recipe requires it."""

    def interpolation(self, node: fx.Node, name: str, mode: str, corners: bool | None) -> New:
        """Interpolate each frame, and then time if the recipe requires it."""
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
        return self.along_time(new, temporal, name), Layout.CLIP

    def size_source(self, node: fx.Node) -> fx.Node | None:
        """Return the image whose height and width an interpolation copies, if the graph shows it."""
        seen = [leaf for leaf in leaves((node.args[1:], dict(node.kwargs))) if isinstance(leaf, fx.Node)]
        for candidate in seen:
            if candidate is node.args[0]:
                continue
            if isinstance(facts_of(candidate)["value"], Tensor):
                return candidate if self.is_clip_of_size(candidate, node) else self.first_of_size(node)
            seen += [n for n in candidate.all_input_nodes if n not in seen]
        return None

    def first_of_size(self, node: fx.Node) -> fx.Node | None:
        """Return the first clip whose height and width are those of the interpolation's output."""
        return next((n for n in self.env if n is not node and self.is_clip_of_size(n, node)), None)

    def is_clip_of_size(self, candidate: fx.Node, node: fx.Node) -> bool:
        """Return whether the candidate varies with the clip and has the node's height and width."""
        if not is_image(candidate) or self.layout_of(candidate) is Layout.PLAIN:
            return False
        value = facts_of(candidate)["value"]
        return isinstance(value, Tensor) and value.shape[2:] == facts_of(node)["value"].shape[2:]


def _upsampling(node: fx.Node) -> float:
    """Return the output height divided by the input height."""
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return float(facts_of(node)["value"].shape[2] / facts_of(source)["value"].shape[2])
