"""Which image each row of a value belongs to: attention over frames needs rows grouped by image.

In 2D, a network may put heads, windows or halves before the images, like `torch.cat(x.split(...), dim=0)`. Then
the rows of one clip's frames are not adjacent.

An *order* is a tensor with the image of each row of a value, or `ANY` for rows that are the same for every image, such
as expanded class tokens. If only some entries of a row are the same for every image, it has the image of each entry. It
has no axis for values without rows: `PLAIN`, or `LOST` if it can't be followed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading import BATCH, varies
from i3dconvert.lift.reading.records import leaves
from i3dconvert.lift.reading.views import WRITES, written

ANY, UNKNOWN = -1, -2
PLAIN, LOST = torch.tensor(ANY, dtype=torch.int8), torch.tensor(UNKNOWN, dtype=torch.int8)

_MOVING = frozenset(
    """
    cat concat concatenate stack split chunk tensor_split unbind getitem reshape view view_as flatten unflatten permute
    transpose movedim moveaxis swapaxes swapdims roll flip expand expand_as repeat repeat_interleave tile contiguous
    unfold squeeze unsqueeze narrow select t rot90 as_strided hstack vstack dstack row_stack column_stack
    split_with_sizes ravel reshape_as flipud fliplr
    """.split()
)
_ALIKE = frozenset("zeros ones empty full zeros_like ones_like new_zeros new_ones new_empty new_full".split())
"""Functions that make rows that are all the same."""

_OF_FIRST = frozenset(("to", "type_as"))
"""Functions that read only the dtype of their second input."""

_BY_INDEX = {
    **dict.fromkeys("gather scatter scatter_add index_select index_add index_copy index_fill sort argsort".split(), 1),
    **dict.fromkeys(("take_along_dim", "topk"), 2),
}
"""Operations that may exchange the rows along one axis, with the position of `dim`."""
_OF_ALL = frozenset("index_put put take msort masked_scatter masked_select nonzero unique".split())
"""Operations that may exchange any rows."""

_COPYING = {"view": "reshape", "view_as": "reshape_as"}
"""The same without a condition on strides, which are not the network's here."""


