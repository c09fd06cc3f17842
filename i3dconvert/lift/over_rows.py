"""Layers over several images for each frame: the windows of an attention, or its heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from i3dconvert.lift import layout
from i3dconvert.lift.attention.order import Orders
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.operations import Operations
from i3dconvert.lift.reading import is_image, rows
from i3dconvert.lift.rewriting import New


class OverRows(Operations):
    """Layers over several images for each frame: the windows of an attention, or its heads."""

    @cached_property
    def orders(self) -> Orders:
        return Orders(self.old)

    def holds_images(self, value: Any) -> bool:
        """Return whether a value is `(B·R, C, H, W)`, the R images of a frame one after the other."""
        if not isinstance(value, fx.Node) or is_image(value):
            return isinstance(value, fx.Node)
        tensor, multiples = facts_of(value)["value"], facts_of(value)["batch"]
        images = isinstance(tensor, Tensor) and tensor.dim() == 4 and rows(value) > 0 and not any(multiples[1:])
        return images and self.orders.surely(value)

    def on_clips(self, image: fx.Node, layer: Callable[[fx.Node], fx.Node]) -> New:
        """Add a layer over clips of `image`, or of each of several images for each frame."""
        if is_image(image):
            return layer(self.clip(image)), Layout.CLIP
        each = self.attention.nodes.rows(image)
        clip = self.call(layout.clips_of_rows, self.frames(image), self.clips, each)
        new = layer(clip)
        for node in (clip, new):
            facts_of(node)["form"] = "clip"
        return self.call(layout.rows_of_clips, new, each), Layout.FRAMES
