"""Write a model repository for NVIDIA's Triton Inference Server around an exported ONNX file.

Plain files use dynamic batching. Streams use sequence batching with the state kept on the server (implicit state
management), so that many cameras share one server. https://docs.nvidia.com/deeplearning/triton-inference-server/
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from i3dconvert.errors import ExportError
from i3dconvert.export.runtime import CLASSES, read_metadata
from i3dconvert.files import replacing_in
from i3dconvert.streaming.runtime import STREAM, Spec

MOST = 32
"""The most clips, or videos, in a batch."""
LABELS, CONFIG, VERSION, MODEL = "labels.txt", "config.pbtxt", "1", "model.onnx"
IDLE = 60_000_000
"""Microseconds until the server drops a camera that sends nothing."""

_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT64: "TYPE_INT64",
}
_LABELLED = ("logits", "classes")


def write_repository(file: Path, folder: Path, force: bool = False) -> tuple[Path, ...]:
    """Write `folder`, whose name is the model's: `config.pbtxt`, `1/model.onnx`, and `labels.txt` for class names.

    The server reads the parent folder. Raises `OutputError`, `CheckpointError`, and `ExportError` for a file with
    external tensors.
    """
    metadata = read_metadata(file)
    model = onnx.load(file, load_external_data=False)
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise ExportError(f"{file} has external tensors; export it without --external-data for a model repository")
    names = [str(name) for name in json.loads(metadata.get(CLASSES, "[]"))]
    spec = Spec.loads(metadata[STREAM], file) if STREAM in metadata else None
    with replacing_in(folder, force) as work:
        (work / CONFIG).write_text(config(folder.name, model.graph, spec, bool(names)), encoding="utf-8")
        if names:
            (work / LABELS).write_text("".join(f"{' '.join(name.split())}\n" for name in names), encoding="utf-8")
        shutil.copyfile(file, work / MODEL)
    version = folder / VERSION
    version.mkdir(exist_ok=True)
    (folder / MODEL).replace(version / MODEL)
    return (folder / CONFIG, *([folder / LABELS] if names else []), version / MODEL)


def config(name: str, graph: Any, spec: Spec | None, labels: bool) -> str:
    """Return the text of `config.pbtxt`, a `ModelConfig` in protobuf's text format."""
    kept = {one for state in (spec.state if spec else ()) for one in (state.input, state.output)}
    given = [value for value in graph.input if value.name not in kept]
    found = [value for value in graph.output if value.name not in kept]
    batched = all(value.type.tensor_type.shape.dim[0].dim_param for value in given)
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {MOST if batched else 0}"]
    lines += [_block("input", _tensor(value, batched)) for value in given]
    for value in found:
        of_classes = [f'label_filename: "{LABELS}"'] if labels and value.name in _LABELLED else []
        lines.append(_block("output", [*_tensor(value, batched), *of_classes]))
    if spec is not None:
        types = {value.name: _TYPES[value.type.tensor_type.elem_type] for value in graph.input}
        lines.append(_block("sequence_batching", _sequence(spec, types)))
    elif batched:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensor(value: Any, batched: bool) -> list[str]:
    of = value.type.tensor_type
    sizes = [size.dim_value or -1 for size in of.shape.dim][batched:]
    return [f'name: "{value.name}"', f"data_type: {_TYPES[of.elem_type]}", _dims(sizes)]


def _sequence(spec: Spec, types: Mapping[str, str]) -> list[str]:
    """Return the lines for the state, which each camera has separately and which starts as zeros."""
    lines = [f"max_sequence_idle_microseconds: {IDLE}", f"oldest {{ max_candidate_sequences: {MOST} }}"]
    for state in spec.state:
        tensor = [f"data_type: {types[state.input]}", _dims(state.shape)]
        initial = _block("initial_state", [*tensor, "zero_data: true", 'name: "zeros"'])
        names = [f'input_name: "{state.input}"', f'output_name: "{state.output}"']
        lines.append(_block("state", [*names, *tensor, initial]))
    return lines


def _dims(sizes: Sequence[int]) -> str:
    return f"dims: [ {', '.join(map(str, sizes))} ]"


def _block(name: str, lines: Iterable[str]) -> str:
    inner = "\n".join(f"  {line}" for text in lines for line in text.split("\n"))
    return f"{name} {{\n{inner}\n}}"
