"""ONNX by torch's dynamo exporter, with what a runtime's user needs in the metadata."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from i3dconvert.backbones import Origin
from i3dconvert.checkpoint import KEY, Document
from i3dconvert.errors import CheckpointError, ExportError, FramesError
from i3dconvert.export.frames import frames_form
from i3dconvert.export.runtime import CLASSES, INPUT, Runtime
from i3dconvert.files import check_output, replacing
from i3dconvert.lift.network import Network3d, cast
from i3dconvert.verification.forward import check_outputs, evaluating, outputs
from i3dconvert.verification.report import Check
from i3dconvert.weights import digest

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-2}
"""Relative, of onnxruntime against torch in float32 with the same weights."""

OLDEST_OPSET = 18
"""What torch's dynamo exporter starts from."""

_AXES = {0: "batch", 2: "frames", 3: "height", 4: "width"}
_EXTERNAL_BYTES = 2**31 - 2**20
"""Protobuf holds no more; tensors beyond it go to a file beside the graph."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was checked."""

    path: Path
    files: tuple[Path, ...]
    shape: tuple[int | str, ...]
    """Of the input `clip`; names where any size will do."""
    opset: int
    checked_on: tuple[int, ...]
    check: Check


def export_onnx(
    network: Network3d,
    path: str | Path,
    *,
    static: bool = False,
    optimize: bool = False,
    opset: int | None = None,
    dtype: torch.dtype = torch.float32,
    force: bool = False,
    finetuned: bool = False,
    progress: Progress = lambda _: None,
) -> Exported:
    """Write an inflated network as ONNX: input `clip` `(N, C, T, H, W)`, output `logits` (dense networks: their own).

    Batch and frames are dynamic, height and width too in convolutional networks, unless `static`. The file is checked
    by `onnx.checker`, and by onnxruntime against torch at a shape other than the traced one, before it is put in place;
    tensors past 2 GB go to `<path>.data`. With `optimize`, the graph computes over frames with 2D convolutions (see
    `i3dconvert.export.frames`), which CPU runtimes run faster than 3D ones. Raises `ExportError`, `OutputError`.
    """
    path = Path(path)
    check_output(path, force)
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ExportError(
            f"no opset {opset}: torch writes {OLDEST_OPSET} and newer, the installed onnx knows up to {newest}"
        )
    network = _in_dtype(network, dtype)
    traced_on, checked_on, sizes_too = _shapes(network, static)
    progress("tracing for ONNX")
    with _quietly():
        form = frames_form(network) if optimize else network
        names = _output_names(network)
        program, sizes_too = _trace(form, names, torch.zeros(traced_on, dtype=dtype), static, sizes_too, opset)
    if opset is not None and program.model.opset_imports[""] != opset:
        raise ExportError(f"torch wrote opset {program.model.opset_imports['']} where {opset} was asked for")
    _name_axes(program.model)
    _describe(program.model, network, finetuned, path.parent)
    if not sizes_too:
        checked_on = (*checked_on[:3], *traced_on[3:])
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        progress("writing")
        external = (
            sum(value.const_value.nbytes for value in program.model.graph.initializers.values()) > _EXTERNAL_BYTES
        )
        program.save(written, external_data=external)
        progress("checking with onnxruntime")
        check = _check(network, written, checked_on, dtype)
        if not check.passed:
            raise ExportError(f"the exported network does not agree with torch at {checked_on}: {check.detail}")
        files = []
        for part in sorted(Path(folder).iterdir(), key=lambda part: part.name == path.name):
            with replacing(path.with_name(part.name), force) as place:
                shutil.move(part, place)
            files.append(path.with_name(part.name))
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in program.model.graph.inputs[0].shape)
    return Exported(path, tuple(files), shape, program.model.opset_imports[""], checked_on, check)


