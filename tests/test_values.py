"""Values are values: what describes layers, recipes, files and fillings can't be changed, and can be a key."""

from dataclasses import is_dataclass
from importlib import import_module

import pytest

MODULES = (
    *("lift.kernels", "lift.fillings", "recipes.rules", "checkpoint.document", "checkpoint.writing", "lift.record"),
    *("lift.rewriting", "lift.modules", "lift.counterparts.row"),
)


@pytest.mark.parametrize("name", MODULES)
def test_data_is_frozen(name: str) -> None:
    module = import_module(f"i3dconvert.{name}")
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    found = [cls for cls in own if is_dataclass(cls)]
    assert found
    assert [cls.__name__ for cls in found if not cls.__dataclass_params__.frozen] == []  # type: ignore[attr-defined]
