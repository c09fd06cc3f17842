"""Export to ONNX with torch's dynamo exporter; the metadata describes the network to its users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from i3dconvert.backbones import Origin
from i3dconvert.backbones.changes import HEADLESS
from i3dconvert.checkpoint import network_in
from i3dconvert.comparison.forward import evaluating, outputs
from i3dconvert.comparison.report import Check
from i3dconvert.errors import ExportError, OutputError
from i3dconvert.export.checking import Compared, Shape
from i3dconvert.export.deployed import BEST, SCORES, BestClasses, FromDecoder, OnlyTensors, others_than_tensors
from i3dconvert.export.frames import frames_form
from i3dconvert.export.parts import stacks_in_parts
from i3dconvert.export.placing import (
    Nowhere,
    describe,
    drop_weights,
    name_axes,
    output_names,
    put_in_place,
    save_in,
    store_as_bfloat16,
)
from i3dconvert.export.quantised import agreement, likeness, quantise
from i3dconvert.export.runtime import AXES, CLIP, FRAMES, TOLERANCES, Runtime, as_input, quietly
from i3dconvert.export.shapes import attempts, example_shapes, fixed_as_in, fixed_axes
from i3dconvert.export.tracing import trace
from i3dconvert.files import check_output, workshop
from i3dconvert.lift.network import Network3d, cast, inflation_of, origin_of
from i3dconvert.progress import Progress, silent, stages
from i3dconvert.video.media import read_clips
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import digest

OLDEST_OPSET = 18
"""The oldest operator set that torch's dynamo exporter writes."""


CALIBRATION_CLIPS = 8

_TRACED = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
"""An example of the module to which the exporter adds the network's parts."""

STAGES = TRACING, WRITING, CHECKING, QUANTISING = ("tracing", "writing", "checking with onnxruntime", "quantising")
"""Stages that progress reports; only int8 has the last one."""


