"""Run both networks one node at a time, side by side, to find the first layer that differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from i3dconvert.comparison.forward import evaluating, relative_error, replicated
from i3dconvert.comparison.report import LayerError
from i3dconvert.lift.canonical import canonical
from i3dconvert.lift.counterparts import is_layer
from i3dconvert.lift.network import Network3d
from i3dconvert.lift.reading import Reading, read, rows
from i3dconvert.lift.tree.flat import graph_of


def compare_layers(
    model: nn.Module,
    network: Network3d,
    images: Tensor,
    frames: int,
    dtype: torch.dtype,
    tolerance: float,
    device: str = "cpu",
) -> list[LayerError]:
    """Return the error of every layer (each module that the forward pass calls) for replicated `images` `(N, C, H, W)`.

    Stops where the networks can't continue together. Holds the values of one layer at a time in memory.
    """
    channels, height, width = images.shape[1:]
    traced = canonical(read(model, is_layer, (channels, height, width)))
    found: list[LayerError] = []
    images = images.to(device, dtype)
    with evaluating(model, dtype, network.state_dict(), device), evaluating(network, dtype, device=device):
        steps3d = _steps(fx.Interpreter(network, graph=graph_of(network)), replicated(images, frames))
        seen: set[str] = set()
        for node, value2d in _steps(_Interpreter2d(model, traced), images):
            if node.op != "call_module":
                continue
            try:
                value3d = next(value for other, value in steps3d if other.name == node.name)
            except StopIteration:
                break
            except RuntimeError as error:
                found.append(LayerError(str(node.target), f"fails: {str(error).splitlines()[0]}", (), None, True))
                break
            layer = _compare(node, traced.root, value2d, value3d, len(images), tolerance)
            if layer is not None and layer.name not in seen:
                found.append(layer)
                seen.add(layer.name)
    return found


class _Interpreter2d(fx.Interpreter):
    """Runs the traced graph on the real model; modules that tracing added come from the traced root."""

    def __init__(self, model: nn.Module, traced: Reading) -> None:
        super().__init__(model, graph=traced.graph)
        self._root = traced.root

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        try:
            module = self.module.get_submodule(target)
        except AttributeError:
            module = self._root.get_submodule(target)
        return module(*args, **kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().get_attr(target, args, kwargs)
        except RuntimeError:
            return getattr(self._root, target)


def _steps(interpreter: fx.Interpreter, *inputs: Tensor) -> Iterator[tuple[fx.Node, Any]]:
    interpreter.args_iter = iter(inputs)
    for node in interpreter.graph.nodes:
        interpreter.env[node] = interpreter.run_node(node)
        yield node, interpreter.env[node]
        for used in interpreter.user_to_last_uses.get(node, []):
            del interpreter.env[used]


def _compare(node: fx.Node, root: nn.Module, ours: Any, theirs: Any, count: int, tolerance: float) -> LayerError | None:
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or not rows(node):
        return None
    operation = type(root.get_submodule(str(node.target))).__name__
    if theirs.dim() == ours.dim() + 1:
        reference, value = ours.unsqueeze(2), theirs
    else:  # frames: the batch is clips × time, or a multiple of it (windows)
        reference = ours.reshape(count, 1, -1, *ours.shape[1:])
        value = theirs.reshape(count, -1, reference.shape[2], *theirs.shape[1:])
    same = value.dim() == reference.dim() and all(
        a in (b, 1) for a, b in zip(reference.shape, value.shape, strict=True)
    )
    error = relative_error(reference, value) if same and bool(ours.abs().max() > 0) else None
    if same and error is None:
        error = float(theirs.abs().max())
    diverges = error is None or not error <= tolerance
    return LayerError(str(node.target), operation, tuple(theirs.shape), error, diverges)
