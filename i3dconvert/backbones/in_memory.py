"""A 2D network in memory: what is asked of one by name is asked of it, too."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from i3dconvert.backbones.changes import UNCHANGED, Changes
from i3dconvert.backbones.images import SIZE, channels_of
from i3dconvert.backbones.wrappers import unwrapped
from i3dconvert.errors import BackboneError
from i3dconvert.names import names
from i3dconvert.recipes import Recipe, default_recipe, preset
from i3dconvert.weights import SUFFIXES, fit, randomise, read_state


def with_weights(model: nn.Module, weights: str, seed: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network with the weights of a file, or `random` ones, in a copy; itself by `default`.

    Raises `BackboneError` for the name of a set, which only libraries have, and `WeightsError`.
    """
    if weights == "default":
        return model
    if weights != "random" and Path(weights).suffix not in SUFFIXES:
        raise BackboneError(f"a module has no weights {weights!r} on offer: weights= takes a file, or 'random'")
    model = copy.deepcopy(model)
    if weights == "random":
        randomise(model, seed, shape)
    else:
        fit(model, unwrapped(read_state(Path(weights)), model.state_dict(), weights), weights)
    return model


def changed(
    model: nn.Module,
    in_channels: int | None,
    in_init: str | None,
    num_classes: int | None,
    head: str,
    seed: int,
    size: int | None,
    constants: Mapping[str, Any],
) -> tuple[nn.Module, Changes]:
    """A copy of the network with the changes that a user asks for (see `Changes.asked`), and these; else itself."""
    if in_channels is not None and in_channels == channels_of(model, size or SIZE, size or SIZE, constants):
        in_channels = None  # it takes them by itself
    changes = Changes.asked(in_channels, in_init, num_classes, head, seed)
    return (model if changes == UNCHANGED else changes.apply(copy.deepcopy(model))), changes


def as_recorded(model: nn.Module, changes: Changes, state: Mapping[str, Tensor]) -> nn.Module:
    """The network as a file has it: a changed copy, where the file's tensors say that it is not changed yet."""
    wanted = {key: _over_images(tensor) for key, tensor in state.items()}
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    fits = all(wanted.get(key) == shape for key, shape in own.items())
    return model if fits or changes == UNCHANGED else changes.apply(copy.deepcopy(model))


def _over_images(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor, of an inflated kernel without time."""
    return tuple(tensor.shape[:2] + tensor.shape[3:]) if tensor.dim() == 5 else tuple(tensor.shape)


def recipe_of(model: nn.Module) -> Recipe:
    """The recipe that the network's name would take, where a library built it; else `uniform`."""
    name = name_of(model)
    return default_recipe(name) if name else preset("uniform")


def name_of(model: Any) -> str:
    """A name that a library gives to networks like this one; empty for others'.

    timm's know theirs. torchvision's are told by the file of their class, a family of which has one recipe.
    """
    home, _, family = type(model).__module__.rpartition(".")
    if home.startswith("timm"):
        config = getattr(model, "pretrained_cfg", None) or {}
        said = config.get("architecture") if isinstance(config, Mapping) else getattr(config, "architecture", None)
        return f"timm/{said}" if said else ""
    known = names("torchvision") if home == "torchvision.models" else ()
    return next((name for name in known if name.startswith(family)), "")
