"""Read ONNX files and run them with onnxruntime."""

from __future__ import annotations

import ctypes
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from i3dconvert.checkpoint.document import KEY, Document
from i3dconvert.errors import CheckpointError, first_line
from i3dconvert.export.bounds import check_values
from i3dconvert.export.deployed import BEST, SCORES
from i3dconvert.export.memory import MORE, bounded, needed
from i3dconvert.files import check_input
from i3dconvert.video.preprocessing import Preprocessing

CLIP, FRAMES = "clip", "frames"
"""The input: `(N, C, T, H, W)`, normalised, or `(N, T, H, W, C)` in uint8."""
CLASSES = "classes"
"""The metadata key of the class names, a JSON list."""
PRECISION = "precision"
"""The metadata key of the type of the weights: float32, float16, bfloat16, int8."""

AXES: Mapping[str, tuple[str, ...]] = {
    CLIP: ("batch", "channels", "frames", "height", "width"),
    FRAMES: ("batch", "frames", "height", "width", "channels"),
}
"""Names of the axes of the two kinds of input."""

TOLERANCES: Mapping[str, float] = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 5e-2}
"""Relative tolerances of onnxruntime against torch in float32, by the type of the weights; int8 has none.

bfloat16 rounds a weight by at most 2^-9 of itself, float16 by 2^-11, and activations too. 5e-2 is 25 times the former,
the sum of independent errors in 25² layers. Weights that a checkpoint stores in bfloat16 are rounded again after
BatchNorms are folded in; Astra's ResNet-152 reaches 4e-3.
"""

_MOST_NUMBERS = 2**27
"""The most numbers in a clip of a fixed shape: half a gigabyte in float32."""

