"""Remove unused sizes from a graph."""

from __future__ import annotations

import operator

from torch import Tensor, fx

from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading.deciding import decided, unchanged
from i3dconvert.lift.reading.views import written

_PURE = frozenset(("size", "stride", "numel", "dim", "detach"))


def drop_unused(graph: fx.Graph) -> None:
    """Remove unused sizes, and unused arithmetic on them."""
    for node in reversed(graph.nodes):
        pure = node.op == "get_attr" or (node.op == "call_method" and node.target in _PURE)
        if node.op == "call_function":
            pure = node.target is operator.getitem or not isinstance(facts_of(node)["value"], Tensor)
            pure = (pure and node.target not in (decided, unchanged)) or node.target is written
        if not node.users and pure and not isinstance(facts_of(node)["value"], tuple | list | dict):
            graph.erase_node(node)
