"""`i3dconvert export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i3dconvert.cli import render
from i3dconvert.cli.inflate import default_ending, show_layout
from i3dconvert.cli.options import (
    Classes,
    Dtype,
    File,
    Force,
    FromLayout,
    Json,
    Layout,
    Model,
    Quiet,
    reader,
    the_checkpoint,
)
from i3dconvert.progress import Progress, Timed

if TYPE_CHECKING:
    from i3dconvert.export import Exported
    from i3dconvert.lift.network import Network3d

EXAMPLE = "i3dconvert export r152.safetensors --onnx\ni3dconvert export --onnx --weights finetuned.pth"
GRAPH, LIVE = "The ONNX graph", "ONNX for live video and servers"


def command(
    file: File = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX.")] = False,
    safetensors: Annotated[bool, typer.Option("--safetensors", help="Write safetensors.")] = False,
    hub: Annotated[
        Path | None,
        typer.Option(
            "--hub",
            metavar="DIR",
            help="Write a folder for the Hugging Face hub.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Output file.",
            show_default="FILE.onnx or FILE-export.safetensors",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            "-w",
            metavar="WEIGHTS",
            help="Use the weights of this fine-tuned state dict.",
            show_default=False,
        ),
    ] = None,
    model: Model = "",
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="DTYPE",
            help="Write float64, float32, float16 or bfloat16. [default: float32 in ONNX]",
            show_default=False,
        ),
    ] = None,
    classes: Classes = None,
    force: Force = False,
    uint8_input: Annotated[
        bool,
        typer.Option(
            "--uint8-input",
            help="Accept uint8 frames (N, T, H, W, 3) and normalise them in the graph.",
            rich_help_panel=GRAPH,
        ),
    ] = False,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            metavar="K",
            help="Output the K best classes and probabilities.",
            rich_help_panel=GRAPH,
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantise to 8 bits with onnxruntime.", rich_help_panel=GRAPH),
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="VIDEO|DIR",
            help="For --int8: typical input.",
            show_default="noise",
            rich_help_panel=GRAPH,
        ),
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="Fix batch (1), frames (16), height and width.", rich_help_panel=GRAPH)
    ] = False,
    optimize: Annotated[
        bool,
        typer.Option(
            "--optimize/--no-optimize",
            help="Use 2D convolutions over frames (the default).",
            show_default=False,
            rich_help_panel=GRAPH,
        ),
    ] = True,
    external_data: Annotated[
        bool,
        typer.Option(
            "--external-data",
            help="Store tensors in a second file. Loading needs less memory.",
            rich_help_panel=GRAPH,
        ),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="ONNX opset. 23 and later have an Attention operator.",
            show_default="torch's",
            rich_help_panel=GRAPH,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="ERROR",
            help="Relative tolerance.",
            show_default="1e-5 in float32",
            rich_help_panel=GRAPH,
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Export a network that runs step by step on live video.", rich_help_panel=LIVE),
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            min=1,
            metavar="N",
            help="For --stream: average the last N outputs.",
            show_default="all",
            rich_help_panel=LIVE,
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            "--triton",
            metavar="DIR",
            help="Also write a model folder for NVIDIA Triton.",
            show_default=False,
            rich_help_panel=LIVE,
        ),
    ] = None,
    layout: Layout = "",
    from_layout: FromLayout = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show how long each step took.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export to ONNX, safetensors or a Hugging Face hub folder."""
    if onnx + safetensors + (hub is not None) != 1:
        raise typer.BadParameter("choose one of --onnx, --safetensors and --hub DIR")
    if calibrate is not None and not int8:
        raise typer.BadParameter("--calibrate needs --int8")
    if safetensors and (uint8_input or top_k or int8 or static or opset or external_data or tolerance):
        raise typer.BadParameter(
            "--static, --uint8-input, --top-k, --int8, --opset, --external-data and --tolerance need --onnx"
        )
    if triton is not None and (not onnx or external_data):
        raise typer.BadParameter("--triton needs --onnx, without --external-data")
    if window is not None and not stream:
        raise typer.BadParameter("--window needs --stream")
    if stream and (safetensors or static or not optimize or dtype not in (None, Dtype.float32)):
        raise typer.BadParameter(
            "--stream needs --onnx or --hub, and can't be used with --static, --no-optimize or --dtype: it is float32 "
            "or int8, at the network's own size"
        )
    if layout and not safetensors:
        raise typer.BadParameter("--layout needs --safetensors")
    if hub is not None and (output is not None or from_layout):
        raise typer.BadParameter("--hub can't be used with -o, as it names the folder, or --from-layout")
    from i3dconvert.files import check_output

    path = the_checkpoint(file)
    named, is_folder = default_ending(layout)
    ending = ".onnx" if onnx else f"-{named}" if layout else "-export.safetensors"
    target = hub or output or path.with_name(f"{path.stem}{ending}")
    check_output(target, force, hub is not None or is_folder)
    if triton is not None:
        check_output(triton, force, folder=True)
    with render.progress(quiet or json) as shown:
        step = Timed(shown)
        step("importing torch")
        import torch

        from i3dconvert import checkpoint
        from i3dconvert.lift.network import cast, origin_of

        step(f"reading {path.name}")
        document, state = reader(from_layout)(path)
        document = checkpoint.named(document, model, state)
        if weights is not None:
            network = checkpoint.finetuned(document, weights, state)
        else:
            network = checkpoint.filled(checkpoint.rebuild(document, where=path), state, path)
        finetuned = document.finetuned or weights is not None
        if model and not checkpoint.settle(network, document, state) and not finetuned:
            render.show_warning(
                f"{model} builds other weights than those in {path}: `verify` of the new file needs "
                "--reference PATH, a file of the 2D network's state dict"
            )
        checkpoint.name_classes(network, classes)
        if safetensors:
            step(f"writing {target.name}")
            stored = cast(network, dtype.torch()) if dtype else network
            sha256 = checkpoint.save(stored, target, force, finetuned, layout)
            printed: dict[str, Any] = {"path": str(target), "sha256": sha256, "layout": layout}
            lines = [f"SHA-256 of the weights {sha256}"]
        else:
            stored_as = dtype.torch() if dtype else torch.float32
            options: dict[str, Any] = {"opset": opset, "int8": int8, "calibrate": calibrate, "top_k": top_k}
            options |= {"uint8_input": uint8_input, "external_data": external_data, "tolerance": tolerance}
            options |= {"force": force, "finetuned": finetuned}
            of_clips = {"static": static, "optimize": optimize, "dtype": stored_as}
            if hub:
                options |= {"stream": True, "window": window} if stream else of_clips
                printed, lines = _in_folder(network, target, {**options, "progress": step})
            elif stream:
                printed, lines = _streamed(network, target, window, options, step)
            else:
                printed, lines = _exported(network, target, {**options, **of_clips, "progress": step})
            if triton is not None:
                from i3dconvert.streaming.triton import write_repository

                printed["triton"] = list(map(str, write_repository(target, triton, force)))
                lines.append(f"wrote a model folder for Triton to {triton}")
        if verbose:
            printed["seconds"] = step.seconds()
    if json:
        render.show_json(printed)
    elif not quiet:
        for line in lines:
            render.show(line)
        if layout:
            show_layout(layout, origin_of(network))
        render.show(f"wrote {target}")
        if verbose:
            render.show_table(("step", "s#"), ((name, f"{taken:.1f}") for name, taken in printed["seconds"].items()))


