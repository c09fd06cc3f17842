"""ONNX by torch's dynamo exporter, with what a runtime's user needs in the metadata."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from i3dconvert.backbones import Origin
from i3dconvert.backbones.changes import HEADLESS
from i3dconvert.checkpoint import KEY, Document, document_of, network_in
from i3dconvert.comparison.forward import evaluating, outputs
from i3dconvert.comparison.report import Check
from i3dconvert.errors import CheckpointError, ExportError, OutputError
from i3dconvert.export.attention import ATTENTION, form_of
from i3dconvert.export.checking import Compared, Shape
from i3dconvert.export.deployed import BEST, SCORES, BestClasses, FromDecoder
from i3dconvert.export.frames import FRAMES as FRAMES_OF_FORM
from i3dconvert.export.frames import frames_form
from i3dconvert.export.framewise import MinimalConv, StackedConv
from i3dconvert.export.quantised import agreement, likeness, quantise
from i3dconvert.export.runtime import AXES, CLASSES, CLIP, FRAMES, PRECISION, TOLERANCES, Runtime, as_input, quietly
from i3dconvert.export.seal import seal
from i3dconvert.export.tracing import trace
from i3dconvert.files import check_output, replacing, workshop
from i3dconvert.lift.lengths import left, lengths
from i3dconvert.lift.network import Network3d, cast, inflation_of, origin_of
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.progress import Progress, silent, stages
from i3dconvert.recipes import Attending
from i3dconvert.video.media import read_clips
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import digest

OLDEST_OPSET = 18
"""What torch's dynamo exporter starts from."""

_EXTERNAL_BYTES = 2**31 - 2**20
"""Protobuf holds no more; tensors beyond it go to a file beside the graph."""

CALIBRATION_CLIPS = 8

STAGES = TRACING, WRITING, CHECKING, QUANTISING = ("tracing", "writing", "checking with onnxruntime", "quantising")
"""What progress tells of; the last of int8 alone."""

LONGEST = 256
"""Frames of the clips that an export is traced and checked on."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was checked."""

    path: Path
    files: tuple[Path, ...]
    input: str
    """`clip` `(N, C, T, H, W)`, or `frames` `(N, T, H, W, C)` in uint8."""
    shape: tuple[int | str, ...]
    """Shape of the input; a name where any size will do."""
    opset: int
    checked_on: tuple[int, ...]
    check: Check
    agreement: float | None = None
    """For int8: the share of calibration clips on which the top class equals float32's; for features, their cosine."""
    warning: str | None = None
    precision: str = "float32"


