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
from i3dconvert.backbones.changes import RGB, UNCHANGED, check_positive
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
from i3dconvert.lift.network import Network3d, set_origin
from i3dconvert.lift.planning import cloned, fill, plan, warn_of, warn_of_gradients, warn_of_modes
from i3dconvert.lift.reading import check_is_python
from i3dconvert.lift.record import Inflation
from i3dconvert.progress import Progress, silent
from i3dconvert.recipes import Recipe, Rule, default_recipe, resolve
from i3dconvert.video.labels import check_count

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Names of BatchNorm's buffers."""

Recipes = str | Path | Recipe | None


@dataclass(frozen=True)
class Options:
    """The options of an inflation."""

    recipe: Recipes = None
    """A preset's name, the path of a `.toml` file, or a `Recipe`; default: that of the layout or backbone."""
    rules: tuple[Rule, ...] = ()
    """Rules that override the recipe."""
    style: Style = field(default_factory=Style)
    dtype: torch.dtype | None = None
    """Type of the floating-point tensors; None keeps it."""
    layout: str = ""
    """Framework that names the tensors of a file, `NAME` or `NAME:NETWORK`."""
    strict: bool = False
    """Whether a convolution that stays 2D is an error."""
    classes: tuple[str, ...] = ()
    """Class names given by the user."""

    def recipe_for(self, backbone: str) -> Recipe:
        """Return the recipe for a backbone; raises `RecipeError`."""
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
        model: A module, a function that returns one, the name of a backbone (`resnet50`, `timm/convnext_tiny`), or
            `path/to/module.py:factory`, a function of your own (its code is run). `load` rebuilds a module from its
            file if a name builds it: torchvision's, timm's, or a function or class of your own without arguments.
            Otherwise, pass the module to `load`.
        recipe: The name of a preset, the path of a `.toml` file, or a `Recipe`. Default: the backbone's preset, or
            `uniform` if neither torchvision nor timm built the module.
        init: How the taps are filled, `center` or `mean` (see `i3dconvert.lift.kernels`).
        padding: Padding of time in convolutions, `zeros` or `replicate`. Default: the one that keeps the network equal.
        conv, temporal_pool, time_embedding: See `i3dconvert.lift.kernels.Style`.
        weights: For a name, see `i3dconvert.backbones.Source`. For a module, the path of a file, or `random`.
            Default: the module's own.
        seed: Seed of random weights and new heads.
        size: Height and width, in pixels, at which the network is read.
        features, allow_nonfinite: For a name, see `i3dconvert.backbones.Source`.
        dtype: Type of the floating-point tensors. Default: unchanged.
        in_channels: Number of input channels. `in_init` (`sum`, `mean`, `repeat`) says how the first kernels follow
            from those over RGB, see `i3dconvert.backbones.changes`.
        num_classes: Number of classes. Replaces the head with a new one, initialised from `seed`.
        head: `none` removes the head and returns its input; `maps` removes the pool before it, too, and returns
            feature maps `(N, C, T', H', W')`.
        input: Shape `(C, H, W)` of the image at which a module is read. Default: 224 × 224 pixels, or `size`, and the
            number of channels that the network runs with.
        constants: Further arguments of a module's forward, by name: numbers, strings or None.
        strict: Raise `LiftError` if a convolution stays 2D; `network.inflation.convolutions` lists them.

    Returns:
        A module with the 2D network's key names and modes. It shares no tensor with the 2D network.

    Raises `BackboneError`, `WeightsError`, `RecipeError`, `LiftError`.
    """
    check_positive(size=size)
    options = Options(recipe, (), Style(init, padding or "", conv, temporal_pool, time_embedding), dtype, strict=strict)
    if isinstance(model, str):
        changes = Changes.asked(in_channels, in_init, num_classes, head, seed)
        if constants:
            raise BackboneError("constants are for a module; for a name, let a function of your own build the network")
        source = Source(model, weights, seed, features, size, allow_nonfinite, changes, input)
        return inflate_loaded(*source.load(), options)
    factory = None if isinstance(model, nn.Module) else model
    model = model if isinstance(model, nn.Module) else _called(model)
    check_is_python(model)
    if in_channels is not None and input is not None and in_channels != input[0]:
        raise BackboneError(f"input={input} and in_channels={in_channels} contradict each other")
    if features:
        raise BackboneError("features=True is for timm/NAME: give timm.create_model(NAME, features_only=True) itself")
    asked = Changes.asked(in_channels, in_init, num_classes, head, seed)
    own = with_weights(model, weights, seed, shape_of(model, input, size, constants), headless=bool(asked.head))
    before = own
    own, changes = changed(own, asked, size, constants or {})
    shape = shape_of(own, input, size, constants)
    taken = (RGB if changes.channels else shape[0], *shape[1:])
    found = None if constants else recognised(before, weights, seed, taken, factory)
    origin = found.changed(changes) if found is not None else None
    options = replace(options, recipe=recipe_of(own) if recipe is None else recipe)
    return _inflated(own, origin, options, shape, constants or {}, changes if origin is None else UNCHANGED)


def _called(factory: Callable[[], nn.Module]) -> nn.Module:
    model = factory()
    if not isinstance(model, nn.Module):
        raise BackboneError(f"{factory!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def inflate_loaded(model: nn.Module, origin: Origin, options: Options = Options()) -> Network3d:
    """Inflate a backbone that `Source.load` returned."""
    return _inflated(model, origin, options, origin.input)


def _inflated(
    model: nn.Module,
    origin: Origin | None,
    options: Options,
    shape: tuple[int, int, int],
    constants: Mapping[str, Any] = MappingProxyType({}),
    changes: Changes = UNCHANGED,
) -> Network3d:
    recipe = options.recipe_for(origin.backbone.qualified if origin is not None else "")
    planned = plan(model, recipe, options.style, shape, of_a_user(origin), constants)
    with given(model, constants):
        check_by_itself(model, origin, shape)
    warn_of(planned.inflation, options.strict)
    warn_of_modes(model)
    if of_a_user(origin):
        warn_of_gradients(planned.reading.functions)
    network = planned.network(model)
    set_origin(network, origin)
    note(network, changes=changes)
    return fill(network, planned.inflation.state(cloned(model.state_dict(), options.dtype)))


def check_by_itself(model: nn.Module, origin: Origin | None, shape: tuple[int, int, int]) -> None:
    """Raise `LiftError` if a user's network mixes the images of a batch; for a library's network, `verify` says so."""
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    if of_a_user(origin) and (reason := mixing(model, images)):
        raise LiftError(reason)


@dataclass(frozen=True)
class Written:
    """The result of `inflate_to_file`."""

    path: Path
    origin: Origin
    inflation: Inflation
    parameters2d: int
    parameters3d: int
    sha256: str
    layout: str
    network: Callable[[], Network3d]
    """Build the 3D network, without its inflated weights."""


def inflate_to_file(
    source: Source, path: Path, options: Options = Options(), force: bool = False, progress: Progress = silent
) -> Written:
    """Inflate a backbone by name into a checkpoint at `path`, one tensor at a time.

    With a layout, the default recipe is that of the framework's network. Raises `LayoutError` if another recipe is
    given, `OutputError`, and the errors of `inflate`; then `path` is left as it was.
    """
    check_suffix(path, options.layout)
    source, options = _for_layout(source, options)
    progress(f"reading {source.name}")
    model, origin = source.load(progress is not silent)
    recipe = options.recipe_for(origin.backbone.qualified)
    planned = plan(model, recipe, options.style, origin.input, trial=of_a_user(origin))
    check_by_itself(model, origin, origin.input)
    warn_of(planned.inflation, options.strict)
    check_count(options.classes, origin.classes)
    document = Document.for_layout(planned.inflation, origin, options.layout, classes=options.classes)
    sha256, entries = write_inflated(path, document, model.state_dict(), options.dtype, force, progress)
    buffers = dict(model.named_buffers())
    parameters = [e for e in entries if e.key not in buffers and e.key.rpartition(".")[2] not in STATISTICS]
    counts = sum(p.numel() for p in model.parameters()), sum(math.prod(entry.shape) for entry in parameters)
    network = partial(planned.network, model)
    return Written(path, origin, planned.inflation, *counts, sha256, document.layout, network)


def _for_layout(source: Source, options: Options) -> tuple[Source, Options]:
    """Fill in what the layout's network needs and the user left open."""
    if not options.layout:
        return source, options
    target, style = framework_of(options.layout).target(source.name, split(options.layout)[1]), options.style
    embedding = target.style.time_embedding if style.time_embedding == "none" else style.time_embedding
    style = replace(style, padding=style.padding or target.style.padding, time_embedding=embedding)
    source = replace(source, changes=target.changed(source.changes))
    return source, replace(options, recipe=options.recipe or target.recipe, style=style)