@dataclass(frozen=True)
class Exported:
    """The files of an export, and how they were checked."""

    path: Path
    files: tuple[Path, ...]
    input: str
    """`clip` `(N, C, T, H, W)`, or `frames` `(N, T, H, W, C)` in uint8."""
    shape: tuple[int | str, ...]
    """Shape of the input; free axes have a name."""
    opset: int
    checked_on: tuple[int, ...]
    check: Check
    agreement: float | None = None
    """For int8: the share of calibration clips on which the top class equals float32's; for features, their cosine."""
    warning: str | None = None
    precision: str = "float32"
    stream: str = ""
    """The description of a stream, as JSON; empty for a network of clips."""


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

    Batch and frames are dynamic unless `static`; in convolutional networks, so are height and width. An axis is fixed
    if the graph would be wrong at other sizes; `warning` says so. Before the file is put in place, `onnx.checker`
    checks it, and onnxruntime runs it against torch at shapes other than the traced one, odd ones included. Tensors
    beyond 2 GB, or all with `external_data`, go to `<path>.<hash>.data`.

    Args:
        network: The network; its weights may be fine-tuned (`finetuned`).
        path: The file to write. Only `force` overwrites an existing one.
        static: Fix the batch to 1, the frames to 16, and height and width to the backbone's.
        optimize: Compute over frames with 2D convolutions (`i3dconvert.export.frames`), which CPU runtimes run faster
            than the 3D convolutions that the graph has otherwise.
        opset: Operator set. Default: torch's choice. From 23 on, attentions are ONNX's `Attention`, which onnxruntime
            supports from version 1.23 on.
        dtype: float16 stores and computes in float16; bfloat16 stores the weights in bfloat16 and computes in float32,
            for which every runtime has kernels.
        int8: Use 8-bit convolutions, by onnxruntime's static quantisation, calibrated on the frames in `calibrate` (a
            video or a directory of pictures), or on noise.
        uint8_input: Take `frames` `(N, T, H, W, C)` in uint8 and normalise them in the graph.
        top_k: Return the probabilities and indices of the `top_k` best classes, `scores` and `classes`.
        external_data: Write the tensors to a file beside the graph, which runtimes map into memory.
        tolerance: Relative tolerance of the check. Default: 1e-5, and `TOLERANCES` in half precision.

    Raises `ExportError`, `OutputError`, `MediaError`.
    """
    path, network = Path(path), network_in(network)
    if path.suffix != ".onnx":
        raise OutputError(f"{path} is not an ONNX file's name: use the suffix .onnx")
    check_output(path, force)
    check_opset(opset)
    precision = "int8" if int8 else str(dtype).removeprefix("torch.")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16) or (int8 and dtype != torch.float32):
        raise ExportError(f"no ONNX export in {dtype}{' with int8' if int8 else ''}; known: float32, float16, bfloat16")
    if int8 and external_data:
        raise ExportError("int8 can't be combined with --external-data: onnxruntime's quantiser uses single files")
    network = in_dtype(network, torch.float16 if dtype == torch.float16 else torch.float32)
    preprocessing = preprocessing_of(network, uint8_input or calibrate is not None)
    clips = _calibration(network, calibrate, preprocessing) if int8 else None
    name, inflation = FRAMES if uint8_input else CLIP, inflation_of(network)
    names = output_names(network)
    left_out = others_than_tensors(network)
    best = check_best(network, top_k) if top_k is not None else 0
    if best:
        names = [SCORES, BEST]
    sha256 = digest({key: tensor.cpu() for key, tensor in network.state_dict().items()})
    allowed = TOLERANCES["float32" if int8 else precision] if tolerance is None else tolerance
    compared = Compared(network, preprocessing, allowed, strict=tolerance is not None)
    written_dtype = next(network.parameters()).dtype

    begin = stages(progress, STAGES if int8 else STAGES[:-1])

    def formed() -> nn.Module:
        """Return what is traced."""
        progress("rewriting over frames" if optimize else "preparing")
        with quietly():
            form: nn.Module = frames_form(network, minimal=not int8) if optimize else network
        if optimize and not int8:
            stacks_in_parts(form)
        if left_out or any(hasattr(_TRACED, part) for part, _ in form.named_children()):
            form = OnlyTensors(form)  # its part's names can't hide attributes of the exporter's own, such as `meta`
        if uint8_input:
            form = FromDecoder(form, preprocessing)
        return BestClasses(form, best) if best else form

    def attempt(folder: Path, free: frozenset[str]) -> tuple[Any, Check, Shape]:
        """Write the graph with these axes free to the folder, and check it; raises `ExportError`."""
        form = formed()
        traced_on, shapes = example_shapes(network, form, free)
        begin(TRACING)
        example = torch.zeros(traced_on, dtype=written_dtype)
        given = preprocessing.decode(example) if uint8_input else example
        kinds = {"batch": torch.export.Dim.DYNAMIC, "frames": torch.export.Dim.DYNAMIC}
        axes = {AXES[name].index(axis): kinds.get(axis, torch.export.Dim.AUTO) for axis in free}
        model = trace(form, [name], names, (given,), (axes,) if free else None, opset)
        name_axes(model)
        if dtype == torch.bfloat16:
            store_as_bfloat16(model)
        describe(model, network, sha256, precision, finetuned, path.parent)
        begin(WRITING)
        save_in(folder, path.name, model, sha256, external_data)
        del form
        drop_weights(model)  # before onnxruntime reads them
        begin(CHECKING)
        check, at = compared.check(folder / path.name, [fixed_as_in(model, shape, traced_on) for shape in shapes])
        if not check.passed:
            at_all = compared.check(folder / path.name, [traced_on])[0].passed
            raise (ExportError if at_all else Nowhere)(
                f"the exported network does not agree with torch at {at}: {check.detail}"
            )
        return model, check, at

    share = None
    with workshop(path) as folder:
        written = folder / path.name
        model, check, checked_on, why = _first_equal(partial(attempt, folder), attempts(static, inflation.any_size))
        if clips is not None:
            begin(QUANTISING)
            origin: Origin | None = origin_of(network)
            compare = likeness if origin is not None and origin.changes.head in HEADLESS else agreement
            share = _quantised(written, clips, preprocessing, compare)
        progress("sealing")
        files = put_in_place(folder, path, force)
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in model.graph.inputs[0].shape)
    if not (static or why or inflation.any_size):
        why = inflation.fixed or "its padding, positions or windows follow the size"
    notes = [f"{fixed_axes(name, shape)}: {why}"] if why else []
    notes += [f"an ONNX file holds tensors only, so outputs of type {left_out} are left out"] if left_out else []
    if int8 and calibrate is None:
        notes.append("calibrated on noise; frames of your own (--calibrate) give better ranges")
    opset, warning = model.opset_imports[""], "; ".join(notes) or None
    return Exported(path, files, name, shape, opset, checked_on, check, share, warning, precision)


def check_opset(opset: int | None) -> None:
    """Raise `ExportError` if the operator set can't be written."""
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ExportError(
            f"no opset {opset}: torch writes {OLDEST_OPSET} and newer, the installed onnx knows up to {newest}"
        )