Printed = tuple[dict[str, Any], list[str]]
"""What to print, as JSON and as lines."""


def _streamed(
    network: Network3d, target: Path, window: int | None, options: dict[str, Any], progress: Progress
) -> Printed:
    from i3dconvert.streaming.onnx import ExportOptions, export_stream

    return _shown(network, target, export_stream(network, target, window, ExportOptions(**options), progress))


def _exported(network: Network3d, target: Path, options: dict[str, Any]) -> Printed:
    from i3dconvert.export import export_onnx

    return _shown(network, target, export_onnx(network, target, **options))


def _in_folder(network: Network3d, target: Path, options: dict[str, Any]) -> Printed:
    from i3dconvert.hub.folder import write_folder

    folder = write_folder(network, target, **options)
    printed, lines = _shown(network, target, folder.exported)
    proved = folder.report is not None
    printed |= {"files": list(map(str, folder.files)), "proved": proved, "unproved": folder.unproved}
    return printed, [*lines, "the model card shows the proof" if proved else f"not proved: {folder.unproved}"]


def _shown(network: Network3d, target: Path, done: Exported) -> Printed:
    from i3dconvert.backbones.changes import HEADLESS
    from i3dconvert.lift.network import origin_of

    features = origin_of(network).changes.head in HEADLESS
    printed = {
        "path": str(target),
        "files": [str(part) for part in done.files],
        "input_name": done.input,
        "input": list(done.shape),
        "opset": done.opset,
        "checked_on": list(done.checked_on),
        "error": done.check.error,
        "tolerance": done.check.tolerance,
        ("cosine" if features else "top_class_agreement"): done.agreement,
    }
    lines = [
        f"opset {done.opset}, input {done.input} ({', '.join(map(str, done.shape))})",
        f"{done.check.name} at {render.number(done.checked_on)}: {done.check.detail}",
    ]
    if done.agreement is not None:
        agrees = f"the features' cosine similarity to float32's is {done.agreement:.4f} on"
        agrees = agrees if features else f"the top class equals float32's on {done.agreement:.0%} of"
        lines.append(f"int8: {agrees} the calibration clips")
    if done.warning:
        render.show_warning(done.warning)
    return printed, lines + [f"wrote the tensors to {part}" for part in done.files if part != done.path]
