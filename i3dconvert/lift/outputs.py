"""The outputs of the 3D network: scores averaged over time, and maps for each frame."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx

from i3dconvert.errors import LiftError
from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.reading import Multiples, one_each, rows, rows_in
from i3dconvert.lift.rewriting import Rewriting


class Outputs(Rewriting):
    """The outputs of the 3D network: scores averaged over time, and maps for each frame."""

    fixed: str
    """Why only the traced height and width are accepted; empty if others are, too."""

    def output(self, node: fx.Node) -> None:
        self.graph.output(fx.node.map_arg(node.args[0], self.result))

    def result(self, node: fx.Node) -> fx.Node:
        (new, is_in), value = self.env[node], facts_of(node)["value"]
        # A value made only from sizes (positions in each image) also has a row for each frame.
        follows = is_in is Layout.FRAMES or (is_in is Layout.PLAIN and rows(node) == 1)
        ranked = _holds_places(node) or (_is_part(node) and _holds_places(node.all_input_nodes[0]))
        return self.result_value(new, value, facts_of(node)["batch"], node.name, ranked) if follows else new

    def result_value(self, new: fx.Node, value: Any, multiples: Multiples, name: str, ranked: bool) -> fx.Node:
        """Average class scores over the remaining frames, unless the style keeps time. Dense outputs keep time,
        and so do indices, flags, and values `ranked` (by topk, sort) beside them."""
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


def _is_part(node: fx.Node) -> bool:
    return node.target is operator.getitem and isinstance(facts_of(node.all_input_nodes[0])["value"], tuple | list)


def _holds_places(node: fx.Node) -> bool:
    """Return whether an operation returns indices of values, with or without the values."""
    value = facts_of(node)["value"]
    parts = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(part, Tensor) and not part.is_floating_point() and not part.is_complex() for part in parts)
