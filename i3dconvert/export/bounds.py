"""Refuse graphs that would fill memory: small files can ask for values of any size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from i3dconvert.errors import CheckpointError, first_line
from i3dconvert.export.memory import needed

_TYPICAL: Mapping[str, int] = {"batch": 1, "frames": 16, "height": 224, "width": 224}
"""Sizes of the free axes at which the values are counted."""
_SMALL = 1024
"""The most bytes of a tensor that may hold sizes or settings; of larger ones the shape is enough."""
_FLOAT = 4
_CONSTANT = 2**29
"""The most numbers of a constant. BEiT-L has 2**27 biases between all tokens of 16 frames."""


def check_values(model: onnx.ModelProto, path: Path) -> None:
    """Raise `CheckpointError` if a value of the graph is far larger than its input, as ONNX's shape inference finds.

    Data propagation is off, as it computes constants of any size.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model))
    except Exception as error:  # noqa: BLE001 - the types of onnx's errors differ between its versions
        raise CheckpointError(f"{path} is not a valid ONNX file: {first_line(error)}") from None
    inputs = inferred.graph.input[: len(model.graph.input)]
    most, follow = needed(path, ((size,) for _, size in _sizes(inputs))) // _FLOAT, _following(model.graph)
    for name, size in _sizes((*inferred.graph.value_info, *inferred.graph.output)):
        if size > (most if name in follow else _CONSTANT):
            raise CheckpointError(f"{path} computes {name[:60]!r} of {size:,} numbers, more than any network needs")


def _following(graph: onnx.GraphProto) -> set[str]:
    """Return the values that follow from the graph's inputs; nodes are in order."""
    found = {value.name for value in graph.input}
    for node in graph.node:
        if not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model at typical sizes, whose large tensors are inputs without values."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.graph.name = "light"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for value in (*light.graph.input, *light.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value") and axis.dim_param in _TYPICAL:
                axis.dim_value = _TYPICAL[axis.dim_param]
    for output in light.graph.output:
        output.type.tensor_type.ClearField("shape")
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _sizes(values: Iterator[onnx.ValueInfoProto] | tuple[onnx.ValueInfoProto, ...]) -> Iterator[tuple[str, int]]:
    for value in values:
        axes = [axis.dim_value for axis in value.type.tensor_type.shape.dim if axis.HasField("dim_value")]
        yield value.name, math.prod(axes)
