"""Describe a lifted network as a table: each layer's kernels, parameters and receptive field along time."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from i3dconvert.lift.attention.divided import TIME
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.fillings import Filling
from i3dconvert.lift.kernels import deflate
from i3dconvert.lift.lengths import lengths
from i3dconvert.lift.modules import PaddedPool3d, in_space
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.record import Inflation
from i3dconvert.lift.rewriting import Layer
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.recipes import Attending, Temporal

_AT_ONCE = 2**14
"""Values computed at once: they fit a core's cache, and torch stays on one core."""


@dataclass(frozen=True)
class LayerRow:
    """One layer; kernels and strides are `(height, width)` and `(time, height, width)`."""

    name: str
    operation: str
    kernel2d: tuple[int, ...]
    kernel3d: tuple[int, ...]
    stride3d: tuple[int, ...]
    parameters2d: int
    parameters3d: int
    receptive_field: int | None
    """Frames of the input clip that the layer's output depends on; None: all."""
    trained: float | None = None
    """The kernel's distance from its inflated state: see `beside_middle` and `from_inflated`."""


def describe(network: Network3d) -> list[LayerRow]:
    """Return the layers that recipes apply to, in the order of computation; weights are not needed."""
    graph = graph_of(network)
    fields, nodes = receptive_fields(graph), _nodes(graph)
    fillings = inflation_of(network).fillings
    rows = []
    for layer in layers_of(network):
        if layer.geometry.kind == "attention":
            added = network.get_submodule(f"{layer.name}{TIME}") if getattr(layer.temporal, "divided", False) else None
            parameters = sum(tensor.numel() for tensor in added.parameters()) if added else 0
            rows.append(_attention(layer, parameters, fields[nodes[layer.node]]))
            continue
        module: Any = network.get_submodule(layer.name)
        module = module.pool if isinstance(module, PaddedPool3d) else module
        factorised = getattr(module, "temporal", None) is not None
        kernel = (layer.temporal.kernel, *in_space(module.kernel_size))
        tensors = {f"{layer.name}.{name}": tensor for name, tensor in module.named_parameters()}
        count = sum(tensor.numel() for tensor in tensors.values())
        row = LayerRow(
            name=layer.name,
            operation="Conv(2+1)d" if factorised else type(module).__name__,
            kernel2d=kernel[1:],
            kernel3d=kernel,
            stride3d=(layer.temporal.stride, *in_space(module.stride)),
            parameters2d=sum(tensor.numel() // _gain(fillings.get(key)) for key, tensor in tensors.items()),
            parameters3d=count,
            receptive_field=_finite(fields[nodes[layer.name]]),
        )
        rows.append(row)
    return rows


def _nodes(graph: fx.Graph) -> dict[str, fx.Node]:
    """Return the graph's nodes by their names, and by those of the modules that they call."""
    nodes = {str(node.target) if node.op == "call_module" else node.name: node for node in graph.nodes}
    return nodes | {node.name: node for node in graph.nodes}


def frames_by_layer(network: Network3d, frames: int) -> dict[str, int]:
    """Return the number of a clip's frames at each layer's output; raises `FramesError`."""
    graph = graph_of(network)
    counts, nodes = lengths(graph, frames), _nodes(graph)
    names = {
        layer.name: layer.node if layer.geometry.kind == "attention" else layer.name for layer in layers_of(network)
    }
    return {layer: counts[nodes[name]] for layer, name in names.items() if nodes[name] in counts}


def layers_of(network: Network3d) -> list[Layer]:
    """Return the layers to show that recipes apply to; upsampling follows from what it reverses."""
    return [layer for layer in inflation_of(network).layers if layer.geometry.kind != "upsample"]


def energy_by_tap(inflation: Inflation, state: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
    """Return, for each layer, the share of its kernel's energy (the sum of squares) in each tap."""
    found = {}
    for name, kernel in _kernels_in_time(inflation, state):
        wide = kernel.double()
        if whole := _energy(wide):
            found[name] = tuple(_energy(tap) / whole for tap in wide.unbind(2))
    return found


def beside_middle(inflation: Inflation, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return, for each layer, the share of its kernel's energy (the sum of squares) outside the middle tap."""
    return {name: 1 - shares[len(shares) // 2] for name, shares in energy_by_tap(inflation, state).items()}


def from_inflated(inflation: Inflation, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return ‖w − w₀‖ / ‖w‖ for each layer: the kernel's distance from the inflated sum of its taps."""
    found = {}
    for name, kernel in _kernels_in_time(inflation, state):
        filling = inflation.fillings[f"{name}.weight"]
        left = whole = 0.0
        planes = kernel.flatten(0, 1).unsqueeze(0)  # every init treats all planes alike
        for part in map(Tensor.double, planes.chunk(1 + kernel.numel() // _AT_ONCE, dim=1)):
            inflated = filling(deflate(part) / filling.copies, inflation.style.init)
            left += _energy(part - inflated)
            whole += _energy(part)
        if whole:
            found[name] = math.sqrt(left / whole)
    return found


def with_training(layers: list[LayerRow], trained: Mapping[str, float]) -> list[LayerRow]:
    """Return the rows with the distance of each layer's kernel from its inflated state."""
    return [replace(layer, trained=trained.get(layer.name)) for layer in layers]


def _kernels_in_time(inflation: Inflation, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer and its kernel, if that has several taps."""
    for key, filling in inflation.fillings.items():
        if filling.is_kernel and filling.times > 1 and key.endswith(".weight"):
            yield key.removesuffix(".weight"), state[key]


def _energy(tensor: Tensor) -> float:
    return float(tensor.square().sum())


def order_seen(layers: list[LayerRow], time_embedding: str) -> str:
    """Return whether and how the network can tell the order of frames, as text."""
    means = []
    if any(layer.kernel3d[:1] > (1,) and "Pool" not in layer.operation for layer in layers):
        means.append("convolutions over time")
    if any("relative" in layer.operation for layer in layers):
        means.append("relative positions in time")
    if time_embedding != "none":
        means.append("a time embedding")
    if means:
        return f"can tell the order of frames by {' and '.join(means)}, once trained"
    if any("frames" in layer.operation for layer in layers):
        return "attends to other frames but can't tell their order; use --time-embedding zeros"
    return "sees each frame alone"


def _attention(layer: Layer, parameters: int, field: float) -> LayerRow:
    temporal = layer.temporal
    group = temporal.group if isinstance(temporal, Attending) else 1
    reach = "all frames" if group == 0 else "one frame" if group == 1 else f"{group} frames"
    reach += f": {layer.refusal}" if layer.refusal else ""
    traits = [name for name in ("relative", "divided") if getattr(temporal, name, False)]
    traits += [f"not fused: {layer.apart}"] if layer.apart else []
    operation = f"Attention ({', '.join((reach, *traits))})"
    return LayerRow(layer.name, operation, (), (), (), 0, parameters, _finite(field))


def _finite(field: float) -> int | None:
    return None if math.isinf(field) else int(field)


def _gain(filling: Filling | None) -> int:
    """Return the ratio of a 3D tensor's size to its 2D form; one without a 2D form counts zero there."""
    if filling is None:
        return 1
    return sys.maxsize if filling.is_new else filling.times


def receptive_fields(graph: fx.Graph) -> dict[fx.Node, float]:
    """Return the most input frames that each node's value depends on; infinite if an attention sees all."""
    seen: dict[fx.Node, tuple[float, int]] = {}
    for node in graph.nodes:
        inputs = [seen[n] for n in node.all_input_nodes if n in seen]
        field, jump = max((f for f, _ in inputs), default=1), max((j for _, j in inputs), default=1)
        temporal: Temporal = facts_of(node).get("temporal", Temporal())
        if isinstance(temporal, Attending):
            # In a group of k, the frame attended to can lie k - 1 frames away, on either side.
            reach = 2 * (temporal.group - 1) if temporal.group else math.inf
            among_pairs = temporal.pairs or facts_of(node).get("of_pairs", False)
            seen[node] = (field if among_pairs else field + reach * jump, jump)
        else:
            seen[node] = (field + (temporal.span - 1) * jump, jump * temporal.stride)
    return {node: field for node, (field, _) in seen.items()}
