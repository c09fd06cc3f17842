"""Reading and running ONNX files with onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from i3dconvert.checkpoint import KEY, Document
from i3dconvert.errors import CheckpointError

INPUT = "clip"
CLASSES = "classes"
"""The metadata key of the class names, a JSON list."""

_ELEMENTS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
_RUNTIME_ERRORS = tuple(
    getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
    for name in (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
)


def read_metadata(path: Path) -> dict[str, str]:
    """The `metadata_props` of an ONNX file; raises `CheckpointError` when it isn't one."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's error type differs between its implementations
        raise CheckpointError(f"{path} is not a readable ONNX file: {str(error).partition(chr(10))[0]}") from None
    return {entry.key: entry.value for entry in model.metadata_props}


def read_document(path: Path) -> Document:
    """What an exported file says of itself; raises `CheckpointError`."""
    metadata = read_metadata(path)
    if KEY not in metadata:
        raise CheckpointError(f"{path} was not exported by i3dconvert: its metadata has no {KEY!r}")
    return Document.loads(metadata[KEY], path)


class Runtime:
    """An ONNX file, loaded by onnxruntime on the CPU: called with a clip tensor, gives the list of outputs."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except _RUNTIME_ERRORS as error:
            raise CheckpointError(f"onnxruntime can't load {path}: {str(error).partition(chr(10))[0]}") from None
        given = self.session.get_inputs()[0]
        self.dtype = _ELEMENTS.get(given.type, torch.float32)
        self.shape: Sequence[int | str] = given.shape

    def __call__(self, clip: Tensor) -> list[Tensor]:
        feed: Mapping[str, Any] = {self.session.get_inputs()[0].name: clip.to(self.dtype).numpy()}
        try:
            return [torch.from_numpy(output) for output in self.session.run(None, feed)]
        except _RUNTIME_ERRORS as error:
            shape = tuple(clip.shape)
            raise CheckpointError(f"onnxruntime fails on a clip {shape}: {str(error).partition(chr(10))[0]}") from None

    def fixed(self, axis: int) -> int | None:
        """The size that the file demands on an axis of the clip; None where any will do."""
        size = self.shape[axis]
        return size if isinstance(size, int) else None
