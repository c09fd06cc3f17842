"""Capture a network for the ONNX exporter, in a form that the exporter does not have to trace a second time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from i3dconvert.errors import ExportError

_ATEN = torch.ops.aten

_NEW = frozenset(
    {
        _ATEN.add.Tensor,
        _ATEN.avg_pool2d.default,
        _ATEN.batch_norm.default,
        _ATEN.cat.default,
        _ATEN.conv2d.default,
        _ATEN.conv3d.default,
        _ATEN.lift_fresh_copy.default,
        _ATEN.linear.default,
        _ATEN.matmul.default,
        _ATEN.max_pool2d.default,
        _ATEN.mean.dim,
        _ATEN.mul.Tensor,
        _ATEN.sub.Tensor,
    }
)
"""Operators that always return a new tensor."""


class Captured(ExportedProgram):
    """A program that the exporter decomposes only if it has to.

    To decompose a program, torch traces it again, which takes longer than everything else in the exporter. Usually,
    only the operators in place need it.
    """

    def run_decompositions(self, decomp_table: Any = None, *others: Any, **options: Any) -> ExportedProgram:
        if decomp_table is not None and _functional(self.graph, decomp_table):
            return self
        decomposed: ExportedProgram = super().run_decompositions(decomp_table, *others, **options)
        return decomposed


def capture(network: nn.Module, given: tuple[Any, ...], free: tuple[Any, ...] | None) -> Captured:
    """Return the program of a network.

    Raises `ExportError` if torch fixes an axis that is free, and errors of various types if it can't capture the
    network.
    """
    found = torch.export.export(network, given, dynamic_shapes=free, strict=False)
    if _free_axes(found.graph) < len(tree_leaves(free or ())):
        raise ExportError("torch fixes an axis; the exporter may keep it free, such as the steps of an LSTM")
    return Captured(
        root=found.graph_module,
        graph=found.graph,
        graph_signature=found.graph_signature,
        state_dict=found.state_dict,
        range_constraints=found.range_constraints,
        module_call_graph=found.module_call_graph,
        example_inputs=found.example_inputs,
        constants=found.constants,
        verifiers=found.verifiers,
    )


def _free_axes(graph: fx.Graph) -> int:
    """Return the number of free axes of all inputs."""
    given = [node.meta["val"] for node in graph.nodes if node.op == "placeholder"]
    sizes = [str(size) for value in given for size in getattr(value, "shape", ())]
    return sum(not size.isdecimal() for size in sizes)  # of a symbol that torch fixes, the text is a number


def _functional(graph: fx.Graph, decomposed: Mapping[Any, Any]) -> bool:
    """Replace the operators in place by the ones that return new tensors, unless another one has to be decomposed.

    Returns whether it replaced them.
    """
    called = [node for node in graph.nodes if isinstance(node.target, OpOverload)]
    in_place = {node: _out_of_place(node.target) for node in called if node.target._schema.is_mutable}
    others = {node.target for node in called if node not in in_place} | {*in_place.values()}
    if None in others or others & decomposed.keys():
        return False
    if not all(_nobody_else_sees(node.args[0], in_place) for node in in_place):
        return False
    for node, target in in_place.items():
        node.target = target
    return True


def _out_of_place(target: OpOverload) -> OpOverload | None:
    """Return `aten.relu` for `aten.relu_`, or None if there is no such operator."""
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    found = getattr(packet, target._overloadname, None) if name.endswith("_") else None
    return found if isinstance(found, OpOverload) and not found._schema.is_mutable else None


def _nobody_else_sees(value: Any, in_place: Mapping[fx.Node, Any]) -> bool:
    """Return whether a value, and all that it is a view of, has one reader only: what is written to it."""
    while isinstance(value, fx.Node) and isinstance(value.target, OpOverload):
        if sum(reader.target is not _ATEN.sym_size.int for reader in value.users) > 1:
            return False
        if value in in_place:
            return True
        if not any(result.alias_info for result in value.target._schema.returns):
            return value.target in _NEW or value.target.namespace == "i3dconvert"
        value = value.args[0]
    return False
