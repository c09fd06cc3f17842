"""`i3dconvert classify`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i3dconvert.cli import render
from i3dconvert.cli.options import Classes, Force, Json, Model, Plot, Quiet, complete_backbone

if TYPE_CHECKING:
    from i3dconvert.classification import Done
    from i3dconvert.progress import Progress

EXAMPLE = "i3dconvert classify resnet50.onnx clip.mp4\ni3dconvert classify resnet50 clip.mp4 --plot line.svg"


def command(
    network: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, an .onnx file, or a backbone's name.",
            autocompletion=complete_backbone,
            metavar="FILE|BACKBONE",
        ),
    ],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Videos, directories of frames, or pictures.", metavar="VIDEO|DIR|PICTURE", show_default=False
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Classify all videos and pictures below DIR, one JSON line for each. Resumes an interrupted run.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="For --folder: output file.", show_default="DIR/classes.jsonl"
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Show the N best classes.")] = 5,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames", "-f", min=1, metavar="N", help="Frames per window.", show_default="16, or the file's own"
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Frames between windows.", show_default="half a window"),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="RATE", help="Sample this many frames per second.", show_default="all frames"),
    ] = None,
    as_stream: Annotated[bool, typer.Option("--stream", help="Classify step by step, as on live video.")] = False,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            min=1,
            metavar="N",
            help="For --stream: average the last N outputs.",
            show_default="all",
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", "-w", metavar="WEIGHTS", help="A backbone's weights, as for inflate.")
    ] = "default",
    model: Model = "",
    plot: Plot = None,
    classes: Classes = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Classify videos over time, or pictures."""
    if window is not None and not as_stream:
        raise typer.BadParameter("--window needs --stream")
    if as_stream and frames is not None:
        raise typer.BadParameter("--frames can't be used with --stream, which uses the network's own steps")
    if bool(sources) == (folder is not None):
        raise typer.BadParameter("give videos and pictures, or --folder DIR")
    if output is not None and folder is None:
        raise typer.BadParameter("--output needs --folder")
    if as_stream and folder is not None:
        raise typer.BadParameter("--folder can't be used with --stream")
    if plot is not None:
        from i3dconvert.reporting.drawing import check_chart

        check_chart(plot, force)
    with render.progress(quiet or json) as step:
        step("importing torch")
        from i3dconvert.classification import (
            classify,
            classify_folder,
            classify_live,
            load_classifier,
            load_live,
            mean_of,
            to_dict,
        )
        from i3dconvert.progress import within

        step(f"loading {network}")
        found = {}

        def told_of(paths: list[Path] | None) -> Iterator[tuple[Path, Progress]]:
            for index, path in enumerate(paths or ()):
                yield path, within(step, index, len(paths or ()), path.name)

        if as_stream:
            live = load_live(network, weights, window, classes, model)
            for path, told in told_of(sources):
                found[str(path)] = list(classify_live(live, path, stride, fps, top, told))
        else:
            classifier = load_classifier(network, weights, classes, model)
            if folder is not None:
                options: dict[str, Any] = {"frames": frames, "stride": stride, "fps": fps, "top": top}
                chosen = output or folder / "classes.jsonl"
                done = classify_folder(classifier, folder, chosen, step, force=force, **options)
                _show_done(done, json, quiet)
                return
            for path, told in told_of(sources):
                found[str(path)] = list(classify(classifier, path, frames, stride, fps, top, told))
        if plot is not None:
            from i3dconvert.reporting.drawing import draw_timeline

            draw_timeline(found, plot, force)
    if json:
        render.show_json([{"source": source, "moments": list(map(to_dict, seen))} for source, seen in found.items()])
        return
    for source, seen in found.items():
        rows = ((f"{one.start:.2f}", f"{one.end:.2f}", _best(one.best)) for one in seen)
        if not quiet and len(seen) > 1:
            render.show_table(("from s#", "to s#", "classes"), rows)
        render.show(f"{source}: {_best(seen[-1].best if as_stream else mean_of(seen, top))}")


def _show_done(done: Done, json: bool, quiet: bool) -> None:
    if json:
        render.show_json(asdict(done) | {"output": str(done.output)})
    elif not quiet:
        rate = f" ({done.classified / max(done.seconds, 1e-9):.1f} a second)" if done.classified else ""
        failed = f", {done.failed} can't be read (see their lines)" if done.failed else ""
        files = f"{done.classified} file{'s' * (done.classified != 1)}{rate}"
        render.show(f"{files}, {done.passed_over} done before{failed}; wrote {done.output}")


def _best(classes: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {score:.2f}" for name, score in classes)
