"""Recipes for time: rules, presets from the literature, and TOML.

Imports `names`, `files` and `errors`.
"""

from pathlib import Path

from i3dconvert.recipes import toml
from i3dconvert.recipes.presets import PRESETS, default_recipe, preset
from i3dconvert.recipes.rules import KINDS, InsertedPool, Recipe, Rule, parse_rule
from i3dconvert.recipes.temporal import Attending, Geometry, Temporal

__all__ = ["KINDS", "PRESETS", "Attending", "Geometry", "InsertedPool", "Recipe", "Rule", "Temporal"]
__all__ += ["default_recipe", "parse_rule", "preset", "resolve", "toml"]


def resolve(recipe: "str | Path | Recipe") -> Recipe:
    """Return the recipe of a preset's name or of a `.toml` file's path; a recipe is returned unchanged."""
    if isinstance(recipe, Recipe):
        return recipe
    path = Path(recipe)
    return toml.read(path) if path.suffix == ".toml" else preset(str(recipe))
