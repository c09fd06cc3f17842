"""A lifted network as a table: each layer's kernels, parameters, and how far along time it sees."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import fx

from i3dconvert.kernels import Filling
from i3dconvert.lift.modules import PaddedPool3d, in_space
from i3dconvert.lift.network import Network3d
from i3dconvert.recipes import Temporal


@dataclass(frozen=True)
class LayerRow:
    """One layer; kernels are `(height, width)` and `(time, height, width)`, likewise the strides."""

    name: str
    operation: str
    kernel2d: tuple[int, ...]
    kernel3d: tuple[int, ...]
    stride3d: tuple[int, ...]
    parameters2d: int
    parameters3d: int
    receptive_field: int
    """In frames of the input clip, at the layer's output."""


def describe(network: Network3d) -> list[LayerRow]:
    """The layers that a recipe has a say in, in the order of computation; weights are not needed."""
    fields = receptive_fields(network.graph)
    nodes = {str(node.target): node for node in network.graph.nodes if node.op == "call_module"}
    fillings = network.inflation.fillings
    rows = []
    for layer in network.inflation.layers:
        if layer.geometry.kind == "upsample":
            continue
        module: Any = network.get_submodule(layer.name)
        module = module.pool if isinstance(module, PaddedPool3d) else module
        factorised = getattr(module, "temporal", None) is not None
        kernel = (layer.temporal.kernel, *in_space(module.kernel_size))
        parameters = {f"{layer.name}.{name}": tensor for name, tensor in module.named_parameters()}
        count = sum(tensor.numel() for tensor in parameters.values())
        row = LayerRow(
            name=layer.name,
            operation="Conv(2+1)d" if factorised else type(module).__name__,
            kernel2d=kernel[1:],
            kernel3d=kernel,
            stride3d=(layer.temporal.stride, *in_space(module.stride)),
            parameters2d=sum(tensor.numel() // _gain(fillings.get(key)) for key, tensor in parameters.items()),
            parameters3d=count,
            receptive_field=fields[nodes[layer.name]],
        )
        rows.append(row)
    return rows


def _gain(filling: Filling | None) -> int:
    """How many times larger a 3D tensor is than its 2D form; one without a 2D form counts for nothing there."""
    if filling is None:
        return 1
    return filling.taps if filling.identity is None else sys.maxsize


def receptive_fields(graph: fx.Graph) -> dict[fx.Node, int]:
    """Frames of the input that each node's value depends on, at most."""
    seen: dict[fx.Node, tuple[int, int]] = {}
    for node in graph.nodes:
        inputs = [seen[n] for n in node.all_input_nodes if n in seen]
        field, jump = max((f for f, _ in inputs), default=1), max((j for _, j in inputs), default=1)
        temporal: Temporal = node.meta.get("temporal", Temporal())
        seen[node] = (field + (temporal.span - 1) * jump, jump * temporal.stride)
    return {node: field for node, (field, _) in seen.items()}