def _in_dtype(network: Network3d, dtype: torch.dtype) -> Network3d:
    if dtype not in TOLERANCES:
        raise ExportError(f"no ONNX export in {dtype}; known: float32, float16")
    if all(p.dtype == dtype for p in network.parameters()) and not network.training:
        return network
    copied: Network3d = cast(network, dtype).eval()
    return copied


def _shapes(network: Network3d, static: bool) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """The clip to trace on, another to check on, and whether height and width may differ.

    No axis of the traced one is ever 1 on the way: the exporter would take that for a constant.
    """
    channels, height, width = network.inflation.input
    legal = [frames for frames in range(1, 257) if _left(network, frames) >= 1]
    long = [frames for frames in legal if frames > 1 and _left(network, frames) > 1]
    traced = long[0] if not static else next((frames for frames in legal if frames >= 16), legal[-1])
    if static:
        shape = (1, channels, traced, height, width)
        return shape, shape, False
    other = next(frames for frames in (*legal, legal[0]) if frames > 1 and frames != traced)
    sizes_too = network.inflation.any_size
    larger = (height + 32, width + 32) if sizes_too else (height, width)
    return (2, channels, traced, height, width), (3, channels, other, *larger), sizes_too


def _left(network: Network3d, frames: int) -> int:
    try:
        return network.frames_left(frames)
    except FramesError:
        return 0


def _trace(
    network: nn.Module, names: list[str] | None, clip: Tensor, static: bool, sizes_too: bool, opset: int | None
) -> tuple[torch.onnx.ONNXProgram, bool]:
    any_size, dynamic = torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC
    attempts: list[dict[int, Any] | None] = [None] if static else [{0: dynamic, 2: dynamic}]
    if sizes_too:
        attempts.insert(0, {0: dynamic, 2: dynamic, 3: any_size, 4: any_size})
    for axes in attempts:
        try:
            program = torch.onnx.export(
                network,
                (clip,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes=None if axes is None else (axes,),
                opset_version=opset,
            )
        except Exception as error:  # noqa: BLE001 - the exporter raises as many types as it has stages
            failure = error
            continue
        assert program is not None
        height = program.model.graph.inputs[0].shape
        assert height is not None
        return program, not isinstance(height[3], int)
    reason = next((line for line in str(failure).splitlines() if line.strip()), type(failure).__name__)
    raise ExportError(f"torch can't export this network to ONNX: {reason.strip()}") from failure


def _output_names(network: Network3d) -> list[str] | None:
    """`logits` for a classifier; a dense or multi-output network keeps the exporter's names."""
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    return ["logits"] if isinstance(output.args[0], torch.fx.Node) else None


def _name_axes(model: Any) -> None:
    """Call the dynamic axes of the input what they are, throughout the graph."""
    (clip,) = model.graph.inputs
    renamed = {
        str(clip.shape[axis].value): name for axis, name in _AXES.items() if not isinstance(clip.shape[axis], int)
    }
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and str(size.value) in renamed:
                value.shape[axis] = renamed[str(size.value)]


def _describe(model: Any, network: Network3d, finetuned: bool, beside: Path) -> None:
    """Put the document and the class names in; take the exporter's notes, stack traces among them, out."""
    origin: Origin | None = network.meta.get("origin")
    sha256 = digest({key: tensor.cpu() for key, tensor in network.state_dict().items()})
    document = Document(network.inflation, origin, sha256, finetuned)
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props[KEY] = document.dumps(beside)
    names = origin.class_names() if origin is not None else []
    if names:
        model.metadata_props[CLASSES] = json.dumps(names)


def _check(network: Network3d, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Check:
    try:
        onnx.checker.check_model(str(path), full_check=False)
        clip = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).float()
        value = Runtime(path)(clip)
    except (onnx.checker.ValidationError, CheckpointError) as error:
        raise ExportError(f"the exported file is refused: {str(error).partition(chr(10))[0]}") from None
    with evaluating(network, torch.float32):
        reference = outputs(network(clip))
    return check_outputs("onnxruntime against torch", reference, value, TOLERANCES[dtype])


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter warns and logs of things that the check behind it decides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
