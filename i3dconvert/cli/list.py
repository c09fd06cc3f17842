"""`i3dconvert list`."""

from __future__ import annotations

from enum import Enum
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from i3dconvert.cli import render
from i3dconvert.cli.options import Json, Quiet

EXAMPLE = "Example: i3dconvert list 'resnet*'    i3dconvert list 'convnext*' --source timm"

_COUNTED_AT_MOST = 50
"""timm keeps no parameter counts, and building all of its networks takes minutes."""


class Source(Enum):
    """The libraries whose backbones are known."""

    torchvision = "torchvision"
    timm = "timm"


def command(
    glob: Annotated[str, typer.Argument(help="Names to show, such as 'resnet*' (quote it).")] = "*",
    source: Annotated[
        Source | None, typer.Option("--source", "-s", help="Only this library's.", show_default=False)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the backbones: parameters, weights on offer, default recipe."""
    from i3dconvert.errors import BackboneError
    from i3dconvert.names import SOURCES, names

    sources = SOURCES if source is None else (source.value,)
    matching = [
        (library, name)
        for library in sources
        for name in names(library)
        if fnmatchcase(name, glob) or (library != "torchvision" and fnmatchcase(f"{library}/{name}", glob))
    ]
    if not matching:
        raise BackboneError(f"no backbone matches {glob!r}; `i3dconvert list` shows all")
    counted = len(matching) <= _COUNTED_AT_MOST
    rows = []
    with render.progress(quiet or json) as step:
        for index, (library, name) in enumerate(matching):
            step(f"reading {name}", index / len(matching))
            rows.append(_row(library, name, counted))
    if json:
        render.show_json(rows)
    elif not quiet:
        columns = ("backbone", "parameters#", "weights", "recipe")
        table = ([r["name"], r["parameters"], ", ".join(r["weights"]) or None, r["recipe"]] for r in rows)
        render.show_table(columns, table)


def _row(source: str, name: str, counted: bool) -> dict[str, Any]:
    from i3dconvert.backbones import Backbone, build, library
    from i3dconvert.recipes import default_recipe

    library2d = library(source)
    parameters = library2d.parameters(name)
    if parameters is None and counted:
        model = build(Backbone.of(source, name))
        parameters = sum(parameter.numel() for parameter in model.parameters())
    qualified = Backbone(source, name).qualified
    recipe = default_recipe(qualified).name
    return {"name": qualified, "parameters": parameters, "weights": library2d.offered(name), "recipe": recipe}
