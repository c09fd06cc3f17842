"""Operations without a 3D layer, on frames, or on clips if the layout does not matter."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.reading import is_image, rows, varies
from i3dconvert.lift.rewriting import New, Rewriting

_RANDOM = frozenset(("bernoulli", "rand", "rand_like", "uniform", "randn", "normal", "randint"))


class Operations(Rewriting):
    """Operations without a 3D layer, on frames, or on clips if the layout does not matter."""

    def in_either_layout(self, node: fx.Node) -> New:
        """Add an operation that works in either layout: on clips if any input is one and all can be."""
        inputs = node.all_input_nodes
        layouts = [self.layout_of(n) for n in inputs]
        varying = [n for n, found in zip(inputs, layouts, strict=True) if found is not Layout.PLAIN]
        plain = [n for n, found in zip(inputs, layouts, strict=True) if found is Layout.PLAIN]
        as_clip = (
            Layout.CLIP in layouts
            and all(is_image(n) for n in varying)
            and all(_broadcasts(facts_of(n)["value"]) for n in plain)
            and (is_image(node) or not isinstance(facts_of(node)["value"], tuple | list | dict))
        )
        if not as_clip:
            return self.on_frames(node)
        return self.copy(node, lambda n: self.clip(n) if n in varying else self.beside_clips(n)), Layout.CLIP

    def beside_clips(self, node: fx.Node) -> fx.Node:
        """Reshape a parameter that broadcasts over images to broadcast over clips: `(C, 1, 1)` → `(C, 1, 1, 1)`."""
        new, value = self.env[node][0], facts_of(node)["value"]
        if not isinstance(value, Tensor) or value.dim() < 3:
            return new
        beside = self.graph.create_node("call_method", "unsqueeze", (new, -3))
        facts_of(beside)["beside_clips"] = True
        return beside

    def on_frames(self, node: fx.Node) -> New:
        varying = [n for n in node.all_input_nodes if self.layout_of(n) is not Layout.PLAIN]
        new = self.copy(node, lambda n: self.sizes.beside(n, varying))
        if varying and varies(node):
            return (self.call(layout.once_a_clip, new, self.clips) if _draws_rows(node) else new), Layout.FRAMES
        self.plain(new)
        self.sizes.note(node, varying)
        return new, Layout.PLAIN


def _draws_rows(node: fx.Node) -> bool:
    """Return whether an operation draws one number for each image of the batch."""
    value = facts_of(node)["value"]
    one_each = isinstance(value, Tensor) and value.dim() > 0 and rows(node) == 1 and value.numel() == value.shape[0]
    return one_each and layout.operation(node) in _RANDOM


def _broadcasts(value: Any) -> bool:
    """Return whether a plain value broadcasts over clips, as numbers and tensors without a batch axis do."""
    return not isinstance(value, Tensor) or value.dim() < 4 or (value.dim() == 4 and len(value) == 1)
