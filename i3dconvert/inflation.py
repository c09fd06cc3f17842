"""Inflate: a 2D network, by name or as an object, into a 3D one in memory or in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from i3dconvert.backbones import Changes, Origin, Source
from i3dconvert.backbones.changes import RGB, UNCHANGED
from i3dconvert.backbones.images import shape_of
from i3dconvert.backbones.in_memory import changed, recipe_of, with_weights
from i3dconvert.backbones.origin import of_a_user
from i3dconvert.backbones.recognised import recognised
from i3dconvert.checkpoint import Document
from i3dconvert.checkpoint.present import note
from i3dconvert.checkpoint.writing import check_suffix, write_inflated
from i3dconvert.choices import Conv, Head, InInit, Init, Padding, TemporalPool, TimeEmbedding
from i3dconvert.comparison.alone import mixing
from i3dconvert.comparison.forward import given
from i3dconvert.errors import BackboneError, LiftError
from i3dconvert.frameworks import framework_of, split
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.network import Network3d, cloned, fill, plan, set_origin, warn_of
from i3dconvert.lift.reading import check_is_python
from i3dconvert.lift.record import Inflation
from i3dconvert.progress import Progress, silent
from i3dconvert.recipes import Recipe, Rule, default_recipe, resolve
from i3dconvert.video.labels import check_count

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Names of BatchNorm's buffers."""

Recipes = str | Path | Recipe | None


@dataclass(frozen=True)
class Manner:
    """How a 2D network is inflated, and what its tensors are called."""

    recipe: Recipes = None
    """A preset's name, the path of a `.toml` file, or a `Recipe`; None: the layout's or the backbone's own preset."""
    rules: tuple[Rule, ...] = ()
    """On top of the recipe."""
    style: Style = field(default_factory=Style)
    dtype: torch.dtype | None = None
    """The type of the floating-point tensors; None keeps it."""
    layout: str = ""
    """The framework whose names the tensors of a file get, `NAME` or `NAME:NETWORK`."""
    strict: bool = False
    """Whether a convolution that stays 2D is an error."""
    classes: tuple[str, ...] = ()
    """Their names, where a user gives them."""

    def recipe_for(self, backbone: str) -> Recipe:
        """The recipe of a backbone; raises `RecipeError`."""
        recipe = default_recipe(backbone) if self.recipe is None else resolve(self.recipe)
        return recipe.with_rules(self.rules)


