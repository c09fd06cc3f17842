"""`i3dconvert verify`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from i3dconvert.cli import render
from i3dconvert.cli.options import (
    Device,
    Dtype,
    File,
    Force,
    Frames,
    Images,
    Json,
    Layout,
    Model,
    Quiet,
    Reference,
    Size,
    the_checkpoint,
)

if TYPE_CHECKING:
    from i3dconvert.verification import Report

EXAMPLE = "i3dconvert verify r152.safetensors --images cat.jpg\ni3dconvert verify r152.onnx --frames 8"


def command(
    file: File = None,
    frames: Frames = None,
    size: Size = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Data type of the computation.", show_default="float64 and float32")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="ERROR", help="Relative tolerance.", show_default="1e-12 in float64, 1e-5 in float32"
        ),
    ] = None,
    images: Images = None,
    layers: Annotated[bool, typer.Option("--layers", "-l", help="Show the error of every layer.")] = False,
    device: Annotated[Device, typer.Option(help="Device for torch.")] = Device.cpu,
    reference: Reference = None,
    model: Model = "",
    layout: Layout = "",
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="PAGE", help="Also write a report to this .html file.", show_default=False),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prove that a checkpoint or an ONNX file equals its 2D network."""
    path = the_checkpoint(file)
    if report is not None:
        from i3dconvert.reporting.drawing import PAGE, check_chart

        check_chart(report, force, "report", PAGE)
    with render.progress(quiet or json) as step:
        step("importing torch")
        from i3dconvert.verification import TOLERANCES, Settings, verify_file

        device.check()
        dtypes = tuple(TOLERANCES) if dtype is None else (dtype.torch(),)
        settings = Settings(frames, size, dtypes, tolerance, layers, tuple(images or ()), device=device.value)
        if report is not None:
            settings = replace(settings, layers=True)
        found = verify_file(path, settings, reference, layout, model=model, progress=step)
        if report is not None:
            from i3dconvert.reporting.page import write_report
            from i3dconvert.reporting.subject import subject_of

            step("drawing")
            write_report(report, [subject_of(path, found, frames=frames, model=model)], force=force)
    if json:
        render.show_json({"file": str(path), **found.to_dict()})
    elif not quiet:
        _show(found if layers or not found.passed else replace(found, layers=[]), path)
        if report is not None:
            render.show(f"wrote {report}")
    if not found.passed:
        if not json:
            what = "is damaged or does not run" if found.trained else "is not equal to its 2D network"
            render.show_error(f"{path} {what}: {found.reason}")
        raise typer.Exit(1)


def _show(report: Report, path: Path) -> None:
    if report.layers:
        rows = ((r.name, r.operation, r.shape, r.error, "diverges" if r.diverges else "") for r in report.layers)
        render.show_table(("layer", "operation", "shape", "error#", ""), rows)
    for picture in report.pictures:
        pairs = zip(picture.classes2d, picture.classes3d, strict=True)
        scores = (
            (name2d, f"{score2d:.4f}", name3d, f"{score3d:.4f}") for (name2d, score2d), (name3d, score3d) in pairs
        )
        render.show_table(("2D", "score#", "3D", "score#"), scores, title=picture.path)
    for note in report.notes:
        render.show(note)
    for check in report.checks:
        render.show(f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.detail}")
    if report.passed:
        render.show(report.trained or f"{path} equals its 2D network")
