"""Describe an ONNX file in its metadata, and move it to its path."""

from __future__ import annotations

import gc
import glob
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx_ir
import torch

from i3dconvert.checkpoint import KEY, Document, document_of
from i3dconvert.errors import CheckpointError, ExportError
from i3dconvert.export.attention import ATTENTION, form_of
from i3dconvert.export.runtime import AXES, CLASSES, PRECISION, give_back
from i3dconvert.export.seal import seal
from i3dconvert.export.wire import write
from i3dconvert.files import replacing
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.lift.tree.flat import graph_of

_EXTERNAL_BYTES = 2**31 - 2**20
"""Protobuf's limit; larger tensors go to a file beside the graph."""


def clear_data(path: Path, files: Collection[Path]) -> None:
    """Remove the data files of earlier exports to `path`, except `files`."""
    for earlier in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 12}.data"):
        if earlier not in files:
            earlier.unlink()


def save_in(folder: Path, name: str, model: Any, sha256: str, external_data: bool) -> Path:
    """Write a graph; its tensors go to a file beside it if requested or too large for one file."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    # The name depends on the weights, so that a graph always finds the tensors that it was written with.
    data = f"{name}.{sha256[:12]}.data" if external_data or size > _EXTERNAL_BYTES else None
    if data is None:
        write(model, folder / name)
    else:
        onnx_ir.save(model, folder / name, external_data=data)
    return folder / name


def drop_weights(model: Any) -> None:
    """Drop the weights of a graph that is in its file, and the graphs from which the exporter made it."""
    for value in model.graph.initializers.values():
        value.const_value = None
    gc.collect()  # the exporter's graphs refer to themselves
    give_back()


def put_in_place(folder: Path, path: Path, force: bool) -> tuple[Path, ...]:
    """Seal the files in `folder` and move them to `path`; returns their new paths."""
    seal(folder / path.name)
    files = []
    for part in sorted(folder.iterdir(), key=lambda part: part.name == path.name):
        with replacing(path.with_name(part.name), force or part.suffix == ".data") as place:
            shutil.move(part, place)
        files.append(path.with_name(part.name))
    clear_data(path, files)
    return tuple(files)


class Nowhere(ExportError):
    """The graph is wrong at the traced sizes, too, so fixing them would not help."""


def output_names(network: Network3d) -> list[str] | None:
    """Return `logits` for one output; other networks keep the exporter's names."""
    output = graph_of(network).output_node()
    return ["logits"] if isinstance(output.args[0], torch.fx.Node) else None


def name_axes(model: Any) -> None:
    """Name the dynamic axes of the input throughout the graph."""
    (given,) = model.graph.inputs
    renamed = {
        str(size.value): name
        for name, size in zip(AXES[given.name], given.shape, strict=True)
        if not isinstance(size, int)
    }
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and str(size.value) in renamed:
                value.shape[axis] = renamed[str(size.value)]


def store_as_bfloat16(model: Any) -> None:
    """Store float32 weights except vectors in bfloat16, with a cast: half the bytes, the same arithmetic."""
    start = next(iter(model.graph))
    for value in list(model.graph.initializers.values()):
        if value.dtype != onnx_ir.DataType.FLOAT or len(value.shape) < 2:
            continue
        narrow = torch.from_numpy(value.const_value.numpy().copy()).bfloat16()
        stored = onnx_ir.Value(
            name=f"{value.name}_bfloat16", const_value=onnx_ir.tensor_adapters.TorchTensor(narrow, value.name)
        )
        widened = onnx_ir.node("Cast", [stored], {"to": onnx_ir.DataType.FLOAT})
        widened.outputs[0].name = f"{value.name}_float32"
        widened.outputs[0].shape, widened.outputs[0].dtype = value.shape, value.dtype
        model.graph.insert_before(start, widened)
        value.replace_all_uses_with(widened.outputs[0])
        model.graph.initializers.pop(value.name)
        model.graph.register_initializer(stored)


def describe(model: Any, network: Network3d, sha256: str, precision: str, finetuned: bool, beside: Path) -> None:
    """Add the document and the class names; remove the exporter's notes, such as stack traces."""
    document = _document(network, sha256, finetuned)
    values = (
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(v for node in model.graph for v in node.outputs),
    )
    for part in (model, model.graph, *model.graph, *values):
        part.metadata_props.clear()
    model.metadata_props[KEY] = document.dumps(beside)
    model.metadata_props[PRECISION] = precision
    if form := form_of(model):
        model.metadata_props[ATTENTION] = form
    if names := document.class_names:
        model.metadata_props[CLASSES] = json.dumps(names)


def _document(network: Network3d, sha256: str, finetuned: bool) -> Document:
    """Return the metadata of the network for the file; without an origin if it can't be built again from a file."""
    try:
        return document_of(network, finetuned=finetuned, sha256=sha256)
    except CheckpointError:
        return Document(inflation_of(network), None, sha256, finetuned=True)
