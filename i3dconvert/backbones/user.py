"""A user's own network: `path/to/module.py:factory`, where `factory` is a 2D `torch.nn.Module`, or returns one.

`path/to/module.py:factory.part` is a module of it, such as the backbone of a detector.
"""

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
from i3dconvert.names import near
from i3dconvert.weights import State

AS_BUILT = "as-built"
"""The only set of weights: those that the factory itself puts into the network."""


def split(name: str) -> tuple[Path, str]:
    """Split `path/to/module.py:factory` into its two parts."""
    path, _, factory = name.rpartition(":")
    return Path(path), factory


def build_in_volumes(name: str) -> nn.Module:
    """Build the same network for volumes with the factory's own `spatial_dims`, as in MONAI.

    Raises `BackboneError` if the factory does not take it, and for any error in the factory.
    """
    factory = _factory(name)
    if "spatial_dims" not in inspect.signature(factory).parameters:
        path, function = split(name)
        raise BackboneError(
            f"{path} can't build the network for volumes: let {function}(spatial_dims=2) build the 2D network and "
            f"{function}(spatial_dims=3) the 3D one that the weights are compared with"
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
    sys.modules[spec.name] = module  # dataclasses and pickle look up classes there
    sys.path.insert(0, str(path.resolve().parent))
    try:
        _call(str(path), spec.loader.exec_module, module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    factory = factory.partition(".")[0]
    found = getattr(module, factory, None)
    if isinstance(found, nn.Module):
        return lambda: found
    if found is not None and not callable(found):
        raise BackboneError(
            f"{name} has type {type(found).__name__}; give a function or a torch.nn.Module; -w FILE gives its tensors"
        )
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) or isinstance(value, nn.Module)]
        raise BackboneError(f"{path} has no function {factory!r}; {near(factory, known)}".removesuffix("; "))
    function: Callable[..., Any] = found
    return function


def _required(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments without a default that are not given."""
    try:
        found = inspect.signature(factory).parameters.values()
    except (ValueError, TypeError):  # some builtins have none
        return []
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in found if p.default is p.empty and p.kind not in various and p.name not in arguments]


class User(Library):
    """The networks that users' files build."""

    version = ""

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Run the file and call the factory. Raises `BackboneError` for any error in the user's code."""
        factory = _factory(name)
        if missing := _required(factory, arguments):
            raise BackboneError(
                f"{name} needs {', '.join(missing)}; give a function without arguments that calls it: "
                f"def network(): return {split(name)[1]}(…)"
            )
        network = _call(name, factory, **arguments)
        if not isinstance(network, nn.Module):
            raise BackboneError(f"{name} returned {type(network).__name__}, not a torch.nn.Module")
        parts: dict[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))
        part = split(name)[1].partition(".")[2]
        if part not in parts:
            known = near(part, parts) or f"it has {', '.join(dict(network.named_children()))}"
            raise BackboneError(f"{name}: the {type(network).__name__} has no module {part!r}; {known.strip()}")
        return parts[part]

    def channels(self, name: str, model: nn.Module, size: int) -> int:
        """Return the number of channels that it runs with."""
        return channels_of(model, size, size, {})

    def arguments(self, name: str, weights: str | None, classes: int | None) -> dict[str, Any]:
        """Return `num_classes` if the factory takes it and a weight file needs it; otherwise no arguments."""
        takes = classes is not None and "num_classes" in inspect.signature(_factory(name)).parameters
        return {"num_classes": classes} if takes else {}

    def offered(self, name: str) -> list[str]:
        """Return the only set of weights, the factory's own."""
        return [AS_BUILT]

    def pretrained(self, name: str, weights: str, progress: bool) -> State:
        """Return the state dict of the network that the factory returns."""
        return dict(self.build(name, {}).state_dict())


LIBRARY = User()
