"""The description of a framework: its networks, their recipes, and its tensor names."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from i3dconvert.backbones import Changes, Origin
from i3dconvert.backbones.changes import STRUCTURE, UNCHANGED
from i3dconvert.errors import LayoutError, listed
from i3dconvert.frameworks.keys import SAME, Rows, translated
from i3dconvert.lift.counterparts import full_name
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.planning import plan
from i3dconvert.lift.record import Inflation
from i3dconvert.recipes import Recipe, Temporal
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import State, shapes_of

Call = Callable[[Any], Any]


class Conversion(NamedTuple):
    """The conversion of our tensor to a framework's, and back."""

    theirs: Callable[[Tensor], Tensor]
    ours: Callable[[Tensor], Tensor]


CONVOLUTION = Conversion(lambda weight: weight[..., None, None, None], lambda weight: weight.flatten(1))
"""A linear layer's weight as the weight of a 1×1×1 convolution."""


@dataclass(frozen=True)
class Format:
    """How files store a network, and the pictures that it was trained with."""

    keys: Rows = SAME
    """Our tensor names and theirs."""
    conversions: Mapping[str, Conversion] = field(default_factory=dict)
    """Conversions of the tensors that are stored differently, by a glob over our keys."""
    biased: Rows = ()
    """Convolutions that have a bias where ours have none, and the BatchNorm after each, in their names."""
    others: str = ""
    """A glob of their tensors that have no counterpart in the 2D network."""
    needs: tuple[str, ...] = ()
    """Globs of tensors that identify a file of this network among those with equal kernels."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def conversion(self, key: str) -> Conversion | None:
        """Return the conversion of the tensor that we call `key`, if it has one."""
        return next((one for glob, one in self.conversions.items() if fnmatchcase(key, glob)), None)


ZEROS = Style(padding="zeros")


@dataclass(frozen=True)
class Target:
    """A network of a framework."""

    name: str
    backbones: str
    """Globs of the 2D networks whose 3D form it is, `a|b`."""
    recipe: Recipe
    build: Callable[[Origin], nn.Module]
    """Builds the network, which maps clips `(N, C, T, H, W)` to scores or features."""
    built_by: str
    """The same in the framework's own words, with the fields `{name}`, `{depth}`, `{classes}` and `{channels}`."""
    note: str = ""
    """A note for users about its weights."""
    format: Format | None = None
    """Its files, if they differ from those of the framework's other networks."""
    headless: bool = False
    """Whether it has no classifier."""
    structure: Changes = UNCHANGED
    """Changes that turn the 2D network into the one whose 3D form this is."""
    package: str = ""
    """The package with a class of the target's name, to which a user's own 2D network has to belong."""
    read_only: str = ""
    """The reason if files are only read for it; empty if they are also written."""
    style: Style = ZEROS
    """The padding of time in its convolutions, and its time embedding."""
    frames: int = 0
    """Frames in the clips that it accepts, if only one length."""
    files: Callable[[Origin], Mapping[str, Any]] | None = None
    """Returns further files in a folder of its network, as JSON by file name."""

    def changed(self, changes: Changes) -> Changes:
        """Return `changes` together with those that turn the 2D network into the one whose 3D form this is."""
        return replace(changes, **{name: getattr(self.structure, name) for name in STRUCTURE})

    def takes(self, backbone: str) -> bool:
        """Return whether it is the 3D form of `backbone` (`resnet50`, `timm/resnet50`, `nets.py:unet`)."""
        if self.package or ".py:" in backbone:
            return bool(self.package) and ".py:" in backbone
        bare = backbone.rpartition("/")[2].partition(".")[0]
        return any(fnmatchcase(bare, glob) for glob in self.backbones.split("|"))


class Place(NamedTuple):
    """A tensor as a framework stores it; `key` is our name, None for a tensor of zeros that we do not have."""

    name: str
    shape: tuple[int, ...]
    key: str | None
    conversion: Conversion | None = None
    """The conversion from ours; None if only the name differs."""

    def theirs(self, ours: Tensor) -> Tensor:
        """Return our tensor, or a part of it along its first axis, as the framework stores it."""
        return ours if self.conversion is None else self.conversion.theirs(ours)


