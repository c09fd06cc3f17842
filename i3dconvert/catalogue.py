"""Facts about the libraries' backbones without importing a library: a table for each of its versions.

The tables of the versions in constraints.txt are shipped; `python -m tools.catalogue` writes them. Tables of other
versions are computed once, by `backbones.census`, and kept in the user's cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from i3dconvert.errors import OutputError
from i3dconvert.files import cache_folder, replacing

SHIPPED = Path(__file__).parent / "backbones" / "tables"


class Entry(NamedTuple):
    """A backbone's row in a table."""

    parameters: int | None
    """The number of parameters; None if they were not counted."""
    weights: tuple[str, ...]
    """The names of the pretrained sets, the default first."""


Table = Mapping[str, Entry]


def version(source: str) -> str:
    """Return the installed library's version without its build (`+cpu`); empty if it is not installed."""
    try:
        return metadata.version(source).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def read(source: str) -> Table:
    """Return the table of the installed version, shipped or cached; empty if there is none or it is damaged."""
    name = _file_name(source)
    return _read(SHIPPED / name) or _read(_kept(name))


def keep(source: str, table: Table) -> None:
    """Write the table of the installed version to the user's cache, if possible."""
    if version(source):
        with suppress(OSError, OutputError):
            write(_kept(_file_name(source)), table)


def write(path: Path, table: Table) -> None:
    """Write a table atomically, one backbone per line."""
    dumps = partial(json.dumps, separators=(",", ":"))
    rows = (f"{dumps(name)}:{dumps([parameters, *weights])}" for name, (parameters, weights) in sorted(table.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, force=True) as beside:
        beside.write_text("{" + ",\n".join(rows) + "}\n", encoding="utf-8")


def path_of(source: str) -> Path:
    """Return the path of the shipped table of the installed version."""
    return SHIPPED / _file_name(source)


def _file_name(source: str) -> str:
    return f"{source}-{version(source)}.json"


def _kept(name: str) -> Path:
    return cache_folder() / "backbones" / name


def _read(path: Path) -> Table:
    try:
        rows = json.loads(path.read_bytes())
        return {name: _entry(*row) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _entry(parameters: Any, *weights: Any) -> Entry:
    if not (parameters is None or isinstance(parameters, int)) or not all(isinstance(name, str) for name in weights):
        raise ValueError("not a count and names")
    return Entry(parameters, weights)
