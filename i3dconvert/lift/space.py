"""Global pools and norms over space, which also span time if the recipe requires it."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from i3dconvert.lift import layout
from i3dconvert.lift.canonical import function_name
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.operations import Operations
from i3dconvert.lift.reading import is_image, rows
from i3dconvert.lift.rewriting import New

_GLOBAL_POOLS: dict[Any, str] = {nn.AdaptiveAvgPool2d: "mean", nn.AdaptiveMaxPool2d: "amax"}
NORMS = ("group_norm", "instance_norm")


class OverSpace(Operations):
    """Global pools and norms over space, which also span time if the recipe requires it."""

    def pooled(self, node: fx.Node, result: New | None) -> New | None:
        """Extend a global pool over time if the recipe requires it; return other results unchanged."""
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
        """Return how a node pools all of space, `mean` or `amax`; empty if it does not."""
        module = self.traced.module(node)
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
        """Return whether the recipe keeps a norm, which in 3D would also span time, within each frame."""
        return self.is_norm(node) and self.recipe.normalises_frames(name)

    def is_norm(self, node: fx.Node) -> bool:
        """Return whether a node is a norm with statistics over space: GroupNorm, InstanceNorm."""
        return isinstance(self.traced.module(node), nn.GroupNorm | nn.InstanceNorm2d) or layout.operation(node) in NORMS