@dataclass(frozen=True)
class Framework:
    """The state dicts of a framework."""

    name: str
    source: str
    """The source of its names and shapes."""
    targets: tuple[Target, ...]
    """Its networks, the default first."""
    format: Format = Format()
    """The files of its networks that have none of their own."""
    suffix: str = ".safetensors"
    """The suffix that its loader expects; empty for a folder that contains `model.safetensors`."""
    nest: str | None = None
    """The key of the state dict in its `.pth` files."""
    sources: str = "torchvision"
    """The library that its 2D networks come from."""
    named_by_backbone: bool = False
    """Whether its networks are named like the 2D ones, which are too many for a target each."""
    install: str = ""
    """Instructions to install its networks."""
    inside: str = ""
    """The prefix of the names in a larger network's checkpoint, or the end of that prefix."""

    def network(self, name: str) -> Target:
        """Return the network called `name`; raises `LayoutError`."""
        found = next((target for target in self.targets if target.name == name), None)
        if found is None:
            choices = ", ".join(target.name for target in self.targets)
            raise LayoutError(f"{self.name} has no network {name!r}; known: {choices}")
        return found

    def target(self, backbone: str, name: str = "") -> Target:
        """Return the 3D form of `backbone` called `name`, by default the first; raises `LayoutError`."""
        fitting = [target for target in self.targets if target.takes(backbone)]
        if not fitting:
            choices = ", ".join(dict.fromkeys("|".join(target.backbones for target in self.targets).split("|")))
            raise LayoutError(f"{self.name} has no network for {backbone}, only for {choices}")
        found = [target for target in fitting if name in ("", target.name)]
        choices = ", ".join(target.name for target in fitting)
        if not name and fitting[0].package:
            raise LayoutError(
                f"choose the network of {self.name} for {backbone}: --layout {self.name}:NAME ({choices})"
            )
        if not found:
            raise LayoutError(f"{self.name} has no network {name!r} that is a 3D form of {backbone}; it has {choices}")
        return found[0]

    def places(self, target: Target, shapes: Mapping[str, tuple[int, ...]]) -> list[Place]:
        """Return where the tensors with our keys and shapes go; raises `LayoutError` for one without a place."""
        placed, form = [], self.format_of(target)
        for key, shape in shapes.items():
            name = translated(form.keys, key)
            if name is None:
                raise LayoutError(f"{self.name} can't store {key}: its networks do not have this layer")
            if (conversion := form.conversion(key)) is not None:
                shape = tuple(conversion.theirs(torch.empty(shape, device="meta")).shape)
            placed.append(Place(name, shape, key, conversion))
            if name.endswith(".weight") and translated(form.biased, name) is not None:
                placed.append(Place(f"{name.removesuffix('weight')}bias", shape[:1], None))
        return placed

    def format_of(self, target: Target) -> Format:
        """Return how files store a network: in its own way, or in that of the framework's others."""
        return target.format or self.format

    def unwrapped(self, state: Mapping[str, Tensor], where: str) -> State:
        """Return the network's tensors from a larger network's checkpoint; raises `LayoutError` for others."""
        within = [key for key in state if self.inside and self.inside in key]
        if not within:
            return dict(state)
        if others := [key for key in state if key not in within]:
            raise LayoutError(
                f"{where} contains more than an image network: {others[0]} and {len(others) - 1} more tensors; "
                f"keep {{key: tensor for key, tensor in state.items() if {self.inside!r} in key}}"
            )
        return {key.rpartition(self.inside)[2]: tensor for key, tensor in state.items()}

    def state(self, target: Target, state: Mapping[str, Tensor]) -> State:
        """Return our tensors under the framework's names."""
        dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
        return {
            place.name: torch.zeros(place.shape, dtype=dtype) if place.key is None else place.theirs(state[place.key])
            for place in self.places(target, shapes_of(state))
        }

    def restored(self, target: Target, state: Mapping[str, Tensor], where: str) -> State:
        """Return the framework's tensors under our names; raises `LayoutError` for tensors that we have no name for.

        A bias before a BatchNorm is subtracted from its mean, which is equal in eval mode.
        """
        form = self.format_of(target)
        state = {name: tensor for name, tensor in state.items() if not fnmatchcase(name, form.others)}
        norms = {name: translated(form.biased, name) for name in state if name.endswith(".bias")}
        for name, norm in norms.items():
            mean = (norm or "").replace(".bias", ".running_mean")
            if mean in state:
                bias = state.pop(name)
                state[mean] = state[mean] - bias if bool(bias.any()) else state[mean]
        named = {name: translated(form.keys, name, back=True) for name in state}
        if strange := [name for name, key in named.items() if key is None]:
            raise LayoutError(f"{where} is not a checkpoint of {self.name}'s {target.name}: it has {listed(strange)}")
        restored = {str(key): state[name] for name, key in named.items()}
        for key, tensor in restored.items():
            if (conversion := form.conversion(key)) is not None:
                restored[key] = conversion.ours(tensor)
        for key in [key for key in restored if key.endswith(".running_var")]:
            restored.setdefault(key.replace("running_var", "num_batches_tracked"), torch.tensor(0))
        return restored