def export_onnx(
    network: Network3d,
    path: str | Path,
    *,
    static: bool = False,
    optimize: bool = True,
    opset: int | None = None,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    calibrate: Path | None = None,
    uint8_input: bool = False,
    top_k: int | None = None,
    external_data: bool = False,
    tolerance: float | None = None,
    force: bool = False,
    finetuned: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write an inflated network as ONNX: input `clip` `(N, C, T, H, W)`, output `logits` (dense networks: their own).

    Batch and frames are dynamic, height and width too in convolutional networks, unless `static`; an axis at other
    sizes of which the graph would not be equal is fixed, which `warning` says. The file is checked by `onnx.checker`,
    and by onnxruntime against torch at shapes other than the traced one, odd ones among them, before it is put in
    place; tensors past 2 GB, or with `external_data`, go to `<path>.<hash>.data`.

    Args:
        network: its weights may have been fine-tuned (`finetuned`).
        path: the file to write; an existing one only with `force`.
        static: batch 1, 16 frames and the backbone's size.
        optimize: the graph computes over frames with 2D convolutions (`i3dconvert.export.frames`), which CPU runtimes
            run faster than 3D ones; without it, it has the network's own 3D layers.
        opset: torch's own choice by default; from 23 on attentions are ONNX's `Attention`, which onnxruntime has from
            1.23 on.
        dtype: float16 computes in it, bfloat16 stores the weights in it and computes in float32, for which runtimes
            have kernels everywhere.
        int8: 8-bit convolutions, by onnxruntime's static quantisation, calibrated on the frames in `calibrate` (a video
            or a directory of pictures), or else on noise.
        uint8_input: the input is `frames` `(N, T, H, W, C)` in uint8, normalised inside.
        top_k: the outputs are the probabilities and the indices of so many best classes, `scores` and `classes`.
        external_data: the tensors go to a file beside the graph, which runtimes map instead of reading it.
        tolerance: of the check, relative; by default 1e-5, and in half precision `TOLERANCES`.

    Raises `ExportError`, `OutputError`, `MediaError`.
    """
    path, network = Path(path), network_in(network)
    if path.suffix != ".onnx":
        raise OutputError(f"{path} is no name of an ONNX file: its suffix is .onnx")
    check_output(path, force)
    check_opset(opset)
    precision = "int8" if int8 else str(dtype).removeprefix("torch.")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16) or (int8 and dtype != torch.float32):
        raise ExportError(f"no ONNX export in {dtype}{' with int8' if int8 else ''}; known: float32, float16, bfloat16")
    if int8 and external_data:
        raise ExportError("onnxruntime's quantiser reads and writes single files: int8 goes without --external-data")
    network = in_dtype(network, torch.float16 if dtype == torch.float16 else torch.float32)
    preprocessing = preprocessing_of(network, uint8_input or calibrate is not None)
    clips = _calibration(network, calibrate, preprocessing) if int8 else None
    name = FRAMES if uint8_input else CLIP
    progress("bringing it over frames" if optimize else "preparing")
    with quietly():
        form: nn.Module = frames_form(network, minimal=not int8) if optimize else network
    shapes_of = partial(_shapes, network, form)
    names = _output_names(network)
    if uint8_input:
        form = FromDecoder(form, preprocessing)
    if top_k is not None:
        form, names = BestClasses(form, check_best(network, top_k)), [SCORES, BEST]
    sha256 = digest({key: tensor.cpu() for key, tensor in network.state_dict().items()})
    allowed = TOLERANCES["float32" if int8 else precision] if tolerance is None else tolerance
    compared = Compared(network, preprocessing, allowed, strict=tolerance is not None)
    written_dtype = next(network.parameters()).dtype

    begin = stages(progress, STAGES if int8 else STAGES[:-1])

    def attempt(folder: Path, free: frozenset[str]) -> tuple[Any, Check, Shape]:
        """The graph with these axes free, written to the folder, and how the check went; raises `ExportError`."""
        traced_on, shapes = shapes_of(free)
        begin(TRACING)
        example = torch.zeros(traced_on, dtype=written_dtype)
        given = preprocessing.decode(example) if uint8_input else example
        kinds = {"batch": torch.export.Dim.DYNAMIC, "frames": torch.export.Dim.DYNAMIC}
        axes = {AXES[name].index(axis): kinds.get(axis, torch.export.Dim.AUTO) for axis in free}
        model = trace(form, [name], names, (given,), (axes,) if free else None, opset)
        _name_axes(model)
        if dtype == torch.bfloat16:
            _store_as_bfloat16(model)
        describe(model, network, sha256, precision, finetuned, path.parent)
        begin(WRITING)
        save_in(folder, path.name, model, sha256, external_data)
        begin(CHECKING)
        check, at = compared.check(folder / path.name, [_fixed_as_in(model, shape, traced_on) for shape in shapes])
        if not check.passed:
            at_all = compared.check(folder / path.name, [traced_on])[0].passed
            raise (ExportError if at_all else _Nowhere)(
                f"the exported network does not agree with torch at {at}: {check.detail}"
            )
        return model, check, at

    share = None
    with workshop(path) as folder:
        written = folder / path.name
        model, check, checked_on, why = _first_equal(
            partial(attempt, folder), _attempts(static, inflation_of(network).any_size)
        )
        if clips is not None:
            begin(QUANTISING)
            origin: Origin | None = origin_of(network)
            compare = likeness if origin is not None and origin.changes.head in HEADLESS else agreement
            share = _quantised(written, clips, preprocessing, compare)
        progress("sealing")
        files = put_in_place(folder, path, force)
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in model.graph.inputs[0].shape)
    notes = [f"{_fixed_axes(name, shape)}: {why}"] if why else []
    if int8 and calibrate is None:
        notes.append("calibrated on noise; frames of your own (--calibrate) give better ranges")
    opset, warning = model.opset_imports[""], "; ".join(notes) or None
    return Exported(path, files, name, shape, opset, checked_on, check, share, warning, precision)


def clear_data(path: Path, files: Collection[Path]) -> None:
    """Remove what earlier exports to `path` have left of tensors beside the graph, but for `files`."""
    for earlier in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 12}.data"):
        if earlier not in files:
            earlier.unlink()


def check_opset(opset: int | None) -> None:
    """Raise `ExportError` for an operator set that can't be written."""
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ExportError(
            f"no opset {opset}: torch writes {OLDEST_OPSET} and newer, the installed onnx knows up to {newest}"
        )