class Orders:
    """The orders of a graph's values, found by carrying the images' indices through all operations that move them."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph

    def is_known(self, node: fx.Node) -> bool:
        """Return whether the image of each row of a value is known."""
        order = self._known[node]
        return isinstance(order, Tensor) and order.dim() > 0

    def surely(self, node: fx.Node) -> bool:
        """Return whether all rows of the first image are known to precede those of the second."""
        order = _of_rows(self._known[node], node)
        if not self.is_known(node) or len(order) % BATCH:
            return False
        grouped = torch.arange(BATCH).repeat_interleave(len(order) // BATCH)
        return bool(((order == grouped) | (order == ANY)).all())

    @cached_property
    def _known(self) -> dict[fx.Node, Any]:
        known: dict[fx.Node, Any] = {}
        for node in self._graph.nodes:
            known[node] = _order(node, known)
        return known


def _order(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """Return the order of a value; for several values, a list."""
    name, value, multiples = layout.operation(node), facts_of(node).get("value"), facts_of(node).get("batch")
    if node.op == "placeholder":
        return torch.arange(BATCH, dtype=torch.int8)
    if node.target is written:
        return _after_write(node, known)
    if name in _MOVING and node.target is not F.unfold:
        return _moved(node, known)
    inputs = node.all_input_nodes[:1] if name in _OF_FIRST else node.all_input_nodes
    if name in layout.ELEMENTWISE and any(order.dim() > 1 for n in inputs for order in leaves(known[n])):
        return _after(_largest, tuple(_carried(list(inputs), known)), node)
    given = [order for n in inputs for order in leaves(_of_rows(known[n], n))]
    if node.op == "call_module" and not varies(node):
        return _joined([], value, multiples)  # a module that reads the image's size or dtype, for positions
    if name in _ALIKE:
        axis = _axis(multiples)
        given = [] if axis is None else [PLAIN.expand(facts_of(node)["value"].shape[axis])]
    by_rows = name in _BY_INDEX and _exchanges(node, _BY_INDEX[name])
    foreign = node.op == "call_function" and not name and not _is_ours(node.target)
    if name in _OF_ALL or by_rows or (foreign and any(order.dim() and len(order) != BATCH for order in given)):
        given = [LOST]
    return _joined(given, value, multiples)


def _of_rows(order: Any, node: fx.Node) -> Any:
    """Return the image of each row from that of each entry."""
    if not isinstance(order, Tensor) or order.dim() < 2:
        return order
    axis = _axis(facts_of(node)["batch"])
    assert axis is not None
    return order.movedim(axis, 0).flatten(1).amax(1)


def _largest(*entries: Any) -> Tensor:
    """Return the images of the entries of an element-wise operation's result; `UNKNOWN` where the inputs' differ."""
    tensors = [one for one in entries if isinstance(one, Tensor)]
    shape = sum(tensors).shape  # type: ignore[union-attr]
    given = [one.expand(shape) for one in tensors]
    images = torch.stack(given).amax(0)
    return images.where(torch.stack([(one == images) | (one == ANY) for one in given]).all(0), UNKNOWN)


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("i3dconvert.")


def _exchanges(node: fx.Node, position: int) -> bool:
    """Return whether an operation along the axis `dim` may exchange rows."""
    dim, first = layout.argument(node, "dim", position, -1), node.all_input_nodes[0]
    value, axis = facts_of(first).get("value"), _axis(facts_of(first).get("batch"))
    if not isinstance(dim, int) or not isinstance(value, Tensor) or value.dim() == 0:
        return True
    return dim % value.dim() == axis


def _axis(multiples: Any) -> int | None:
    """Return the only axis that follows the batch, if there is just one."""
    axes = [axis for axis, times in enumerate(multiples) if times] if isinstance(multiples, tuple) else []
    return axes[0] if len(axes) == 1 else None


def _joined(given: list[Tensor], value: Any, multiples: Any) -> Any:
    """Return the order of what is computed row by row from values of these orders."""
    if isinstance(value, tuple | list):
        parts = multiples if multiples else (None,) * len(value)
        return [_joined(given, *each) for each in zip(value, parts, strict=True)]
    if not isinstance(value, Tensor):
        return PLAIN
    orders, axis = [order for order in given if order.dim()], _axis(multiples)
    if any(order.dim() == 0 and order == UNKNOWN for order in given):
        return LOST
    if axis is None:
        return LOST if orders or any(multiples or ()) else PLAIN
    if not orders or any(len(order) != value.shape[axis] for order in orders):
        return LOST
    joint = torch.stack(orders).amax(0)
    return joint if all(bool(((order == joint) | (order == ANY)).all()) for order in orders) else LOST


def _moved(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """Return the order after an operation that moves entries: the operation is applied to their images."""
    name = _COPYING.get(str(node.target), str(node.target))

    def moved(*args: Any, **kwargs: Any) -> Any:
        return getattr(args[0], name)(*args[1:], **kwargs) if node.op == "call_method" else node.target(*args, **kwargs)  # type: ignore[operator]

    if layout.operation(node) == "getitem":
        return _by_index(lambda source, _, index: moved(source, index), node.args[0], None, node.args[1], node, known)
    args, kwargs = _carried((node.args, node.kwargs), known)
    return _after(partial(moved, **kwargs), args, node)


def _after_write(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """Return the order after a write through a view: what is written belongs to the rows that it is written to."""
    given: Any = node.args
    base, steps, function, args, _ = given
    name = str(function).rpartition("/")[2]
    steps = _carried(steps, known)
    if name in WRITES:
        index, new = args
        new = new if isinstance(new, fx.Node) else ANY

        def write(base: Any, new: Any, index: Any) -> Any:
            return written(base, steps, function, (index, new), {})

        return _by_index(write, base, new, index, node, known)
    whole, parts = _carried((base, args), known)
    changed = [
        _after(partial(written, whole, steps, "tensor/copy_", (one,)), ({},), node)
        for one in parts
        if isinstance(one, Tensor)
    ]
    exchanges = name.rstrip("_") in _OF_ALL or name.rstrip("_") in _BY_INDEX
    orders = [_of_rows(known[base], base), *(_of_rows(order, node) for order in changed)]
    return LOST if exchanges else _joined(orders, facts_of(node)["value"], facts_of(node)["batch"])


def _by_index(
    function: Callable[..., Any], source: Any, new: Any, index: Any, node: fx.Node, known: dict[fx.Node, Any]
) -> Any:
    """Return the order after an operation with an index; `LOST` if it depends on the tensors in the index.

    These are tried as the first entry everywhere, and as the last.
    """
    parts = index if isinstance(index, tuple) else (index,)
    of_tensors = any(isinstance(facts_of(part).get("value"), Tensor) for part in parts if isinstance(part, fx.Node))
    given = _carried((source, new), known, by_rows=of_tensors)
    orders = []
    for entry in (0, -1) if of_tensors else (0,):
        places = [
            torch.full(part.shape, entry) if isinstance(part, Tensor) else part for part in _carried(parts, known)
        ]
        orders.append(_after(function, (*given, tuple(places) if parts is index else places[0]), node))
    if not of_tensors:
        return orders[0]
    first, last = (_of_rows(order, node) for order in orders)
    return first if torch.equal(first, last) else LOST


def _carried(values: Any, known: dict[fx.Node, Any], by_rows: bool = False) -> Any:
    """Replace the nodes in arguments by the images of their entries, or by those of their rows."""

    def carried(node: fx.Node) -> Any:
        order = _of_rows(known[node], node) if by_rows else known[node]
        return _spread(order, facts_of(node).get("value"), facts_of(node).get("batch"))

    return fx.node.map_arg(values, carried)


def _after(function: Callable[..., Any], args: tuple[Any, ...], node: fx.Node) -> Any:
    """Return the order of the result of a function of entries' images."""
    try:
        found = function(*args)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AttributeError):
        found = None
    return _gathered(found, facts_of(node).get("value"), facts_of(node).get("batch"))


