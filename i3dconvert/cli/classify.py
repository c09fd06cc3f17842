"""`i3dconvert classify`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from i3dconvert.cli import render
from i3dconvert.cli.options import Classes, Force, Json, Plot, Quiet, complete_backbone

EXAMPLE = "Example: i3dconvert classify resnet50.onnx clip.mp4    i3dconvert classify resnet50 clip.mp4 --plot line.svg"


def command(
    network: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, an exported .onnx file, or a backbone's name.",
            autocompletion=complete_backbone,
            metavar="FILE|BACKBONE",
        ),
    ],
    sources: Annotated[
        list[Path], typer.Argument(help="Videos, directories of frames, pictures.", metavar="VIDEO|DIR|PICTURE...")
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to show.")] = 5,
    frames: Annotated[
        int | None, typer.Option("--frames", "-f", min=1, help="Of a window.", show_default="16, or the file's own")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Frames from window to window.", show_default="half a window")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.01, help="Frames a second to take.", show_default="all of the video's")
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", "-w", help="Of a backbone, as `inflate` takes them.")
    ] = "default",
    plot: Plot = None,
    classes: Classes = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Name what videos and pictures show, over time."""
    if plot is not None:
        from i3dconvert.chart import check_chart

        check_chart(plot, force)
    with render.progress(quiet or json) as step:
        step("importing torch")
        from i3dconvert.classification import classify, load_classifier, mean_of, to_dict

        step(f"loading {network}")
        classifier = load_classifier(network, weights, classes)
        found = {}
        for path in sources:
            found[str(path)] = list(classify(classifier, path, frames, stride, fps, top, step))
        if plot is not None:
            from i3dconvert.chart import draw_timeline

            draw_timeline(found, plot, force)
    if json:
        render.show_json([{"source": source, "moments": list(map(to_dict, seen))} for source, seen in found.items()])
        return
    for source, seen in found.items():
        rows = ((f"{one.start:.2f}", f"{one.end:.2f}", _best(one.best)) for one in seen)
        if not quiet and len(seen) > 1:
            render.show_table(("from s#", "to s#", "classes"), rows)
        render.show(f"{source}: {_best(mean_of(seen, top))}")


def _best(classes: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {score:.2f}" for name, score in classes)