def save_in(folder: Path, name: str, model: Any, sha256: str, external_data: bool) -> Path:
    """Write a graph, its tensors beside it where they are asked for or too large for one file."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    # A name of its own for each set of weights: a graph in place always finds the tensors that it was written with.
    data = f"{name}.{sha256[:12]}.data" if external_data or size > _EXTERNAL_BYTES else None
    onnx_ir.save(model, folder / name, external_data=data)
    return folder / name


def put_in_place(folder: Path, path: Path, force: bool) -> tuple[Path, ...]:
    """Seal what was written to `folder` and bring it to `path`; returns the files there."""
    seal(folder / path.name)
    files = []
    for part in sorted(folder.iterdir(), key=lambda part: part.name == path.name):
        with replacing(path.with_name(part.name), force or part.suffix == ".data") as place:
            shutil.move(part, place)
        files.append(path.with_name(part.name))
    clear_data(path, files)
    return tuple(files)


class _Nowhere(ExportError):
    """The graph is not equal at the traced sizes either: fixing them would not help."""


def _attempts(static: bool, sizes_too: bool) -> list[frozenset[str]]:
    """The axes that are free, in the order in which they are tried."""
    over_time = [frozenset(axes) for axes in (("batch", "frames"), ("batch",), ())]
    sizes = [over_time[0] | {"height", "width"}] if sizes_too else []
    return over_time[-1:] if static else [*sizes, *over_time]


def _first_equal(
    attempt: Callable[[frozenset[str]], tuple[Any, Check, Shape]], attempts: Sequence[frozenset[str]]
) -> tuple[Any, Check, Shape, str]:
    """What the first attempt gives that does not fail, and why those before it did, if any; raises their first error.

    One that fails as the one before it does not depend on what is free: no other is made then.
    """
    errors: list[ExportError] = []
    for free in attempts:
        try:
            return *attempt(free), str(errors[0]) if errors else ""
        except _Nowhere:
            raise
        except ExportError as error:
            errors.append(error)
            if len({str(one) for one in errors}) < len(errors):
                break
    raise errors[0]


def _fixed_as_in(model: Any, shape: Shape, traced: Shape) -> Shape:
    """The shape of a clip, on axes that the graph has fixed as it was traced."""
    (given,) = model.graph.inputs
    fixed = {axis for axis, size in zip(AXES[given.name], given.shape, strict=True) if isinstance(size, int)}
    return tuple(t if axis in fixed else s for axis, s, t in zip(AXES[CLIP], shape, traced, strict=True))


def _fixed_axes(name: str, shape: tuple[int | str, ...]) -> str:
    sizes = dict(zip(AXES[name], shape, strict=True))
    fixed = [f"{axis} {size}" for axis, size in sizes.items() if isinstance(size, int) and axis != "channels"]
    return f"the graph is for {', '.join(fixed)} alone"


def in_dtype(network: Network3d, dtype: torch.dtype) -> Network3d:
    """The network in eval mode on the CPU, in this type."""
    if all((p.dtype, p.device.type) == (dtype, "cpu") for p in network.parameters()) and not network.training:
        return network
    copied: Network3d = cast(network, dtype).cpu().eval()
    return copied


def preprocessing_of(network: Network3d, needed: bool) -> Preprocessing:
    """Return the preprocessing of the 2D network; raises `ExportError` if it is needed and there is none."""
    origin: Origin | None = origin_of(network)
    if origin is None and needed:
        raise ExportError("a network made from a module in memory has no preprocessing to put pictures through")
    return origin.preprocessing if origin is not None else Preprocessing()


def check_best(network: Network3d, top_k: int) -> int:
    """`top_k`, where the network has as many classes; raises `ExportError`."""
    channels, height, width = inflation_of(network).input
    clip = torch.zeros(1, channels, inflation_of(network).minimum_frames, height, width)
    with evaluating(network, torch.float32):
        found = outputs(network(clip))
    if len(found) != 1 or found[0].dim() != 2:
        raise ExportError("only a classifier, whose one output is (N, classes), has best classes (--top-k)")
    if not 1 <= top_k <= found[0].shape[1]:
        raise ExportError(f"no {top_k} best classes of {found[0].shape[1]}")
    return top_k


def _calibration(network: Network3d, source: Path | None, preprocessing: Preprocessing) -> Tensor:
    """Clips `(N, C, T, H, W)` to calibrate int8 on."""
    _, *shape = _shapes(network, network, frozenset())[0]
    if source is None:
        return torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    return read_clips(source, preprocessing, shape[1], CALIBRATION_CLIPS)


def _quantised(
    path: Path, clips: Tensor, preprocessing: Preprocessing, compare: Callable[[Runtime, Runtime, Tensor], float]
) -> float:
    """Put the quantised network in the place of the exact one; returns what `compare` says of both."""
    exact = Runtime(path)
    given, _ = as_input(clips, exact.dtype, preprocessing)
    written = quantise(path, [{exact.input: clip.unsqueeze(0).numpy()} for clip in given])
    share = compare(exact, Runtime(written), given)
    written.replace(path)
    return share


def _shapes(network: Network3d, form: nn.Module, free: frozenset[str]) -> tuple[Shape, list[Shape]]:
    """The clip to trace on where the axes in `free` are, and those to check on: other sizes, odd ones among them.

    No axis of the traced one is ever 1 on the way, nor is the number of tiles of a minimal filtering or of groups that
    attend to one another: the exporter would take that for a constant.
    """
    channels, height, width = inflation_of(network).input
    graph, over_time = graph_of(network), "frames" in free
    all_legal = [n for n in range(1, LONGEST + 1) if left(graph, n) >= 1]
    legal = [n for n in all_legal if not over_time or _in_groups(graph, n)]
    if not legal or (legal[-1] == 1 and over_time):
        raise ExportError(f"no clip of 2 to {LONGEST} frames has several groups of frames at every attention; --static")
    tile = max((module.m for module in form.modules() if isinstance(module, MinimalConv)), default=1)
    halved = any(isinstance(module, StackedConv) and module.halved for module in form.modules())
    fewest = FRAMES_OF_FORM if halved else 2  # each half of two frames or more
    long = (n for least in (tile, 1) for n in legal if n >= fewest and left(graph, n) > least)
    traced = next(long, legal[-1]) if over_time else next((n for n in legal if n >= FRAMES_OF_FORM), legal[-1])
    others = [n for n in legal if n not in (1, traced)] or [traced]
    lengths_of_others = (others[0], all_legal[0], others[min(1, len(others) - 1)])
    return (2 if "batch" in free else 1, channels, traced, height, width), [
        (clips, channels, frames, height + taller, width + wider)
        for (clips, taller, wider), frames in zip(_OTHERS, lengths_of_others, strict=True)
    ]


_OTHERS = ((3, 32, 32), (1, 1, 15), (2, 18, 6))
"""Clips, and pixels more in height and in width, of what is checked: sizes of other remainders than the traced one."""


def _in_groups(graph: torch.fx.Graph, frames: int) -> bool:
    """Whether each attention has more frames than a group; one group has its own length in the graph as a constant."""
    count = lengths(graph, frames)
    return all(
        count[node] > temporal.group
        for node in count
        if isinstance(temporal := node.meta.get("temporal"), Attending) and not temporal.pairs
    )


def _output_names(network: Network3d) -> list[str] | None:
    """`logits` for a classifier; a dense or multi-output network keeps the exporter's names."""
    output = graph_of(network).output_node()
    return ["logits"] if isinstance(output.args[0], torch.fx.Node) else None


def _name_axes(model: Any) -> None:
    """Call the dynamic axes of the input what they are, throughout the graph."""
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


def _store_as_bfloat16(model: Any) -> None:
    """Put a cast behind each weight in float32 that is more than a vector: half the bytes, the same arithmetic."""
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
    """Put the document and the class names in; take the exporter's notes, stack traces among them, out."""
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
    """What the file says of the network; of one that can't be built again from a file, not where it came from."""
    try:
        return document_of(network, finetuned=finetuned, sha256=sha256)
    except CheckpointError:
        return Document(inflation_of(network), None, sha256, finetuned=True)
