"""`i3dconvert bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from i3dconvert.choices import Init
from i3dconvert.cli import render
from i3dconvert.cli.options import Device, Dtype, Force, Json, Plot, Quiet, complete_backbone
from i3dconvert.names import near

if TYPE_CHECKING:
    from i3dconvert.reporting.benchmark import Measurement, Ratio

EXAMPLE = "i3dconvert bench resnet50 densenet121 --runtime eager,onnx --batch 2"


USUAL, USUAL_OF_FILES = ("eager", "onnx", "onnx-plain"), ("onnx",)
OF_ATTENTION, USUAL_OF_ATTENTION = ("eager", "compile", "onnx"), ("eager", "onnx")
RUNTIMES = ("eager", "frames", "compile", "onnx", "onnx-plain", "openvino")


def command(
    networks: Annotated[
        list[str],
        typer.Argument(
            help="Backbones (random weights), checkpoints, or .onnx files.",
            autocompletion=complete_backbone,
            metavar="BACKBONE|FILE",
        ),
    ],
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated: eager, frames, compile, onnx, onnx-plain, openvino.",
            show_default="eager,onnx,onnx-plain; onnx for an ONNX file",
        ),
    ] = None,
    init: Annotated[
        Init, typer.Option(help="Put the 2D kernel in the middle frame, or divide it among all.")
    ] = "center",
    batch: Annotated[
        list[int] | None, typer.Option(min=1, metavar="N", help="Batch size. Repeatable.", show_default="1")
    ] = None,
    frames: Annotated[int, typer.Option("--frames", "-f", min=1, metavar="N", help="Frames per clip.")] = 16,
    size: Annotated[
        int | None,
        typer.Option("--size", "-s", min=1, metavar="PIXELS", help="Height and width.", show_default="the backbone's"),
    ] = None,
    device: Annotated[Device, typer.Option(help="Device to run on.")] = Device.cpu,
    dtype: Annotated[Dtype, typer.Option(help="Data type of weights and clips.")] = Dtype.float32,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Use torch's memory format channels_last_3d.")
    ] = False,
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs, after two warm-up runs.")] = 7,
    attention: Annotated[
        list[int] | None,
        typer.Option(
            "--attention",
            min=2,
            metavar="FRAMES",
            help="Instead compare attention over FRAMES frames with attention within each frame. Repeatable.",
            show_default=False,
        ),
    ] = None,
    plot: Plot = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the speed of networks in each runtime."""
    wanted = [name.strip() for name in runtime.split(",")] if runtime else []
    for name in wanted:
        if name not in RUNTIMES:
            raise typer.BadParameter(f"unknown runtime {name!r}; {near(name, RUNTIMES)}known: {', '.join(RUNTIMES)}")
    if attention:
        _check_attention(networks, wanted or USUAL_OF_ATTENTION, dtype, plot)
    if plot is not None:
        from i3dconvert.reporting.drawing import check_chart

        check_chart(plot, force)
    with render.progress(quiet or json) as step:
        step("importing torch")

        from i3dconvert.reporting.benchmark import Case, measure, ratios

        device.check()
        cases = [
            Case(name, one, init, clips, count, size, device.value, dtype.value, channels_last, runs)
            for name in networks
            for clips in batch or [1]
            for count in attention or [frames]
            for one in wanted or (USUAL_OF_ATTENTION if attention else _usual(name))
        ]
        measured = [] if attention else list(measure(cases, step))
        compared = list(ratios(cases, progress=step)) if attention else []
        if plot is not None:
            from i3dconvert.reporting.drawing import draw

            draw(measured, plot, force)
    if json:
        render.show_json([*(one.to_dict() for one in measured), *(one.to_dict() for one in compared)])
    elif not quiet:
        _show_ratios(compared) if attention else _show(measured)


def _check_attention(networks: list[str], runtimes: Sequence[str], dtype: Dtype, plot: Path | None) -> None:
    """Raise `typer.BadParameter` for options that `--attention` does not have."""
    if any(name not in OF_ATTENTION for name in runtimes) or any(
        name.endswith((".onnx", ".safetensors")) for name in networks
    ):
        raise typer.BadParameter(f"--attention needs backbones and the runtimes {', '.join(OF_ATTENTION)}")
    if dtype is not Dtype.float32 and "onnx" in runtimes:
        raise typer.BadParameter(
            f"--attention runs onnx in float32; with --dtype {dtype.value}, choose --runtime eager"
        )
    if plot is not None:
        raise typer.BadParameter("--attention has no chart; leave out --plot")


def _usual(name: str) -> tuple[str, ...]:
    return USUAL_OF_FILES if name.endswith(".onnx") else USUAL


def _show(results: list[Measurement]) -> None:
    columns = ("network", "runtime", "batch#", "ms#", "±#", "clips/s#", "frames/s#", "MiB#", "GFLOP#")
    rows = (
        (
            result.case.network,
            result.case.runtime,
            result.case.batch,
            f"{result.seconds * 1000:.1f}",
            f"{result.spread * 500:.1f}",
            f"{result.case.batch / result.seconds:.2f}",
            f"{result.frames_per_second:.1f}",
            round(result.peak_memory / 2**20) or None,
            f"{result.gflops:.1f}",
        )
        for result in results
    )
    render.show_table(columns, rows)


def _show_ratios(found: list[Ratio]) -> None:
    from i3dconvert.reporting.benchmark import FORMULA

    columns = ("network", "recipe", "frames#", "runtime", "ms#", "per frame ms#", "ratio#", "arithmetic#", "over#")
    rows = (
        (
            *(one.network, one.recipe, one.frames, one.runtime),
            *(f"{1000 * one.seconds:.0f}", f"{1000 * one.seconds_per_frame:.0f}"),
            *(f"{one.ratio:.2f}", f"{one.arithmetic:.2f}", f"{one.over:.2f}"),
        )
        for one in found
    )
    render.show_table(columns, rows)
    render.show(f"arithmetic: {FORMULA}")
