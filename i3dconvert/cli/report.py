"""`i3dconvert report`."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from i3dconvert.cli import render
from i3dconvert.cli.options import Force, Frames, FromLayout, Images, Json, Model, Quiet, Reference, Size, reader

if TYPE_CHECKING:
    from i3dconvert.reporting.benchmark import Measurement
    from i3dconvert.reporting.page import Subject

EXAMPLE = "i3dconvert report r152.safetensors r152.onnx -i cat.jpg\ni3dconvert report r152.onnx bench.json"

TRAINED = "its weights were trained in 3D, so there is no 2D network to compare with"


def command(
    files: Annotated[
        list[Path],
        typer.Argument(help="Checkpoints, .onnx files, and output of `bench --json`.", metavar="FILE"),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PAGE", help="Output file.", show_default="FILE-report.html"),
    ] = None,
    images: Images = None,
    frames: Frames = None,
    size: Size = None,
    reference: Reference = None,
    model: Model = "",
    from_layout: FromLayout = "",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Verify files and write an HTML report."""
    from i3dconvert.reporting.drawing import PAGE, check_chart

    networks = [path for path in files if path.suffix != ".json"]
    if not networks:
        raise typer.BadParameter("give a checkpoint or an exported file as well")
    target = output or networks[0].with_name(f"{networks[0].stem}-report.html")
    check_chart(target, force, "report", PAGE)
    with render.progress(quiet or json) as step:
        step("importing torch")
        from i3dconvert.errors import VerificationError
        from i3dconvert.progress import within
        from i3dconvert.reporting.page import write_report
        from i3dconvert.reporting.subject import subject_of
        from i3dconvert.verification import Settings, verify_file

        settings = Settings(frames, size, layers=True, images=tuple(images or ()))
        read = reader(from_layout)
        measured = [result for path in files if path not in networks for result in measurements(path)]
        subjects: list[Subject] = []
        for index, path in enumerate(networks):
            told = within(step, index, len(networks), path.name)
            told("reading")
            report, unproved = None, TRAINED if from_layout else ""
            try:
                report = None if from_layout else verify_file(path, settings, reference, model=model, progress=told)
            except VerificationError as error:
                unproved = str(error)
            subjects.append(subject_of(path, report, unproved, frames, read, model))
        step("drawing")
        write_report(target, subjects, measured, force)
    if json:
        render.show_json({"path": str(target), "files": [_document(subject) for subject in subjects]})
    elif not quiet:
        for subject in subjects:
            render.show(f"{subject.path}: {subject.verdict}")
        render.show(f"wrote {target}")
    _fail_where_not_equal(subjects, json)


def measurements(path: Path) -> list[Measurement]:
    """Read the measurements in a file with the output of `bench --json`; raises `BenchmarkError`."""
    from i3dconvert.errors import BenchmarkError
    from i3dconvert.files import check_input
    from i3dconvert.reporting.benchmark import Measurement

    check_input(path, BenchmarkError, "a file with the output of `bench --json`")
    try:
        return [Measurement.from_dict(entry) for entry in jsonlib.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, BenchmarkError, RecursionError) as error:
        raise BenchmarkError(f"{path} is not the output of `i3dconvert bench --json`: {error}") from None


def _document(subject: Subject) -> dict[str, object]:
    found = subject.report.to_dict() if subject.report is not None else {"unproved": subject.unproved}
    return {"file": str(subject.path), **found}


def _fail_where_not_equal(subjects: Sequence[Subject], json: bool) -> None:
    wrong = [subject for subject in subjects if subject.report is not None and not subject.report.passed]
    if wrong:
        if not json:
            render.show_error(f"{wrong[0].path}: {wrong[0].verdict}")
        raise typer.Exit(1)
