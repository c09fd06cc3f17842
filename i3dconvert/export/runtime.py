"""Reading and running ONNX files with onnxruntime."""

from __future__ import annotations

import ctypes
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from i3dconvert.checkpoint.document import KEY, Document
from i3dconvert.errors import CheckpointError, first_line
from i3dconvert.export.deployed import BEST, SCORES
from i3dconvert.files import check_input
from i3dconvert.video.preprocessing import Preprocessing

CLIP, FRAMES = "clip", "frames"
"""The input: `(N, C, T, H, W)` normalised, or `(N, T, H, W, C)` in uint8."""
CLASSES = "classes"
"""The metadata key of the class names, a JSON list."""
PRECISION = "precision"
"""The metadata key of what the weights are stored in: float32, float16, bfloat16, int8."""

AXES: Mapping[str, tuple[str, ...]] = {
    CLIP: ("batch", "channels", "frames", "height", "width"),
    FRAMES: ("batch", "frames", "height", "width", "channels"),
}
"""Names of the axes of the two kinds of input."""

TOLERANCES: Mapping[str, float] = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 5e-2}
"""Relative, of onnxruntime against torch in float32, by what the weights are stored in; int8 is held to none.

A weight is rounded by 2^-9 of itself at most in bfloat16, by 2^-11 in float16, where activations are rounded too. 5e-2
is 25 of the former: as much as independent ones add up to in 25² layers. Weights that a checkpoint has in bfloat16 are
rounded again once the BatchNorms behind them are folded in; that of Astra's ResNet-152 comes to 4e-3.
"""

_MOST_NUMBERS = 2**27
"""In a clip of a fixed shape: half a gigabyte in float32."""

_ELEMENTS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(uint8)": torch.uint8}
_RUNTIME_ERRORS = (
    UnicodeDecodeError,  # of a message that quotes the file
    *(
        getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
        for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    ),
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)


def read_metadata(path: Path) -> dict[str, str]:
    """The `metadata_props` of an ONNX file; raises `CheckpointError` when it isn't one.

    A graph that may run without end, or holds more parts than any network, is refused: we write none.
    """
    check_input(path, CheckpointError, "an ONNX file that `i3dconvert export` wrote")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's error type differs between its implementations
        raise CheckpointError(f"{path} is not a readable ONNX file: {first_line(error)}") from None
    if len(model.graph.node) + len(model.graph.initializer) > _MOST_PARTS:
        raise CheckpointError(f"{path} has a graph of more than {_MOST_PARTS:,} parts, which no export of ours has")
    if inner := [node.op_type for node in model.graph.node if _has_graph(node)] + [f.name for f in model.functions]:
        raise CheckpointError(f"{path} has {inner[0]} in its graph, which may run without end; we write none")
    return {entry.key: entry.value for entry in model.metadata_props}


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


_MOST_PARTS = 100_000
"""Nodes and tensors; the largest networks have a tenth of it."""


def read_document(path: Path) -> Document:
    """What an exported file says of itself; raises `CheckpointError`.

    The file is checked as a whole, so that tensors in a file outside the folder are refused before any is read.
    """
    metadata = read_metadata(path)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a valid ONNX file: {first_line(error)}") from None
    if KEY not in metadata:
        raise CheckpointError(f"{path} was not exported by i3dconvert: its metadata has no {KEY!r}")
    return Document.loads(metadata[KEY], path)


def as_input(clip: Tensor, dtype: torch.dtype, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """A clip `(N, C, T, H, W)` as a file takes it, and as what that means: frames in uint8 are rounded."""
    if dtype != torch.uint8:
        return clip, clip
    frames = preprocessing.decode(clip)
    return frames, preprocessing.encode(frames)


@contextmanager
def quietly() -> Iterator[None]:
    """Exporters and quantisers warn, log and print of things that the check behind them decides."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def _give_back() -> None:
    """Give the system the memory that onnxruntime has freed while it brought the weights into its own layout.

    glibc keeps it otherwise, for a dense ResNet-152 700 MiB.
    """
    with suppress(OSError, AttributeError, TypeError):  # another system, another C library
        ctypes.CDLL(None).malloc_trim(0)


class Runtime:
    """An ONNX file, loaded by onnxruntime: called with its input, it gives the list of outputs."""

    def __init__(self, path: Path, provider: str = "CPUExecutionProvider", sparing: bool = True) -> None:
        """Not `sparing` of memory is a session as users make it."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # One block for all activations, and buffers that wait for the next tensor of their size: memory for no speed.
        options.enable_mem_pattern = options.enable_mem_reuse = not sparing
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except _RUNTIME_ERRORS as error:
            raise CheckpointError(f"onnxruntime can't load {path}: {first_line(error)}") from None
        _give_back()
        given = self.session.get_inputs()[0]
        self.input: str = given.name
        self.dtype = _ELEMENTS.get(given.type, torch.float32)
        self.shape: Sequence[int | str] = given.shape
        self.precision: str = self.session.get_modelmeta().custom_metadata_map.get(PRECISION, "float32")
        if math.prod(size for size in self.shape if isinstance(size, int)) > _MOST_NUMBERS:
            raise CheckpointError(f"{path} takes clips of {tuple(self.shape)} alone, which are larger than any video's")
        self.names_best = [output.name for output in self.session.get_outputs()][:2] == [SCORES, BEST]
        """Whether the outputs are the best classes rather than the logits of all."""

    def __call__(self, given: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in self.run(None, {self.input: given.to(self.dtype).numpy()})]

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The outputs of these names, or all, for inputs by name, as arrays; raises `CheckpointError`."""
        try:
            found: list[Any] = self.session.run(names, feed)
        except _RUNTIME_ERRORS as error:
            shape = tuple(feed[self.input].shape)
            raise CheckpointError(f"onnxruntime fails on a clip {shape}: {first_line(error)}") from None
        return found

    def fixed(self, axis: str) -> int | None:
        """The size that the file demands on an axis of the input (`AXES`); None where any will do."""
        size = self.shape[AXES.get(self.input, AXES[CLIP]).index(axis)]
        return size if isinstance(size, int) else None
