"""Inflate: a 2D network, by name or as an object, into a 3D one in memory or in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from i3dconvert import backbones, checkpoint
from i3dconvert.backbones import Changes, Origin
from i3dconvert.backbones.changes import RGB, default_in_init
from i3dconvert.errors import BackboneError, LayoutError
from i3dconvert.frameworks import framework, split
from i3dconvert.lift.network import Inflation, Network3d, Plan, cloned, fill, plan, style
from i3dconvert.recipes import Recipe, Rule, default_recipe, resolve
from i3dconvert.weights import Stream

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Of BatchNorms, no parameters."""

Recipes = str | Path | Recipe | None


def inflate(
    model: nn.Module | str,
    recipe: Recipes = None,
    init: str = "center",
    padding: str | None = None,
    *,
    conv: str = "3d",
    weights: str = "default",
    seed: int = 0,
    size: int | None = None,
    features: bool = False,
    allow_nonfinite: bool = False,
    dtype: torch.dtype | None = None,
    in_channels: int | None = None,
    in_init: str | None = None,
    num_classes: int | None = None,
    head: str = "",
    temporal_pool: str = "mean",
    time_embedding: str = "none",
) -> Network3d:
    """Inflate a 2D network: images `(N, C, H, W)` become clips `(N, C, T, H, W)`.

    Args:
        model: any module that traces, a backbone's name (`resnet50`, `timm/convnext_tiny`), or
            `path/to/module.py:factory`, a function of your own that returns one (its code is run).
        recipe: a preset's name, the path of a `.toml` file, or a `Recipe`; by default the backbone's own preset
            (`uniform` for a module).
        init: how the taps are filled, `center` or `mean` (see `i3dconvert.kernels`).
        padding: of time, in the convolutions, `zeros` or `replicate`; by default what keeps the network equal.
        conv: the form of temporal convolutions, `3d` or `2plus1d` (the 2D kernel, then a temporal one that starts as
            the identity; Tran et al., arXiv:1711.11248).
        weights: for a name, `default`, a pretrained set's name, `random` (with `seed`), or the path of a file.
        size: the height and width in pixels that the network is traced at, by default the backbone's own, or 224.
        features: for timm's names, the backbone without its head, which gives a list of feature maps.
        allow_nonfinite: for a name, take weights with NaN or infinite values, which are refused otherwise.
        dtype: of the floating-point tensors, by default as they are.
        in_channels: for a name, of the clip instead of 3; `in_init` (`sum`, `mean`, `repeat`) makes the first kernels
            from those over RGB, see `i3dconvert.backbones.changes`.
        num_classes: for a name, a fresh head of so many classes, drawn with `seed`.
        head: for a name, `none` leaves the head out, giving its features; `maps` the pool before it too, giving
            feature maps `(N, C, T', H', W')`.
        temporal_pool: scores and features are the `mean` over time, or one for each frame left, `(N, T', K)` (`none`).
        time_embedding: `zeros` adds a table over frames in front of the first attention that sees other frames, for it
            to tell their order by; `sinusoidal-learned` a learned projection of sinusoids, for clips of any length.
            Both start as zeros.

    Returns:
        An ordinary module with the 2D network's key names and modes, its tensors apart from the 2D network's.

    Raises `BackboneError`, `WeightsError`, `RecipeError`, `LiftError`.
    """
    if isinstance(model, str):
        changes = changes_of(in_channels, in_init, num_classes, head, seed)
        loaded = backbones.load(
            model, weights, seed, features=features, size=size, allow_nonfinite=allow_nonfinite, changes=changes
        )
        return inflate_loaded(
            *loaded,
            recipe,
            init,
            padding,
            conv=conv,
            dtype=dtype,
            temporal_pool=temporal_pool,
            time_embedding=time_embedding,
        )
    shape = (_channels(model), size or 224, size or 224)
    planned = plan(
        model, resolve(recipe or "uniform"), style(init, padding, conv, temporal_pool, time_embedding), shape
    )
    return _filled(planned, model, None, dtype)


def inflate_loaded(
    model: nn.Module,
    origin: Origin,
    recipe: Recipes = None,
    init: str = "center",
    padding: str | None = None,
    *,
    conv: str = "3d",
    dtype: torch.dtype | None = None,
    temporal_pool: str = "mean",
    time_embedding: str = "none",
) -> Network3d:
    """`inflate` for a backbone that `i3dconvert.backbones.load` has given."""
    planned = plan(
        model, _recipe(recipe, origin), style(init, padding, conv, temporal_pool, time_embedding), origin.input
    )
    return _filled(planned, model, origin, dtype)


