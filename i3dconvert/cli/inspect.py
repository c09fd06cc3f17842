"""`i3dconvert inspect`."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated, Any

import typer

from i3dconvert.cli import render
from i3dconvert.cli.inflate import show_layers
from i3dconvert.cli.options import File, FromLayout, Json, Model, Quiet, reader, the_checkpoint

EXAMPLE = "i3dconvert inspect r152.safetensors\ni3dconvert inspect r152.safetensors --toml > recipe.toml"


def command(
    file: File = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print only the recipe, as TOML.")] = False,
    model: Model = "",
    from_layout: FromLayout = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the metadata, the recipe and the layers of a file."""
    path = the_checkpoint(file)
    with render.progress(quiet or json or toml) as step:
        step("importing torch")
        from i3dconvert import checkpoint
        from i3dconvert.lift.describe import beside_middle, describe, from_inflated, order_seen, with_training
        from i3dconvert.lift.network import inflation_of
        from i3dconvert.recipes import toml as recipes

        step(f"reading {path.name}")
        if path.suffix == ".onnx" and not from_layout:
            from i3dconvert.export.runtime import read_document

            document, state = read_document(path), {}
        else:
            document, state = reader(from_layout)(path)
        document = checkpoint.named(document, model, state)
        layers, counted, sizes = [], None, document.inflation.sizes()
        if document.origin is not None and not toml:
            network = checkpoint.rebuild(document)
            layers, counted = describe(network), inflation_of(network).convolutions
            sizes = inflation_of(network).sizes()
            if state:
                checkpoint.filled(network, state, path)
                layers = with_training(
                    layers, (beside_middle if from_layout else from_inflated)(inflation_of(network), state)
                )
    recipe = document.inflation.recipe
    metadata: dict[str, Any] = jsonlib.loads(document.dumps(path.parent))
    if toml:
        typer.echo(recipes.dumps(recipe), nl=False)
    elif json:
        shown = {"file": str(path), "metadata": metadata, "layers": [asdict(layer) for layer in layers]}
        render.show_json(shown | ({"convolutions": asdict(counted)} if counted is not None else {}))
    elif not quiet:
        rules = metadata.pop("recipe")
        render.show_table(("", ""), _flat(metadata))
        columns = ("layer", "kind", "kernel#", "stride#", "padding#", "dilation#", "span#")
        rows = ([rule.get(column.rstrip("#")) for column in columns] for rule in rules["rule"])
        render.show_table(columns, rows, title=f"recipe {recipe.name} ({recipe.source or 'custom'})")
        for pool in recipe.pools:
            render.show(
                f"temporal {pool.kind.replace('_', '-')} {pool.kernel}, stride {pool.stride}, after {pool.after}"
            )
        show_layers(layers, "outside middle tap#" if from_layout else "change#" if state else "")
        for text in counted.lines() if counted is not None else ():
            render.show(text)
        if sizes:
            render.show(sizes)
        if layers:
            render.show(order_seen(layers, document.inflation.style.time_embedding))


def _flat(document: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in document.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
