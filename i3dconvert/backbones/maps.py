"""A 2D network cut in front of its last pool: what is left gives feature maps."""

from __future__ import annotations

from torch import Tensor, fx, nn

from i3dconvert.errors import BackboneError, LiftError
from i3dconvert.lift.counterparts import is_layer
from i3dconvert.lift.reading import read

_SIZE = 224
"""Pixels of a side at which the maps are still wider than what a pool leaves of them."""


def feature_maps(model: nn.Module, head: str, channels: int) -> nn.Module:
    """`model` as far as the maps `(N, C, H, W)` that are pooled for its `head`, under the same key names.

    Raises `BackboneError` where there are none, as in transformers, which have tokens.
    """
    name = type(model).__name__
    try:
        network = fx.GraphModule(model, read(model, is_layer, (channels, _SIZE, _SIZE)).graph, class_name=name)
    except LiftError as error:
        raise BackboneError(f"no feature maps can be told of {name}: {error}") from None
    graph = network.graph
    for node in graph.nodes:
        if node.target == head:
            graph.output_node().args = node.args
    graph.eliminate_dead_code()
    pooled = [node for node in graph.nodes if _is_map(node) and all(map(_is_vector, node.users))]
    if not pooled:
        raise BackboneError(f"{name} has no feature maps (N, C, H, W) that it pools; --no-head gives its features")
    graph.output_node().args = (pooled[-1],)
    graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    return network.train(model.training)


def _is_map(node: fx.Node) -> bool:
    """Whether it is an image with its channels first: the network is traced on a square, so that it is one too."""
    value = node.meta.get("value")
    return isinstance(value, Tensor) and value.dim() == 4 and 1 < value.shape[2] == value.shape[3]


def _is_vector(node: fx.Node) -> bool:
    """Whether it is flat, or one pixel of each channel; what the head itself is given is what is wanted."""
    value = node.meta.get("value")
    return node.op == "output" or (isinstance(value, Tensor) and (value.dim() == 2 or tuple(value.shape[2:]) == (1, 1)))
