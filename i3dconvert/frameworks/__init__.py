"""Other frameworks' 3D networks: a module each, with a table of names that is applied both ways."""

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
"""By name: what the modules beside this one call `FRAMEWORK`."""


def framework_of(layout: str) -> Framework:
    """The framework that a layout names, `NAME` or `NAME:NETWORK`; raises `LayoutError`."""
    name = split(layout)[0]
    if name not in FRAMEWORKS:
        raise LayoutError(f"no layout {name!r}; {near(name, FRAMEWORKS)}known: {', '.join(FRAMEWORKS)}")
    return FRAMEWORKS[name]


def split(layout: str) -> tuple[str, str]:
    """`pytorchvideo:i3d_r50` → the framework's name and the network's, which may be left out."""
    name, _, network = layout.partition(":")
    return name, network