def inflate(
    model: nn.Module | Callable[[], nn.Module] | str,
    recipe: Recipes = None,
    init: Init = "center",
    padding: Padding | None = None,
    *,
    conv: Conv = "3d",
    weights: str = "default",
    seed: int = 0,
    size: int | None = None,
    features: bool = False,
    allow_nonfinite: bool = False,
    dtype: torch.dtype | None = None,
    in_channels: int | None = None,
    in_init: InInit | None = None,
    num_classes: int | None = None,
    head: Head = "",
    temporal_pool: TemporalPool = "mean",
    time_embedding: TimeEmbedding = "none",
    strict: bool = False,
    input: tuple[int, int, int] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Network3d:
    """Inflate a 2D network: images `(N, C, H, W)` become clips `(N, C, T, H, W)`.

    Args:
        model: any module that traces, a function that returns one, a backbone's name (`resnet50`,
            `timm/convnext_tiny`), or `path/to/module.py:factory`, a function of your own (its code is run). A file of
            a module is built again by its name where that is found: torchvision's, timm's, or a function's or class's
            of your own that takes no arguments; else `load` takes the module.
        recipe: a preset's name, the path of a `.toml` file, or a `Recipe`; by default the backbone's own preset, which
            a module of torchvision's or timm's has too (`uniform` for others).
        init: how the taps are filled, `center` or `mean` (see `i3dconvert.lift.kernels`).
        padding: of time, in the convolutions, `zeros` or `replicate`; by default what keeps the network equal.
        conv, temporal_pool, time_embedding: see `i3dconvert.lift.kernels.Style`.
        weights: for a name, see `i3dconvert.backbones.Source`; for a module, the path of a file, or `random`; by
            default those that it has.
        seed, size: of random weights and fresh heads; the height and width that the network is read at.
        features, allow_nonfinite: for a name, see `i3dconvert.backbones.Source`.
        dtype: of the floating-point tensors, by default as they are.
        in_channels: of the clip instead of 3; `in_init` (`sum`, `mean`, `repeat`) makes the first kernels
            from those over RGB, see `i3dconvert.backbones.changes`.
        num_classes: a fresh head of so many classes, drawn with `seed`.
        head: `none` leaves the head out, giving its features; `maps` the pool before it too, giving
            feature maps `(N, C, T', H', W')`.
        input: the image `(C, H, W)` that a module is read at. By default 224 × 224 pixels, or `size`, and as many
            channels as the network runs with.
        constants: what a module is called with beside the image: numbers, strings or None, by parameter's name.
        strict: whether a convolution that stays 2D raises `LiftError`; `network.inflation.convolutions` lists them.

    Returns:
        An ordinary module with the 2D network's key names and modes, its tensors apart from the 2D network's.

    Raises `BackboneError`, `WeightsError`, `RecipeError`, `LiftError`.
    """
    manner = Manner(recipe, (), Style(init, padding or "", conv, temporal_pool, time_embedding), dtype, strict=strict)
    if isinstance(model, str):
        changes = Changes.asked(in_channels, in_init, num_classes, head, seed)
        if constants:
            raise BackboneError("constants are for a module; for a name, let a function of your own build the network")
        source = Source(model, weights, seed, features, size, allow_nonfinite, changes, input)
        return inflate_loaded(*source.load(), manner)
    factory = None if isinstance(model, nn.Module) else model
    model = model if isinstance(model, nn.Module) else _called(model)
    check_is_python(model)
    if in_channels is not None and input is not None and in_channels != input[0]:
        raise BackboneError(f"input={input} and in_channels={in_channels} contradict each other")
    if features:
        raise BackboneError("features=True is for timm/NAME: give timm.create_model(NAME, features_only=True) itself")
    own = with_weights(model, weights, seed, shape_of(model, input, size, constants))
    before = own
    asked = Changes.asked(in_channels, in_init, num_classes, head, seed)
    own, changes = changed(own, asked, size, constants or {})
    shape = shape_of(own, input, size, constants)
    taken = (RGB if changes.channels else shape[0], *shape[1:])
    found = None if constants else recognised(before, weights, seed, taken, factory)
    origin = found.changed(changes) if found is not None else None
    manner = replace(manner, recipe=recipe_of(own) if recipe is None else recipe)
    return _inflated(own, origin, manner, shape, constants or {}, changes if origin is None else UNCHANGED)


def _called(factory: Callable[[], nn.Module]) -> nn.Module:
    model = factory()
    if not isinstance(model, nn.Module):
        raise BackboneError(f"{factory!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def inflate_loaded(model: nn.Module, origin: Origin, manner: Manner = Manner()) -> Network3d:
    """`inflate` for a backbone that `Source.load` has given."""
    return _inflated(model, origin, manner, origin.input)


def _inflated(
    model: nn.Module,
    origin: Origin | None,
    manner: Manner,
    shape: tuple[int, int, int],
    constants: Mapping[str, Any] = MappingProxyType({}),
    changes: Changes = UNCHANGED,
) -> Network3d:
    recipe = manner.recipe_for(origin.backbone.qualified if origin is not None else "")
    planned = plan(model, recipe, manner.style, shape, of_a_user(origin), constants)
    with given(model, constants):
        check_by_itself(model, origin, shape)
    warn_of(planned.inflation, manner.strict)
    network = planned.network(model)
    set_origin(network, origin)
    note(network, changes=changes)
    return fill(network, planned.inflation.state(cloned(model.state_dict(), manner.dtype)))


def check_by_itself(model: nn.Module, origin: Origin | None, shape: tuple[int, int, int]) -> None:
    """Raise `LiftError` where a user's network mixes the images of a batch; of a library's, `verify` says so."""
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    if of_a_user(origin) and (reason := mixing(model, images)):
        raise LiftError(reason)


@dataclass(frozen=True)
class Written:
    """What `inflate_to_file` did."""

    path: Path
    origin: Origin
    inflation: Inflation
    parameters2d: int
    parameters3d: int
    sha256: str
    layout: str
    network: Callable[[], Network3d]
    """Builds the 3D network, without its inflated weights."""


def inflate_to_file(
    source: Source, path: Path, manner: Manner = Manner(), force: bool = False, progress: Progress = silent
) -> Written:
    """Inflate a backbone by name into a checkpoint at `path`, one tensor at a time.

    With a layout, the recipe is by default that of its network. Raises `LayoutError` for one that is another, what
    `inflate` raises, and `OutputError`; nothing is left at `path` then but what was there before.
    """
    check_suffix(path, manner.layout)
    source, manner = _for_layout(source, manner)
    progress(f"reading {source.name}")
    model, origin = source.load(progress is not silent)
    recipe = manner.recipe_for(origin.backbone.qualified)
    planned = plan(model, recipe, manner.style, origin.input, trial=of_a_user(origin))
    check_by_itself(model, origin, origin.input)
    warn_of(planned.inflation, manner.strict)
    check_count(manner.classes, origin.classes)
    document = Document.for_layout(planned.inflation, origin, manner.layout, classes=manner.classes)
    sha256, entries = write_inflated(path, document, model.state_dict(), manner.dtype, force, progress)
    buffers = dict(model.named_buffers())
    parameters = [e for e in entries if e.key not in buffers and e.key.rpartition(".")[2] not in STATISTICS]
    counts = sum(p.numel() for p in model.parameters()), sum(math.prod(entry.shape) for entry in parameters)
    network = partial(planned.network, model)
    return Written(path, origin, planned.inflation, *counts, sha256, document.layout, network)


def _for_layout(source: Source, manner: Manner) -> tuple[Source, Manner]:
    """The same, with what the layout's network asks for where the user asks for nothing."""
    if not manner.layout:
        return source, manner
    target, style = framework_of(manner.layout).target(source.name, split(manner.layout)[1]), manner.style
    embedding = target.time_embedding if style.time_embedding == "none" else style.time_embedding
    style = replace(style, padding=style.padding or target.padding, time_embedding=embedding)
    source = replace(source, changes=target.changed(source.changes))
    return source, replace(manner, recipe=manner.recipe or target.recipe, style=style)
