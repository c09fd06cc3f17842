"""A lifted network as a table: each layer's kernels, parameters, and how far along time it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from i3dconvert.lift.layers import PaddedPool3d
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
    rows = []
    for layer in network.inflation.layers:
        module: Any = network.get_submodule(layer.name)
        module = module.pool if isinstance(module, PaddedPool3d) else module
        kernel, stride = _triple(module.kernel_size, layer.lifted), _triple(module.stride, layer.lifted)
        count = sum(parameter.numel() for parameter in module.parameters())
        weight = module.weight.numel() if isinstance(module, nn.Conv2d | nn.Conv3d) else 0
        row = LayerRow(
            name=layer.name,
            operation=type(module).__name__,
            kernel2d=kernel[1:],
            kernel3d=kernel,
            stride3d=stride,
            parameters2d=count - weight + weight // kernel[0],
            parameters3d=count,
            receptive_field=fields[nodes[layer.name]],
        )
        rows.append(row)
    return rows


def _triple(size: Any, lifted: bool) -> tuple[int, ...]:
    sizes = (size,) * (3 if lifted else 2) if isinstance(size, int) else tuple(size)
    return sizes if lifted else (1, *sizes)


def receptive_fields(graph: fx.Graph) -> dict[fx.Node, int]:
    """Frames of the input that each node's value depends on, at most."""
    seen: dict[fx.Node, tuple[int, int]] = {}
    for node in graph.nodes:
        inputs = [seen[n] for n in node.all_input_nodes if n in seen]
        field, jump = max((f for f, _ in inputs), default=1), max((j for _, j in inputs), default=1)
        temporal: Temporal = node.meta.get("temporal", Temporal())
        seen[node] = (field + (temporal.span - 1) * jump, jump * temporal.stride)
    return {node: field for node, (field, _) in seen.items()}