def changes_of(in_channels: int | None, in_init: str | None, num_classes: int | None, head: str, seed: int) -> Changes:
    """What is changed of the 2D network, by what the user asked for; raises `BackboneError`."""
    channels = 0 if in_channels in (None, RGB) else int(in_channels or 0)
    if num_classes is not None and head:
        raise BackboneError("a network without a head has no --num-classes")
    if in_init is not None and not channels:
        raise BackboneError("--in-init is for another number of --in-channels than 3")
    how = (in_init or default_in_init(channels)) if channels else ""
    fresh = num_classes is not None
    return Changes(channels, how, "fresh" if fresh else head, num_classes or 0, seed if fresh else 0)


def _filled(planned: Plan, model: nn.Module, origin: Origin | None, dtype: torch.dtype | None) -> Network3d:
    network = planned.network(model)
    network.meta["origin"] = origin
    return fill(network, planned.inflation.state(cloned(model.state_dict(), dtype)))


def _recipe(recipe: Recipes, origin: Origin) -> Recipe:
    return default_recipe(origin.backbone.qualified) if recipe is None else resolve(recipe)


def _channels(model: nn.Module) -> int:
    return next((int(m.in_channels) for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


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
    backbone: str,
    path: Path,
    recipe: Recipes = None,
    rules: tuple[Rule, ...] = (),
    init: str = "center",
    padding: str | None = None,
    *,
    conv: str = "3d",
    weights: str = "default",
    seed: int = 0,
    features: bool = False,
    size: int | None = None,
    allow_nonfinite: bool = False,
    dtype: torch.dtype | None = None,
    layout: str = "",
    changes: Changes | None = None,
    temporal_pool: str = "mean",
    time_embedding: str = "none",
    force: bool = False,
    progress: bool = False,
) -> Written:
    """Inflate a backbone by name into a checkpoint at `path`, one tensor at a time; `rules` go on top of the recipe.

    `layout` is the framework whose names the tensors get, `NAME` or `NAME:NETWORK`; the recipe is then by default that
    of its network. Raises `LayoutError` for one that is another, what `inflate` raises, and `OutputError`; nothing is
    left at `path` then but what was there before.
    """
    if layout:
        known, network = framework(layout), split(layout)[1]
        target = known.target(backbone, network)
        recipe, padding = recipe or target.recipe, padding or target.padding
        changes = target.changed(changes or Changes())
        time_embedding = target.time_embedding if time_embedding == "none" else time_embedding
    model, origin = backbones.load(
        backbone,
        weights,
        seed,
        progress,
        features=features,
        size=size,
        allow_nonfinite=allow_nonfinite,
        changes=changes,
    )
    told = _recipe(recipe, origin).with_rules(rules)
    planned: Plan = plan(model, told, style(init, padding, conv, temporal_pool, time_embedding), origin.input)
    inflation = planned.inflation
    layout = layout and checkpoint.checked_layout(layout, origin, inflation)
    document = checkpoint.Document(inflation, origin, layout=layout)
    state = model.state_dict()
    made_of = document.target.made if document.target is not None else None
    if made_of is not None:
        if dtype is not None and dtype.itemsize < torch.float32.itemsize:
            raise LayoutError(f"{layout} is made of sums and products, which {dtype} can't hold; --dtype float32")
        made = cloned(made_of(state), dtype)
        entries = checkpoint.entries_in(made)
        sha256 = checkpoint.write(path, document, entries, lambda entry: [made[entry.key]], force)
    else:
        entries = checkpoint.entries_of(inflation, state, dtype)
        stream = Stream(mapped=origin.weights.kind == "file")

        def pieces(entry: checkpoint.Entry) -> Iterator[Tensor]:
            tensor2d = inflation.source(entry.key, state)
            yield from inflation.pieces(entry.key, tensor2d.to(entry.dtype))
            stream.passed(tensor2d)

        sha256 = checkpoint.write(path, document, entries, pieces, force)
    buffers = dict(model.named_buffers())
    parameters = [e for e in entries if e.key not in buffers and e.key.rpartition(".")[2] not in STATISTICS]
    return Written(
        path=path,
        origin=origin,
        inflation=inflation,
        parameters2d=sum(parameter.numel() for parameter in model.parameters()),
        parameters3d=sum(math.prod(entry.shape) for entry in parameters),
        sha256=sha256,
        layout=layout,
        network=partial(planned.network, model),
    )
