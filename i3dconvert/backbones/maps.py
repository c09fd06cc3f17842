"""Cut a 2D network before its last pool, so that it returns feature maps."""

from __future__ import annotations

from torch import Tensor, fx, nn

from i3dconvert.errors import BackboneError, LiftError
from i3dconvert.lift.counterparts import is_layer
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading import read

_SIZE = 224
"""Height and width, in pixels, at which feature maps are larger than pooled ones."""


def feature_maps(model: nn.Module, head: str, channels: int) -> nn.Module:
    """Return `model` up to the maps `(N, C, H, W)` that are pooled for its `head`, with the same keys.

    Raises `BackboneError` if there are none, as in transformers, which have tokens.
    """
    name = type(model).__name__
    try:
        network = fx.GraphModule(model, read(model, is_layer, (channels, _SIZE, _SIZE)).graph, class_name=name)
    except LiftError as error:
        raise BackboneError(f"can't find the feature maps of {name}: {error}") from None
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
    """Return whether it is an image with channels first: as the input is square, so are its maps."""
    value = facts_of(node).get("value")
    return isinstance(value, Tensor) and value.dim() == 4 and 1 < value.shape[2] == value.shape[3]


def _is_vector(node: fx.Node) -> bool:
    """Return whether it is the output, a vector for each image, or one pixel of each channel."""
    value = facts_of(node).get("value")
    return node.op == "output" or (isinstance(value, Tensor) and (value.dim() == 2 or tuple(value.shape[2:]) == (1, 1)))