_ELEMENTS = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}
_NO_MEMORY = re.compile("bad_alloc|[Ff]ailed to allocate|bad allocation|out of memory")
_RUNTIME_ERRORS = (
    UnicodeDecodeError,  # for a message that quotes the file
    *(
        getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
        for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    ),
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX file; raises `CheckpointError` for what can't be a network of ours."""
    return {entry.key: entry.value for entry in _read_model(path).metadata_props}


def _read_model(path: Path) -> onnx.ModelProto:
    """Return the graph of an ONNX file, without tensors in other files; raises `CheckpointError` if it is not one.

    Graphs that may not terminate, or have more parts than any network, are rejected: we never write them.
    """
    check_input(path, CheckpointError, "an ONNX file written by `i3dconvert export`")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's error type differs between its implementations
        raise CheckpointError(f"{path} is not a readable ONNX file: {first_line(error)}") from None
    if len(model.graph.node) + len(model.graph.initializer) > _MOST_PARTS:
        raise CheckpointError(f"{path} has a graph of more than {_MOST_PARTS:,} parts, more than i3dconvert writes")
    if inner := [node.op_type for node in model.graph.node if _has_graph(node)] + [f.name for f in model.functions]:
        raise CheckpointError(f"{path} has {inner[0]} in its graph, which may not terminate; i3dconvert writes none")
    return model


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


_MOST_PARTS = 100_000
"""The most nodes and tensors, ten times those of the largest networks."""


def read_document(path: Path) -> Document:
    """Return the metadata document of an exported file; raises `CheckpointError`.

    The file is checked first, so that tensors in a file outside the folder are rejected before any is read.
    """
    model = _read_model(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a valid ONNX file: {first_line(error)}") from None
    check_values(model, path)
    if KEY not in metadata:
        raise CheckpointError(f"{path} was not exported by i3dconvert: its metadata has no {KEY!r}")
    return Document.loads(metadata[KEY], path)


def element(kind: str) -> torch.dtype:
    """Return the torch type of an input, by onnxruntime's name for it; float32 for types that we don't write."""
    return _ELEMENTS.get(kind, torch.float32)


def as_input(clip: Tensor, dtype: torch.dtype, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return a clip `(N, C, T, H, W)` as a file's input, and the clip that this represents: uint8 frames round."""
    if dtype != torch.uint8:
        return clip, clip
    frames = preprocessing.decode(clip)
    return frames, preprocessing.encode(frames)


class _Unheard(StringIO):
    """Takes what libraries print; rich still finds the terminal, for the progress."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.rich_proxied_file = getattr(stream, "rich_proxied_file", stream)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence warnings, logs and prints of exporters and quantisers, whose results are checked afterwards."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(_Unheard(sys.stderr)):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def _said(error: BaseException) -> str:
    """Return what onnxruntime's error says, with the operator, and without codes and places in its source."""
    text = first_line(error)
    running = re.search(r"while running (\w+) node", text)
    said = re.sub(r"^.*(\[ONNXRuntimeError\] : \d+ : \w+ : |Status Message: )", "", text)
    said = re.sub(r"^/\S+\.\w+:\d+ .*?\) ", "", said)
    return f"{running[1]}: {said}" if running else said


def give_back() -> None:
    """Return freed memory to the system, such as the weights that onnxruntime converted to its own layout.

    glibc keeps it otherwise: 700 MiB for a dense ResNet-152.
    """
    with suppress(OSError, AttributeError, TypeError):  # another system, another C library
        ctypes.CDLL(None).malloc_trim(0)


class Runtime:
    """An ONNX file loaded by onnxruntime: call it with the input to get the list of outputs."""

    def __init__(
        self, path: Path, provider: str = "CPUExecutionProvider", sparing: bool = True, trusted: bool = True
    ) -> None:
        """Load a file; `sparing` saves memory, otherwise the session has default options.

        A file that is not `trusted` may take only as much memory as networks of its size and that of its clip.
        """
        self.path, self.trusted = path, trusted
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors are raised, and need no lines of their own
        # One block for all activations, and buffers kept for tensors of their size, cost memory and gain no speed.
        options.enable_mem_pattern = options.enable_mem_reuse = not sparing
        with self._within():
            try:
                self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
            except _RUNTIME_ERRORS as error:
                raise CheckpointError(f"onnxruntime can't load {path}: {_said(error)}") from None
        give_back()
        given = self.session.get_inputs()[0]
        self.input: str = given.name
        self.dtype = element(given.type)
        self.shape: Sequence[int | str] = given.shape
        self.precision: str = self.session.get_modelmeta().custom_metadata_map.get(PRECISION, "float32")
        if math.prod(size for size in self.shape if isinstance(size, int)) > _MOST_NUMBERS:
            raise CheckpointError(f"{path} accepts only clips of {tuple(self.shape)}, larger than any video")
        self.names_best = [output.name for output in self.session.get_outputs()][:2] == [SCORES, BEST]
        """Whether the outputs are the best classes instead of all logits."""

    def __call__(self, given: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in self.run(None, {self.input: given.to(self.dtype).numpy()})]

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Return the outputs of these names, or all, as arrays, for inputs by name; raises `CheckpointError`."""
        with self._within([value.shape for value in feed.values()]):
            try:
                found: list[Any] = self.session.run(names, feed)
            except _RUNTIME_ERRORS as error:
                shape = tuple(feed[self.input].shape)
                raise CheckpointError(f"onnxruntime fails on a clip {shape}: {_said(error)}") from None
        return found

    @contextmanager
    def _within(self, shapes: Sequence[tuple[int, ...]] = ()) -> Iterator[None]:
        """Bound the memory of what is inside, unless the file is trusted; raises `CheckpointError`."""
        most = None if self.trusted else needed(self.path, shapes)
        try:
            with bounded(most):
                yield
        except (CheckpointError, MemoryError) as error:
            if most is None or not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
                raise
            raise CheckpointError(
                f"{self.path} takes more than {most / 2**30:.1f} GiB, far more than networks of its size; "
                f"if you trust it, {MORE}=16 allows 16 GiB"
            ) from None

    def fixed(self, axis: str) -> int | None:
        """Return the size that the file requires on an axis of the input (`AXES`); None if any will do."""
        size = self.shape[AXES.get(self.input, AXES[CLIP]).index(axis)]
        return size if isinstance(size, int) else None
