"""A graph over layers by their full names, as a module whose code calls them in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, fx, nn

from i3dconvert.lift.tree.blocks import Block
from i3dconvert.lift.tree.calling import named
from i3dconvert.lift.tree.code import Code, spelt, variable


class Directly(Code):
    """Code that calls each layer with the values as they are, and has no border."""

    form = staticmethod(lambda node: "plain")

    def _call(self, graph: fx.Graph, node: fx.Node, clips: Any, args: Any, kwargs: Any) -> fx.Node:
        return graph.create_node("call_module", spelt(node.target), args, kwargs, variable(node.name))


class Straight(Block):
    """A module of one graph, whose layers and tensors have their full names."""

    promised: ClassVar[dict[str, Callable[[Any], Any]]] = {
        **Block.promised,
        "graph": lambda straight: straight.__dict__["_i3d_code"].graph,
    }

    def __init__(self, graph: fx.Graph, parts: Mapping[str, Any]) -> None:
        super().__init__(Directly(graph, 1, "plain"))
        for path, part in parts.items():
            owner: nn.Module = self
            *above, last = path.split(".")
            for step in above:
                if step not in owner._modules:
                    owner.add_module(step, nn.Module())
                owner = owner.get_submodule(step)
            if isinstance(part, nn.Module):
                owner.add_module(last, part)
            elif isinstance(part, nn.Parameter):
                owner.register_parameter(last, part)
            elif isinstance(part, Tensor):
                owner.register_buffer(last, part)
            else:
                setattr(owner, last, part)
        self._i3d_ready = True

    def forward(self, clip: Tensor) -> Any:
        """Run the graph on clips `(N, C, T, H, W)`."""
        return super().forward(clip)


def straightened(network: nn.Module, graph: fx.Graph, name: str) -> Straight:
    """Return `graph` as a module, with the layers and tensors of `network` that it names."""
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            parts[str(node.target)] = network.get_submodule(str(node.target))
    for node in graph.nodes:
        if node.op == "get_attr":
            owner, _, last = str(node.target).rpartition(".")
            if owner not in parts:
                parts[str(node.target)] = getattr(network.get_submodule(owner), last)
    return named(Straight, name)(graph, parts)