def _spread(order: Any, value: Any, multiples: Any) -> Any:
    """Return a tensor of the size of `value` with each entry's image."""
    if isinstance(value, tuple | list) and isinstance(order, list):
        parts = multiples if multiples else (None,) * len(value)
        return type(value)([_spread(*each) for each in zip(order, value, parts, strict=True)])
    if not isinstance(value, Tensor):
        return value
    if order.shape == value.shape:
        return order
    shape = [1] * value.dim()
    if order.dim() and (axis := _axis(multiples)) is not None:
        shape[axis] = len(order)
    return order.reshape(shape).expand(value.shape)


def _gathered(found: Any, value: Any, multiples: Any) -> Any:
    """Return each row's image from each entry's, or the entries' if some are `ANY`; `LOST` if a row has several."""
    if isinstance(value, tuple | list):
        known = isinstance(found, tuple | list) and len(found) == len(value)
        parts = multiples if multiples else (None,) * len(value)
        return [_gathered(*each) for each in zip(found if known else parts, value, parts, strict=True)]
    if not isinstance(value, Tensor):
        return PLAIN
    axis = _axis(multiples)
    if not isinstance(found, Tensor) or found.shape != value.shape or (axis is None and any(multiples or ())):
        return LOST
    if axis is None:
        return PLAIN if bool((found == ANY).all()) else LOST
    rows = found.movedim(axis, 0).unsqueeze(-1).flatten(1)
    if rows.shape[1] == 0:
        return torch.full((len(rows),), ANY, dtype=torch.int8)
    least, most = rows.amin(1), rows.amax(1)
    if bool((least == most).all()) and bool((most > UNKNOWN).all()):
        return most
    alike = bool((least > UNKNOWN).all()) and bool(((rows == ANY) | (rows == most.unsqueeze(1))).all())
    return found if alike else LOST
