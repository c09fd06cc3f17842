"""Find the name that builds a 2D network in memory: a library's, or `PATH.py:NAME` for a user's own."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from i3dconvert import trust
from i3dconvert.backbones.changes import classes_of
from i3dconvert.backbones.images import Shape
from i3dconvert.backbones.origin import MEMORY, Backbone, Origin, Weights, build, library
from i3dconvert.backbones.source import IMAGENET_CLASSES
from i3dconvert.backbones.user import AS_BUILT
from i3dconvert.comparison.forward import evaluating, outputs
from i3dconvert.errors import I3DError
from i3dconvert.names import USER, names
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import SUFFIXES, digest, shapes_of

Factory = Callable[[], nn.Module]


def recognised(
    model: nn.Module, weights: str, seed: int, shape: Shape, factory: Factory | None = None
) -> Origin | None:
    """Return an origin that builds `model` again, so that its file needs no module in memory; None if none is found.

    A name is right if it builds the same modules with the same settings, and the outputs for an image are equal.
    `factory` is the function that built the model, if the user gave one. `weights` and `seed` are those of `inflate`.
    """
    for backbone, make in [*_of_the_user(model, factory), *_of_a_library(model)]:
        with suppress(Exception), torch.random.fork_rng(devices=[]):  # a user's class may raise anything
            built = make()
            if _alike(model, built) and _same(model, built, shape):
                return _origin(model, built, backbone, weights, seed, shape)
    return None


def _origin(model: nn.Module, built: nn.Module, backbone: Backbone, weights: str, seed: int, shape: Shape) -> Origin:
    sha256 = digest(model.state_dict())
    if weights == "random":
        known = Weights("random", seed=seed, sha256=sha256)
    elif Path(weights).suffix in SUFFIXES:
        known = Weights("file", path=weights, sha256=sha256)
    elif backbone.source == USER and digest(built.state_dict()) == sha256:
        known = Weights("pretrained", name=AS_BUILT, sha256=sha256)
    else:
        known = Weights(MEMORY, sha256=sha256)
    if backbone.source == USER:
        trust.remember(Path(backbone.name.rpartition(":")[0]))  # its code has already run here
        preprocessing = Preprocessing.of_images(shape)
    else:
        preprocessing = backbone.library.preprocessing(backbone.name, None).at(min(shape[1:]))
    return Origin(backbone, known, preprocessing, shape, classes_of(model))


def _of_the_user(model: nn.Module, factory: Factory | None) -> Iterator[tuple[Backbone, Factory]]:
    """Yield the function or the class, if a file that runs on its own defines it under its name."""
    functions: list[Factory] = [type(model)] if factory is None else [factory, type(model)]
    for function in functions:
        module = sys.modules.get(getattr(function, "__module__", ""))
        name, path = getattr(function, "__qualname__", ""), getattr(module, "__file__", None) or ""
        by_itself = not getattr(module, "__package__", "") and getattr(module, "__name__", "") != "__main__"
        if by_itself and path.endswith(".py") and getattr(module, name, None) is function:
            yield Backbone(USER, f"{path}:{name}"), function


def _of_a_library(model: nn.Module) -> Iterator[tuple[Backbone, Factory]]:
    home, _, family = type(model).__module__.rpartition(".")
    if home.startswith("timm"):
        config: Any = getattr(model, "pretrained_cfg", None)
        source, found = "timm", [str(config.get("architecture"))] if isinstance(config, dict) else []
    elif home == "torchvision.models":
        family_names = [name for name in names(source="torchvision") if _module_of(name) == family]
        source, found = "torchvision", sorted(family_names, key=partial(_difference, model))[:_NEAREST]
    else:
        return
    for name in found:
        with suppress(I3DError, RuntimeError):  # a network may carry a name that its library does not have
            backbone = Backbone.of(source, name, None, classes_of(model) or None)
            with torch.device("meta"):
                fits = _alike(model, build(backbone))
            if fits:
                yield backbone, partial(build, backbone)


_NEAREST = 2
"""The most candidates of a family, nearest in number of parameters."""


def _difference(model: nn.Module, name: str) -> int:
    """Return the difference in parameters between `model` with ImageNet's classes and the network called `name`."""
    head = next((m for m in reversed([*model.modules()]) if isinstance(m, nn.Linear | nn.Conv2d)), None)
    weight = getattr(head, "weight", torch.empty(1))
    more = (IMAGENET_CLASSES - len(weight)) * (weight[0].numel() + 1)
    return abs((library("torchvision").parameters(name) or 0) - sum(p.numel() for p in model.parameters()) - more)


def _module_of(name: str) -> str:
    """Return the torchvision module that defines the builder called `name`."""
    from torchvision import models

    return str(models.get_model_builder(name).__module__).rpartition(".")[2]


def _alike(model: nn.Module, built: nn.Module) -> bool:
    """Return whether both have the same modules, settings and tensor shapes, and `model` has no hooks."""
    pairs = zip_longest(model.named_modules(), built.named_modules(), fillvalue=("", None))
    same = all(name == other and _settings(one) == _settings(two) for (name, one), (other, two) in pairs)
    hooks = any(value for m in model.modules() for key, value in vars(m).items() if key.endswith("_hooks"))
    return same and not hooks and shapes_of(model.state_dict()) == shapes_of(built.state_dict())


def _settings(module: nn.Module | None) -> tuple[type, dict[str, Any]]:
    """Return a module's type and its attributes that are plain data."""
    held = vars(module) if module is not None else {}
    return type(module), {key: value for key, value in held.items() if key != "training" and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _same(model: nn.Module, built: nn.Module, shape: Shape) -> bool:
    """Return whether both networks return the same for an image, with the tensors of `model`."""
    built = copy.deepcopy(built)
    built.load_state_dict(model.state_dict())
    tensor = next(iter(model.parameters()), torch.empty(0))
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(tensor.device, tensor.dtype)
    given = []
    for network in (model, built.to(tensor.device, tensor.dtype)):
        with evaluating(network, tensor.dtype, device=str(tensor.device)):
            given.append(outputs(network(image)))
    return all(torch.equal(one, other) for one, other in zip(*given, strict=True))
