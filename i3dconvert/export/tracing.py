"""A network in torch as an ONNX graph, by torch's dynamo exporter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from i3dconvert.errors import ExportError
from i3dconvert.export.runtime import quietly


def trace(
    network: nn.Module,
    inputs: list[str],
    names: list[str] | None,
    given: tuple[Any, ...],
    free: tuple[Any, ...] | None,
    opset: int | None,
) -> Any:
    """The graph, with inputs of these names and outputs of those; axes that are not `free` are those of the example.

    Raises `ExportError`.
    """
    options: dict[str, Any] = {"input_names": inputs, "output_names": names, "dynamic_shapes": free}
    options |= {"opset_version": opset, "dynamo": True, "verbose": False}
    try:
        # Fused attention gives memory in an order that the exporter, taking it apart, no longer finds (BEiT, Swin).
        with quietly(), sdpa_kernel(SDPBackend.MATH):
            program = torch.onnx.export(network, given, **options)
    except Exception as error:  # the exporter raises as many types as it has stages
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ExportError(f"torch can't export this network to ONNX: {reason.strip()}") from error
    assert program is not None
    model: Any = program.model
    if opset is not None and model.opset_imports[""] != opset:
        raise ExportError(f"torch wrote opset {model.opset_imports['']} where {opset} was asked for")
    return model