def called(network: nn.Module, given: Call | None = None, gives: Call | None = None) -> nn.Module:
    """Make `network` apply `given` to its input clip and `gives` to its output."""
    if given is not None:
        network.register_forward_pre_hook(lambda _, clip: given(*clip))
    if gives is not None:
        network.register_forward_hook(lambda _module, _given, output: gives(output))
    return network


def how_to_load(target: Target, origin: Origin) -> str:
    """Return how the framework's users build the network that the weights load into."""
    backbone = origin.backbone
    sizes = {"depth": backbone.depth, "classes": origin.classes, "channels": origin.input[0]}
    return target.built_by.format(name=backbone.model, **sizes)


def statements(target: Target, origin: Origin) -> list[str]:
    """Return the same as Python statements, imports first; none if the framework's users write no Python."""
    try:
        expression = ast.parse(built_by := how_to_load(target, origin), mode="eval").body
    except SyntaxError:
        return []
    if not isinstance(expression, ast.Call):
        return []
    names = [ast.unparse(node).split(".")[:-1] for node in ast.walk(expression) if isinstance(node, ast.Attribute)]
    modules = {".".join(takewhile(str.islower, name)) for name in names}
    outermost = [name for name in modules if not any(other.startswith(f"{name}.") for other in modules)]
    return [f"import {', '.join(sorted(outermost))}", f"network = {built_by}"]


def check_fits(framework: Framework, target: Target, inflation: Inflation, origin: Origin) -> None:
    """Raise `LayoutError`, which names the layer, if the inflation of `origin` differs from the framework's network."""
    where = f"{framework.name}'s {target.name}"
    if target.read_only:
        raise LayoutError(f"files for {where} can be read but not written: {target.read_only}")
    if target.changed(origin.changes) != origin.changes:
        raise LayoutError(f"{where} is the 3D form of another 2D network: {target.note}; inflate with --layout")
    if target.headless and origin.changes.head != "none":
        raise LayoutError(f"{where} has no head; use --no-head")
    model = origin.build()
    of_class = full_name(model).startswith(f"{target.package}.") and type(model).__name__ == target.name
    if target.package and not of_class:
        raise LayoutError(f"{origin.backbone.qualified} builds {full_name(model)}, not {target.package}.{target.name}")
    found, wanted = inflation.style, target.style
    if found.conv != "3d" or found.padding != wanted.padding:
        how = {"zeros": "pad time with zeros", "replicate": "replicate the first and last frame"}[wanted.padding]
        raise LayoutError(f"{where} has full 3D convolutions that {how}; use --conv 3d --padding {wanted.padding}")
    if found.time_embedding != wanted.time_embedding:
        raise LayoutError(f"{where} differs in the time embedding; use --time-embedding {wanted.time_embedding}")
    if inflation.recipe == target.recipe:
        return
    if differing := {*inflation.recipe.pools} ^ {*target.recipe.pools}:
        raise LayoutError(f"{where} differs in the temporal pool after {', '.join({pool.after for pool in differing})}")
    ours, theirs = (
        plan(model, recipe, inflation.style, inflation.input).inflation for recipe in (inflation.recipe, target.recipe)
    )
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        if layer.temporal != other.temporal:
            raise LayoutError(f"{where} differs in {layer.name}: {_difference(layer.temporal, other.temporal)}")


def _difference(found: Temporal, wanted: Temporal) -> str:
    names = {"kernel": "kernel", "stride": "stride", "before": "padding", "after": "padding", "dilation": "dilation"}
    field = next((field for field in names if getattr(found, field) != getattr(wanted, field)), "kernel")
    return f"a temporal {names[field]} of {getattr(found, field)} instead of {getattr(wanted, field)}"
