"""Which image each row of a value belongs to: attention over frames needs rows grouped by image.

In 2D, a network may put heads, windows or halves before the images, like `torch.cat(x.split(...), dim=0)`. Then
the rows of one clip's frames are not adjacent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading import BATCH

_MOVING = frozenset(
    """
    cat concat concatenate stack split chunk tensor_split unbind getitem reshape view view_as flatten unflatten permute
    transpose movedim moveaxis swapaxes swapdims roll flip expand expand_as repeat repeat_interleave tile contiguous
    unfold squeeze unsqueeze narrow select index_select t rot90 as_strided hstack vstack dstack row_stack
    split_with_sizes
    """.split()
)
_BY_INDEX = frozenset("gather take_along_dim sort scatter scatter_add index_add index_copy index_put".split())

_COPYING = {"view": "reshape", "view_as": "reshape_as"}
"""The same without a condition on strides, which are not the network's here."""


class Orders:
    """The images that rows belong to, found by carrying the images' indices through all operations that move them."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._known: dict[fx.Node, Any] = {}

    def image_by_image(self, node: fx.Node) -> bool:
        """Return whether all rows of the first image precede those of the second, as far as is known."""
        return self.known(node) is None or self.surely(node)

    def surely(self, node: fx.Node) -> bool:
        """Return whether all rows of the first image are known to precede those of the second."""
        order = self.known(node)
        return order is not None and bool((order.diff() >= 0).all())

    def known(self, node: fx.Node) -> Tensor | None:
        """Return the image of each row of a value, if it is known."""
        if not self._known:
            for one in self._graph.nodes:
                self._known[one] = self._order(one)
        order = self._known[node]
        return order if isinstance(order, Tensor) else None

    def _order(self, node: fx.Node) -> Any:
        """Return the image of each row, or None if it is unknown; for several values, a list."""
        value, multiples = facts_of(node).get("value"), facts_of(node).get("batch")
        if node.op == "placeholder":
            return torch.arange(BATCH, dtype=torch.int8)
        if not isinstance(value, Tensor | tuple | list) or not multiples:
            return None
        given = [n for n in node.all_input_nodes if self._known.get(n) is not None]
        if not given:
            return None
        if layout.operation(node) in _MOVING:
            return self._moved(node, value, multiples)
        axis = _axis(multiples)
        if not isinstance(value, Tensor) or axis is None or layout.operation(node) in _BY_INDEX:
            return None
        orders = [self._known[n] for n in given if isinstance(self._known[n], Tensor)]
        alike = all(torch.equal(one, orders[0]) for one in orders)
        return orders[0] if orders and alike and len(orders[0]) == value.shape[axis] else None

    def _moved(self, node: fx.Node, value: Any, multiples: Any) -> Any:
        def carried(n: fx.Node) -> Any:
            return _spread(self._known.get(n), facts_of(n)["value"], facts_of(n).get("batch"))

        try:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), carried)
            if node.op == "call_method":
                found = getattr(args[0], _COPYING.get(str(node.target), str(node.target)))(*args[1:], **kwargs)
            else:
                assert callable(node.target)
                found = node.target(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AttributeError):
            return None
        return _gathered(found, value, multiples)


def _axis(multiples: Any) -> int | None:
    """Return the only axis that follows the batch, if there is just one."""
    axes = [axis for axis, times in enumerate(multiples) if times] if isinstance(multiples, tuple) else []
    return axes[0] if len(axes) == 1 else None


def _spread(order: Any, value: Any, multiples: Any) -> Any:
    """Return a tensor of the size of `value` with each entry's image."""
    if isinstance(value, tuple | list) and isinstance(order, list):
        return type(value)([_spread(*each) for each in zip(order, value, multiples, strict=True)])
    if not isinstance(value, Tensor):
        return value
    axis = _axis(multiples)
    if not isinstance(order, Tensor) or axis is None:
        return torch.full((), -1, dtype=torch.int8).expand(value.shape)
    shape = [1] * value.dim()
    shape[axis] = len(order)
    return order.reshape(shape).expand(value.shape)


def _gathered(found: Any, value: Any, multiples: Any) -> Any:
    """Return each row's image from each entry's image; None if a row has several, or none."""
    if isinstance(found, tuple | list):
        if not isinstance(value, tuple | list) or len(found) != len(value):
            return None
        return [_gathered(*each) for each in zip(found, value, multiples, strict=True)]
    axis = _axis(multiples)
    if not isinstance(found, Tensor) or axis is None or not isinstance(value, Tensor) or found.shape != value.shape:
        return None
    rows = found.movedim(axis, 0).flatten(1)
    if rows.shape[1] == 0:
        return None
    least, most = rows.amin(1), rows.amax(1)
    return least if bool((least == most).all()) and bool((least >= 0).all()) else None
