"""Read and write recipes as TOML files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from i3dconvert.errors import RecipeError
from i3dconvert.files import check_input, check_text
from i3dconvert.recipes.rules import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST = 2**20
"""The most bytes of a file, ten times a recipe with a rule for each layer of the largest network."""


def loads(text: str, where: str = "recipe") -> Recipe:
    """Parse TOML to a recipe. Raises `RecipeError` for bad TOML, unknown keys, wrong types or numbers out of range."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where} is not TOML: {error}") from None
    return Recipe.from_dict(document, where)


def dumps(recipe: Recipe) -> str:
    """Return a recipe as TOML, the inverse of `loads`."""
    document = recipe.to_dict()
    lines = [f"{key} = {_value(value)}" for key, value in document.items() if isinstance(value, str)]
    for table in ("rule", "pool"):
        for entry in document.get(table, []):
            lines += ["", f"[[{table}]]", *(f"{key} = {_value(value)}" for key, value in entry.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """Return a value in TOML, whose strings escape what can't be printed."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08X}" for one in text)


def read(path: Path) -> Recipe:
    """Read the recipe in the TOML file at `path`."""
    check_input(path, RecipeError, "a .toml file")
    check_text(path.stat().st_size, str(path), RecipeError, _MOST)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"can't read the recipe {path}: {getattr(error, 'strerror', None) or error}") from None
    return loads(text, str(path))
