"""A user's own network: `path/to/module.py:factory`, where `factory()` returns a 2D `torch.nn.Module`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from i3dconvert.backbones.images import channels_of
from i3dconvert.backbones.library import Library
from i3dconvert.errors import BackboneError, first_line
from i3dconvert.weights import State

AS_BUILT = "as-built"
"""The one set of weights on offer: what the factory itself puts into the network."""


def split(name: str) -> tuple[Path, str]:
    """`path/to/module.py:factory` → its two halves."""
    path, _, factory = name.rpartition(":")
    return Path(path), factory


def build_in_volumes(name: str) -> nn.Module:
    """The same network over volumes, by the factory's own `spatial_dims`, as MONAI's networks take it.

    Raises `BackboneError` where the factory takes none, and for whatever goes wrong in it.
    """
    factory = _factory(name)
    if "spatial_dims" not in inspect.signature(factory).parameters:
        path, function = split(name)
        raise BackboneError(
            f"{path} says nothing of volumes: let {function}(spatial_dims=2) build the network, for "
            f"{function}(spatial_dims=3) to build the one that the weights are compared in"
        )
    network: nn.Module = _call(name, factory, spatial_dims=3)
    return network


def _call(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise BackboneError(f"{what} failed: {type(error).__name__}: {first_line(error)}") from error


def _factory(name: str) -> Callable[..., Any]:
    path, factory = split(name)
    spec = importlib.util.spec_from_file_location(f"i3dconvert_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look themselves up there
    sys.path.insert(0, str(path.resolve().parent))
    try:
        _call(str(path), spec.loader.exec_module, module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    found = getattr(module, factory, None)
    if not callable(found):
        raise BackboneError(f"{path} has no function {factory!r}")
    function: Callable[..., Any] = found
    return function


class User(Library):
    """What the user's file says."""

    version = ""

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Run the file and call the factory. Raises `BackboneError` for whatever goes wrong in the user's code."""
        network: Any = _call(name, _factory(name), **arguments)
        if not isinstance(network, nn.Module):
            raise BackboneError(f"{name} returned {type(network).__name__}, not a torch.nn.Module")
        return network

    def channels(self, name: str, model: nn.Module, size: int) -> int:
        """Those that it runs with."""
        return channels_of(model, size, size, {})

    def arguments(self, name: str, weights: str | None, classes: int | None) -> dict[str, Any]:
        """The factory is called without arguments, unless it takes `num_classes` and a weight file asks for another."""
        takes = classes is not None and "num_classes" in inspect.signature(_factory(name)).parameters
        return {"num_classes": classes} if takes else {}

    def offered(self, name: str) -> list[str]:
        """What the factory leaves in the network."""
        return [AS_BUILT]

    def pretrained(self, name: str, weights: str, progress: bool) -> State:
        """The state dict of the network as the factory returns it."""
        return dict(self.build(name, {}).state_dict())


LIBRARY = User()
