"""`i3dconvert inflate`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i3dconvert.choices import Conv, InInit, Init, Padding, TemporalPool, TimeEmbedding
from i3dconvert.cli import render
from i3dconvert.cli.help import PRINTING
from i3dconvert.cli.options import Classes, Dtype, Force, Json, Layout, Quiet, complete_backbone

if TYPE_CHECKING:
    from i3dconvert.backbones import Origin
    from i3dconvert.inflation import Written
    from i3dconvert.lift.describe import LayerRow

EXAMPLE = "i3dconvert inflate resnet152 -o r152.safetensors\ni3dconvert inflate timm/convnext_tiny -w random"
ENDS, TIME, STORED = "Input and output of the network", "Time", "Weights"


def command(
    backbone: Annotated[
        str,
        typer.Argument(
            help="A name from `i3dconvert list`, hf/ORG/NAME, hf/FOLDER, or PATH.py:NAME[.PART] (runs it).",
            autocompletion=complete_backbone,
            metavar="BACKBONE",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Output.", show_default="BACKBONE-i3d.safetensors"),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            "-w",
            metavar="WEIGHTS",
            help="2D weights: a file, a pretrained set's name, hf-hub:ORG/NAME, random, or default.",
            show_default=False,
        ),
    ] = "default",
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="RECIPE",
            help="Preset or .toml file that sets kernels and strides over time.",
            show_default="the backbone's",
        ),
    ] = None,
    classes: Classes = None,
    force: Force = False,
    num_classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of classes. Replaces the head with a new one, initialised from --seed.",
            show_default=False,
            rich_help_panel=ENDS,
        ),
    ] = None,
    no_head: Annotated[
        bool, typer.Option("--no-head", help="Return pooled features instead of scores.", rich_help_panel=ENDS)
    ] = False,
    no_pool: Annotated[
        bool,
        typer.Option("--no-pool", help="Return feature maps (N, C, T', H', W').", rich_help_panel=ENDS),
    ] = False,
    features: Annotated[
        bool, typer.Option("--features", help="timm: return the feature maps of every stage.", rich_help_panel=ENDS)
    ] = False,
    temporal_pool: Annotated[
        TemporalPool,
        typer.Option(help="Average scores over time.", rich_help_panel=ENDS),
    ] = "mean",
    in_channels: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Input channels, e.g. 1 for grey.",
            show_default="3",
            rich_help_panel=ENDS,
        ),
    ] = None,
    in_init: Annotated[
        InInit | None,
        typer.Option(
            help="How to adapt the first kernels from RGB.",
            show_default="sum for 1, else mean",
            rich_help_panel=ENDS,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            "-s",
            min=8,
            metavar="PIXELS",
            help="Height and width.",
            show_default="the backbone's",
            rich_help_panel=ENDS,
        ),
    ] = None,
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="CxHxW",
            help="Shape of an image, for your own network.",
            show_default=False,
            rich_help_panel=ENDS,
        ),
    ] = "",
    temporal: Annotated[
        list[str] | None,
        typer.Option(
            "--temporal",
            "-t",
            metavar="RULE",
            help="Override the recipe: GLOB=KERNEL[/STRIDE], GLOB=all or GLOB=span:SPAN[/SHIFT]. Repeatable.",
            show_default=False,
            rich_help_panel=TIME,
        ),
    ] = None,
    init: Annotated[
        Init,
        typer.Option(help="Put the 2D kernel in the middle frame, or divide it among all.", rich_help_panel=TIME),
    ] = "center",
    padding: Annotated[
        Padding | None,
        typer.Option(
            help="Temporal padding.",
            show_default="whichever is exact",
            rich_help_panel=TIME,
        ),
    ] = None,
    conv: Annotated[
        Conv,
        typer.Option(help="Full 3D or (2+1)D convolutions.", rich_help_panel=TIME),
    ] = "3d",
    time_embedding: Annotated[
        TimeEmbedding,
        typer.Option(
            "--time-embedding",
            metavar="KIND",
            help="none (default), zeros or sinusoidal-learned.",
            show_default=False,
            rich_help_panel=TIME,
        ),
    ] = "none",
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed for random weights and heads.", rich_help_panel=STORED)
    ] = 0,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="DTYPE",
            help="Store in float64, float32, float16 or bfloat16.",
            show_default=False,
            rich_help_panel=STORED,
        ),
    ] = None,
    allow_nonfinite: Annotated[
        bool,
        typer.Option("--allow-nonfinite", help="Accept weights that are NaN or infinite.", rich_help_panel=STORED),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if a convolution stays 2D.", rich_help_panel=STORED)
    ] = False,
    layout: Layout = "",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every layer.", rich_help_panel=PRINTING)
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Inflate a 2D backbone and write a 3D checkpoint."""
    from i3dconvert.files import check_output
    from i3dconvert.names import parse
    from i3dconvert.recipes import parse_rule, resolve

    parse(backbone)
    shape = parse_shape(input_) if input_ else None
    rules = tuple(parse_rule(text) for text in temporal or [])
    chosen = None if recipe is None else resolve(recipe)
    ending, is_folder = default_ending(layout)
    path = output or Path(f"{default_stem(backbone)}-{ending}")
    check_output(path, force, is_folder)
    with render.progress(quiet or json) as step:
        step("importing torch")
        from i3dconvert.backbones import Changes, Source
        from i3dconvert.inflation import Options, inflate_to_file
        from i3dconvert.lift.describe import describe
        from i3dconvert.lift.kernels import Style
        from i3dconvert.video.labels import names_of

        head = "maps" if no_pool else "none" if no_head else ""
        changes = Changes.asked(in_channels, in_init, num_classes, head, seed)
        source = Source(backbone, weights, seed, features, size, allow_nonfinite, changes, shape)
        style = Style(init, padding or "", conv, temporal_pool, time_embedding)
        options = Options(chosen, rules, style, dtype.torch() if dtype else None, layout, strict, names_of(classes))
        written = inflate_to_file(source, path, options, force, progress=step)
        layers = [] if quiet and not json else describe(written.network())
    if json:
        render.show_json(_document(written, layers))
    elif not quiet:
        _show(written, layers, verbose)


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse `3x224x224` to channels, height and width; raises `typer.BadParameter`."""
    sizes = text.lower().replace("×", "x").split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise typer.BadParameter(f"--input {text}: give channels, height and width, as in 3x224x224")
    channels, height, width = map(int, sizes)
    return channels, height, width


def default_stem(backbone: str) -> str:
    """Return the file name for a backbone: `timm/resnet50` → `timm-resnet50`, `nets/mine.py:unet` → `unet`."""
    if backbone.startswith("hf/"):
        return Path(backbone).resolve().name
    return backbone.rpartition(":")[2] if ".py:" in backbone else backbone.replace("/", "-")


def default_ending(layout: str) -> tuple[str, bool]:
    """Return the ending of an output's name that a framework's loader expects, and whether it reads a folder."""
    if not layout:
        return "i3d.safetensors", False
    from i3dconvert.frameworks import framework_of

    framework = framework_of(layout)
    return f"{framework.name}{framework.suffix}", not framework.suffix


def show_layout(layout: str, origin: Origin) -> None:
    """Print what a framework's user needs to know about weights in its layout."""
    from i3dconvert.frameworks import framework_of, how_to_load, split, statements

    framework, network = framework_of(layout), split(layout)[1]
    target = framework.target(origin.backbone.qualified, network)
    pasted, channels = statements(target, origin), origin.input[0]
    render.show(f"for {framework.name}'s {target.name}:")
    for line in pasted or [how_to_load(target, origin)]:
        render.show(line)
    if pasted and channels != 3 and "{channels}" not in target.built_by:
        render.show(f"note: it has 3 input channels; replace its first convolution by one with {channels}")
    if target.note:
        render.show(f"note: {target.note}")


