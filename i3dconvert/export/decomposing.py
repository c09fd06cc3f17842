"""The step of torch's ONNX exporter that takes operations apart, left out where nothing is to be taken apart.

It runs the whole graph anew, a third of an export's time, to have it without operations in place and of those alone
that have an ONNX form. A convolutional network's graph is that already, but for a few that are renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

_ATEN = torch.ops.aten
_STEP = "decompose_with_registry"
_ASSERTIONS = ("aten::_assert_scalar", "aten::_assert_tensor_metadata", "aten::sym_constrain_range_for_size")
"""What the exporter drops in its next step."""


@contextmanager
def apart_where_needed() -> Iterator[list[bool]]:
    """Within it, the exporter leaves the step out where it can; yields a list that says of each export whether it did.

    With a torch whose exporter is laid out otherwise, nothing is left out.
    """
    left_out: list[bool] = []
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes

        original = vars(_fx_passes)[_STEP]
        known = _decomp.get_onnx_implemented_overloads
    except (ImportError, AttributeError, KeyError):
        yield left_out
        return

    def decomposed(program: ExportedProgram, registry: Any) -> ExportedProgram:
        left_out.append(renamed(program.graph, set(known(registry))))
        if left_out[-1]:
            program.graph_module.recompile()
            return program
        result: ExportedProgram = original(program, registry)
        return result

    vars(_fx_passes)[_STEP] = decomposed
    try:
        yield left_out
    finally:
        vars(_fx_passes)[_STEP] = original


def renamed(graph: fx.Graph, known: set[Any]) -> bool:
    """Bring a graph to operations that are `known`, none in place; False, and no change, where that takes more."""
    changes = []
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        schema = node.target._schema
        if schema.name in _ASSERTIONS or (node.target in known and not schema.is_mutable):
            continue
        change = _change(node, known)
        if change is None:
            return False
        changes.append((node, change))
    for node, change in changes:
        change(node)
    graph.lint()
    return True


def _change(node: fx.Node, known: set[Any]) -> Callable[[fx.Node], None] | None:
    """What brings one operation to a known one."""
    if node.target is _ATEN.detach_.default:
        return _drop
    if node.target is _ATEN.to.dtype and len(node.args) == 2 and not node.kwargs:
        return _cast
    pure = _out_of_place(node.target)
    if pure in known and _alone(node.args[0], node):
        return lambda one: _use(one, pure)
    return None


def _out_of_place(target: Any) -> Any:
    """`add_.Tensor` → `add.Tensor`."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(_ATEN, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None)


def _alone(value: Any, node: fx.Node) -> bool:
    """Whether no other value that is used shares the memory of one that an operation writes into."""
    user = node
    while isinstance(value, fx.Node) and value.op == "call_function" and value.all_input_nodes:
        if any(_shares(other) for other in value.users if other is not user):
            return False
        if not _shares(value):
            return True
        # A view: of what it is of, nothing else may be used behind the writing.
        user, value = value, value.all_input_nodes[0]
        if len(value.users) > 1:
            return False
    return False


def _shares(node: fx.Node) -> bool:
    """Whether what an operation gives may share memory with what it is given."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    schema = node.target._schema
    return any(one.alias_info is not None for one in schema.returns) or node.target in _MAY_SHARE


_MAY_SHARE = {_ATEN.contiguous.default, _ATEN.reshape.default, _ATEN.to.dtype, _ATEN.flatten.using_ints}


def _drop(node: fx.Node) -> None:
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    node.graph.erase_node(node)


def _cast(node: fx.Node) -> None:
    source, wanted = list(node.args)
    if isinstance(source, fx.Node) and source.meta["val"].dtype == wanted:
        _drop(node)
    else:
        node.target, node.args, node.kwargs = _ATEN._to_copy.default, (source,), {"dtype": wanted}


def _use(node: fx.Node, pure: Any) -> None:
    """In place becomes a value of its own, which later uses of what was written into are of."""
    written: Any = node.args[0]
    node.target = pure
    for user in [user for user in written.users if node < user]:
        user.replace_input_with(written, node)
