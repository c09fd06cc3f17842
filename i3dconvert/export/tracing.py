"""Convert a torch network to an ONNX graph with torch's dynamo exporter."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from i3dconvert.errors import ExportError
from i3dconvert.export.captured import capture
from i3dconvert.export.runtime import quietly
from i3dconvert.export.spectra import RealInverses


def trace(
    network: nn.Module,
    inputs: list[str],
    names: list[str] | None,
    given: tuple[Any, ...],
    free: tuple[Any, ...] | None,
    opset: int | None,
) -> Any:
    """Return the graph with inputs and outputs of these names; axes that are not `free` are fixed to the example's.

    Raises `ExportError`.
    """
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass

    from i3dconvert.export.operators import IN_ONNX, as_operators  # onnxscript, which only an export needs

    options: dict[str, Any] = {"dynamic_shapes": free, "opset_version": opset}
    options |= {"dynamo": True, "verbose": False, "optimize": False}
    options |= {"custom_translation_table": dict(IN_ONNX)}
    as_operators(network)
    try:
        # Fused attention returns a memory order that the exporter loses when it decomposes it (BEiT, Swin).
        with quietly(), sdpa_kernel(SDPBackend.MATH), RealInverses():
            program = _export(network, given, options)
            # The optimiser compares nodes with one another, and most of them are constants.
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program.model)
            program.optimize()
            # The optimiser renames an input that is an output, too.
            _name(program.model.graph.outputs, names or [])
            _name(program.model.graph.inputs, inputs)
            NameFixPass()(program.model)
    except Exception as error:  # each stage of the exporter raises its own types
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        said = next((found.expand(ours) for theirs, ours in _SAID if (found := theirs.search(reason))), reason.strip())
        raise ExportError(f"torch can't export this network to ONNX: {said}") from error
    assert program is not None
    model: Any = program.model
    if opset is not None and model.opset_imports[""] != opset:
        raise ExportError(f"torch wrote opset {model.opset_imports['']} instead of {opset}")
    return model


def _export(network: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return the exporter's program, by the shorter way where that exists; raises the exporter's errors."""
    with suppress(Exception):  # whatever fails, the exporter has other ways to capture and to decompose
        captured = capture(network, given, options["dynamic_shapes"])
        return torch.onnx.export(captured, given, **options | {"dynamic_shapes": None})
    return torch.onnx.export(network, given, **options)


def _name(values: Any, names: list[str]) -> None:
    for value, name in zip(values, names, strict=False):
        value.name = name


_INSTEAD = "use another operation in the 2D network, or stay in torch with --safetensors"
_SAID = (
    (
        re.compile("Unsupported attribute type"),
        "a setting of an operation, such as the groups of a convolution or the pixels that torch.roll moves by, "
        "follows the clip's batch, frames or size",
    ),
    (
        re.compile(r"No ONNX function found for <OpOverload\(op='aten\.(\w+)'.*complex-valued"),
        rf"it has no ONNX form of \1 for complex numbers; {_INSTEAD}",
    ),
    (
        re.compile(r"No ONNX function found for <OpOverload\(op='(?:aten\.)?([\w.:]+)'"),
        rf"it has no ONNX form of \1; {_INSTEAD}",
    ),
)
"""Errors of the exporter, in words about the network."""
