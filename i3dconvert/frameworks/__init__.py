"""Other frameworks' 3D networks: one module each, with a table of names that is applied in both directions.

Imports `backbones`, `lift`, and the rooms below them. A framework's module imports no other's.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from i3dconvert.errors import LayoutError
from i3dconvert.frameworks.framework import Framework, Target, check_fits, how_to_load, statements
from i3dconvert.names import near

__all__ = ["FRAMEWORKS", "Framework", "Target", "check_fits", "framework_of", "how_to_load", "split", "statements"]

_MODULES = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
_FOUND: list[Framework] = [module.FRAMEWORK for module in _MODULES if hasattr(module, "FRAMEWORK")]
FRAMEWORKS = {framework.name: framework for framework in _FOUND}
"""The `FRAMEWORK` of each module in this package, by its name."""


def framework_of(layout: str) -> Framework:
    """Return the framework of a layout, `NAME` or `NAME:NETWORK`; raises `LayoutError`."""
    name = split(layout)[0]
    if name not in FRAMEWORKS:
        raise LayoutError(f"unknown layout {name!r}; {near(name, FRAMEWORKS)}known: {', '.join(FRAMEWORKS)}")
    return FRAMEWORKS[name]


def split(layout: str) -> tuple[str, str]:
    """Split `pytorchvideo:i3d_r50` into the names of the framework and the network; the latter may be missing."""
    name, _, network = layout.partition(":")
    return name, network