def _first_equal(
    attempt: Callable[[frozenset[str]], tuple[Any, Check, Shape]], attempts: Sequence[frozenset[str]]
) -> tuple[Any, Check, Shape, str]:
    """Return the result of the first attempt that succeeds, and the first error before it; raises that if none does.

    After an error that occurs twice, only the last attempt, with all axes fixed, is left.
    """
    errors: list[ExportError] = []
    for free in attempts:
        if len({str(one) for one in errors}) < len(errors) and free != attempts[-1]:
            continue
        try:
            return *attempt(free), str(errors[0]) if errors else ""
        except Nowhere:
            raise
        except ExportError as error:
            errors.append(error)
    raise errors[0]


def in_dtype(network: Network3d, dtype: torch.dtype) -> Network3d:
    """Return the network in eval mode on the CPU, in `dtype`."""
    if all((p.dtype, p.device.type) == (dtype, "cpu") for p in network.parameters()) and not network.training:
        return network
    copied: Network3d = cast(network, dtype).cpu().eval()
    return copied


def preprocessing_of(network: Network3d, needed: bool) -> Preprocessing:
    """Return the preprocessing of the 2D network; raises `ExportError` if it is needed and there is none."""
    origin: Origin | None = origin_of(network)
    if origin is None and needed:
        raise ExportError("a network made from a module in memory has no preprocessing for pictures")
    return origin.preprocessing if origin is not None else Preprocessing()


def check_best(network: Network3d, top_k: int) -> int:
    """Return `top_k`; raises `ExportError` if the network has fewer classes."""
    channels, height, width = inflation_of(network).input
    clip = torch.zeros(1, channels, inflation_of(network).minimum_frames, height, width)
    with evaluating(network, torch.float32):
        found = outputs(network(clip))
    if len(found) != 1 or found[0].dim() != 2:
        raise ExportError("only a classifier with one output (N, classes) has best classes (--top-k)")
    if not 1 <= top_k <= found[0].shape[1]:
        raise ExportError(f"top_k must be from 1 to {found[0].shape[1]}, not {top_k}")
    return top_k


def _calibration(network: Network3d, source: Path | None, preprocessing: Preprocessing) -> Tensor:
    """Return clips `(N, C, T, H, W)` for the calibration of int8."""
    _, *shape = example_shapes(network, network, frozenset())[0]
    if source is None:
        return torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    return read_clips(source, preprocessing, shape[1], CALIBRATION_CLIPS)


def _quantised(
    path: Path, clips: Tensor, preprocessing: Preprocessing, compare: Callable[[Runtime, Runtime, Tensor], float]
) -> float:
    """Replace the exact network by the quantised one; returns the result of `compare`."""
    exact = Runtime(path)
    given, _ = as_input(clips, exact.dtype, preprocessing)
    written = quantise(path, [{exact.input: clip.unsqueeze(0).numpy()} for clip in given])
    share = compare(exact, Runtime(written), given)
    written.replace(path)
    return share
