"""`i3dconvert list`."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i3dconvert.cli import render
from i3dconvert.cli.options import Json, Quiet

if TYPE_CHECKING:
    from i3dconvert.catalogue import Table

EXAMPLE = "i3dconvert list 'resnet*'\ni3dconvert list 'convnext*' --source timm"

_COUNTED_AT_MOST = 50
"""The most backbones whose parameters are counted at once if no table has them: counting all of timm takes minutes."""


class Source(Enum):
    """The libraries to list."""

    torchvision = "torchvision"
    timm = "timm"


def command(
    glob: Annotated[str, typer.Argument(help="Names to show, such as 'resnet*' (quote it).", metavar="GLOB")] = "*",
    source: Annotated[
        Source | None,
        typer.Option("--source", "-s", help="Show only the backbones of this library.", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the backbones with their weights and recipes."""
    from i3dconvert.errors import BackboneError
    from i3dconvert.names import SOURCES

    sources = SOURCES if source is None else (source.value,)
    rows = [row for library in sources for row in _rows(library, glob, quiet or json)]
    if not rows:
        raise BackboneError(f"no backbone matches {glob!r}; `i3dconvert list` lists all")
    if json:
        render.show_json(rows)
    elif not quiet:
        columns = ("backbone", "parameters#", "weights", "recipe")
        table = ([r["name"], r["parameters"], ", ".join(r["weights"]) or None, r["recipe"]] for r in rows)
        render.show_table(columns, table)


def _rows(source: str, glob: str, quiet: bool) -> list[dict[str, Any]]:
    from i3dconvert.names import names, qualified
    from i3dconvert.recipes import default_recipe

    found = {name: qualified(source, name) for name in names(source)}
    matching = {name: full for name, full in found.items() if fnmatchcase(name, glob) or fnmatchcase(full, glob)}
    table = _table(source, [*matching], quiet) if matching else {}
    return [
        {"name": full, **table[name]._asdict(), "recipe": default_recipe(full).name} for name, full in matching.items()
    ]


def _table(source: str, wanted: Collection[str], quiet: bool) -> Table:
    """Return the table of the library's backbones; ask the library for what it lacks about `wanted`, and store that."""
    from i3dconvert import catalogue

    table = catalogue.read(source)
    known = table.keys() >= {*wanted}
    if known and not _countable(table, wanted):
        return table
    with render.progress(quiet) as step:
        step(f"reading {source}")
        from i3dconvert.backbones import census

        table = table if known else census.taken(source)
        table = census.counted(source, table, _countable(table, wanted), step)
    catalogue.keep(source, table)
    return table


def _countable(table: Table, wanted: Collection[str]) -> list[str]:
    """Return the backbones whose parameters no table has; none if there are too many."""
    uncounted = [name for name in wanted if table[name].parameters is None]
    return uncounted if len(uncounted) <= _COUNTED_AT_MOST else []