def _document(written: Written, layers: list[LayerRow]) -> dict[str, Any]:
    return {
        "path": str(written.path),
        "backbone": written.origin.backbone.qualified,
        "weights": str(written.origin.weights),
        "recipe": written.inflation.recipe.name,
        **asdict(written.inflation.style),
        "minimum_frames": written.inflation.minimum_frames,
        "convolutions": asdict(written.inflation.convolutions),
        "fixed": written.inflation.fixed,
        "tried": written.inflation.tried,
        "parameters2d": written.parameters2d,
        "parameters3d": written.parameters3d,
        "sha256_2d": written.origin.weights.sha256,
        "sha256_3d": written.sha256,
        "layout": written.layout,
        "layers": [asdict(layer) for layer in layers],
    }


def _show(written: Written, layers: list[LayerRow], verbose: bool) -> None:
    if verbose:
        show_layers(layers)
    else:
        kinds: dict[tuple[Any, ...], list[LayerRow]] = {}
        for layer in layers:
            kinds.setdefault((layer.operation, layer.kernel2d, layer.kernel3d, layer.stride3d), []).append(layer)
        rows = ((len(found), *kind, sum(layer.parameters3d for layer in found)) for kind, found in kinds.items())
        render.show_table(("layers#", "operation", "2D kernel", "3D kernel", "stride", "parameters#"), rows)
    inflation = written.inflation
    style = inflation.style
    line = f"recipe {inflation.recipe.name}, init {style.init}, temporal padding {style.padding}"
    line += ", (2+1)D convolutions" if style.conv == "2plus1d" else ""
    render.show(f"{written.origin.backbone.qualified}, weights {written.origin.weights}; {line}")
    for text in inflation.convolutions.lines():
        render.show(text)
    if sizes := inflation.sizes():
        render.show(sizes)
    least = inflation.minimum_frames
    render.show(f"clips of {least} frame{'s' * (least > 1)} or more")
    kept = sum(layer.operation == "Attention (one frame)" for layer in layers)
    if kept:
        render.show(f"{kept} attentions see one frame each; --recipe joint extends them, as does divided in a ViT")
    render.show(f"parameters {written.parameters2d:,} → {written.parameters3d:,}")
    render.show(f"SHA-256 of the 2D weights {written.origin.weights.sha256}")
    render.show(f"SHA-256 of the 3D weights {written.sha256}")
    if written.layout:
        show_layout(written.layout, written.origin)
    render.show(f"wrote {written.path}")


def show_layers(layers: list[LayerRow], trained: str = "") -> None:
    """Print one line for each layer; `trained` is the heading of a column with its distance from inflation."""
    columns: tuple[str, ...] = ("layer", "operation", "2D kernel", "3D kernel", "stride", "parameters#", "frames seen#")
    rows: Iterable[tuple[Any, ...]] = (
        (r.name, r.operation, r.kernel2d, r.kernel3d, r.stride3d, r.parameters3d, r.receptive_field or "all")
        for r in layers
    )
    if trained:
        columns = (*columns, trained)
        rows = (
            (*row, None if r.trained is None else f"{round(r.trained, 3) + 0:.1%}")
            for row, r in zip(rows, layers, strict=True)
        )
    render.show_table(columns, rows)
