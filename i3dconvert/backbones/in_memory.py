"""Apply to a 2D network in memory what users can ask for by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from i3dconvert.backbones.changes import UNCHANGED, Changes, with_head
from i3dconvert.backbones.images import SIZE, channels_of
from i3dconvert.backbones.wrappers import unwrapped
from i3dconvert.errors import BackboneError
from i3dconvert.names import names
from i3dconvert.recipes import Recipe, default_recipe, preset
from i3dconvert.weights import SUFFIXES, fit, randomise, read_state, shapes_of


def with_weights(
    model: nn.Module, weights: str, seed: int, shape: tuple[int, int, int], headless: bool = False
) -> nn.Module:
    """Return a copy of the network with the weights of a file, or `random` ones; the network itself for `default`.

    With `headless`, the file need not have the head, which is replaced.
    Raises `WeightsError`, and `BackboneError` for the name of a pretrained set, which only libraries have.
    """
    if weights == "default":
        return model
    if weights != "random" and Path(weights).suffix not in SUFFIXES:
        raise BackboneError(f"a module has no pretrained weights {weights!r}; weights= takes a file, or 'random'")
    model = copy.deepcopy(model)
    if weights == "random":
        randomise(model, seed, shape)
    else:
        state = unwrapped(read_state(Path(weights)), model.state_dict(), weights)
        fit(model, with_head(state, model) if headless else state, weights)
    return model


def changed(
    model: nn.Module, asked: Changes, size: int | None, constants: Mapping[str, Any]
) -> tuple[nn.Module, Changes]:
    """Return a copy of the network with the changes, or itself if there are none, and which were made.

    A network that takes the channels already is not changed in them.
    """
    if asked.channels and asked.channels == channels_of(model, size or SIZE, size or SIZE, constants):
        asked = replace(asked, channels=0, in_init="")
    return (model if asked == UNCHANGED else asked.apply(copy.deepcopy(model))), asked


def as_recorded(model: nn.Module, changes: Changes, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the network as a file stores it: changed, if the file's tensors show that it has not been changed yet."""
    wanted = {key: shape_over_images(tensor) for key, tensor in state.items()}
    fits = all(wanted.get(key) == shape for key, shape in shapes_of(model.state_dict()).items())
    return model if fits or changes == UNCHANGED else changes.apply(copy.deepcopy(model))


def shape_over_images(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor; an inflated kernel's without time."""
    return tuple(tensor.shape[:2] + tensor.shape[3:]) if tensor.dim() == 5 else tuple(tensor.shape)


def recipe_of(model: nn.Module) -> Recipe:
    """Return the default recipe of the network's name, if a library built it; else `uniform`."""
    name = name_of(model)
    return default_recipe(name) if name else preset("uniform")


def name_of(model: Any) -> str:
    """Return a name that a library gives to networks like this one; empty if none does.

    timm's networks know their names. torchvision's are found by their file, a family of which has one recipe.
    """
    home, _, family = type(model).__module__.rpartition(".")
    if home.startswith("timm"):
        config = getattr(model, "pretrained_cfg", None) or {}
        said = config.get("architecture") if isinstance(config, Mapping) else getattr(config, "architecture", None)
        return f"timm/{said}" if said else ""
    known = names("torchvision") if home == "torchvision.models" else ()
    return next((name for name in known if name.startswith(family)), "")
