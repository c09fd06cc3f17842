"""A row of the table of counterparts, and what several families of layers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from i3dconvert.errors import RecipeError
from i3dconvert.lift.fillings import Filling
from i3dconvert.lift.kernels import Style
from i3dconvert.recipes import Geometry, Temporal


def _no_fillings(layer: Any, temporal: Temporal, style: Style) -> dict[str, Filling]:
    return {}


@dataclass(frozen=True)
class Counterpart:
    """How a type of 2D module is lifted; types that recipes apply to have a `geometry`."""

    lift: Callable[[Any, Temporal, Style], nn.Module]
    geometry: Callable[[Any], Geometry] | None = None
    fillings: Callable[[Any, Temporal, Style], Mapping[str, Filling]] = _no_fillings
    """The tensors that gain a temporal axis, or are new, by their names in the 3D module."""


def is_same(layer: nn.Module) -> bool:
    """Return whether the layer pads like TensorFlow's 'SAME', which depends on the image's size."""
    return type(layer).__name__.endswith("2dSame") and getattr(layer, "same_pad", True)


def like(layer: Any) -> dict[str, Any]:
    """Return the device and the dtype of a layer's weights."""
    return {"device": layer.weight.device, "dtype": layer.weight.dtype}


def refuse_dilation(temporal: Temporal, layer: str) -> None:
    """Raise `RecipeError` if a recipe dilates a layer that has no temporal dilation."""
    if temporal.dilation > 1 and temporal.kernel > 1:
        raise RecipeError(f"{layer} has no temporal dilation")


def full_name(module: nn.Module) -> str:
    """Return the name of the module's type; for a subclass that computes the same as its base, the base's."""
    cls = type(module)
    while not cls.__module__.startswith("torch.") and not any(name in vars(cls) for name in _COMPUTING):
        cls = cls.__bases__[0]
    return f"{cls.__module__}.{cls.__qualname__}"


_COMPUTING = ("forward", "_conv_forward", "__call__")
