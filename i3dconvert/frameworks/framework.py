"""What is known of a framework: its networks, the recipes that they follow, and its names."""

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
from i3dconvert.errors import LayoutError
from i3dconvert.frameworks.keys import SAME, Rows, translated
from i3dconvert.lift.counterparts import full_name
from i3dconvert.lift.network import plan
from i3dconvert.lift.record import Inflation
from i3dconvert.recipes import Recipe, Temporal
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import State

Call = Callable[[Any], Any]


class Form(NamedTuple):
    """A tensor as a framework has it, of ours, and back."""

    theirs: Callable[[Tensor], Tensor]
    ours: Callable[[Tensor], Tensor]


CONVOLUTION = Form(lambda weight: weight[..., None, None, None], lambda weight: weight.flatten(1))
"""A linear layer's weight as that of a 1×1×1 convolution."""


@dataclass(frozen=True)
class Target:
    """A network of a framework."""

    name: str
    backbones: str
    """Globs of the 2D networks that it is the 3D form of, `a|b`."""
    recipe: Recipe
    build: Callable[[Origin], nn.Module]
    """Builds it, called with clips `(N, C, T, H, W)` it gives scores or features."""
    built_by: str
    """The same, as the framework's users write it: `{name}`, `{depth}`, `{classes}` and `{channels}` are filled in."""
    note: str = ""
    """What a user has to know of its weights."""
    keys: Rows = ()
    """Its names, where they are not those of the framework's other networks."""
    headless: bool = False
    """Whether it has no classifier."""
    others: str = ""
    """A glob of tensors of its own that have no part in the 2D network."""
    preprocessing: Preprocessing | None = None
    """What its own checkpoints were trained on, where that is not what the framework's others were."""
    structure: Changes = UNCHANGED
    """What makes the 2D network the one that this is the 3D form of."""
    package: str = ""
    """Where the class called as the target is, of which the 2D network has to be: one of the user's own, by a file."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """How the tensors that it stores otherwise than we do are converted, by a glob over our keys."""
    needs: tuple[str, ...] = ()
    """Globs of tensors that a file has if it is this network's, and not another's of the same kernels."""
    read_only: str = ""
    """Why no file is written for it, where none is."""
    padding: str = "zeros"
    """How its convolutions pad time."""
    time_embedding: str = "none"
    """Which one it has, of `--time-embedding`."""
    frames: int = 0
    """Frames in the clips that it accepts, if only one length."""
    files: Callable[[Origin], Mapping[str, Any]] | None = None
    """What stands beside the weights in a folder of its network, JSON by file name."""

    def changed(self, changes: Changes) -> Changes:
        """`changes` of the 2D network, and those that make it the one that this is the 3D form of."""
        return replace(changes, **{name: getattr(self.structure, name) for name in STRUCTURE})

    def takes(self, backbone: str) -> bool:
        """Whether it is the 3D form of the backbone called so (`resnet50`, `timm/resnet50`, `nets.py:unet`)."""
        if self.package or ".py:" in backbone:
            return bool(self.package) and ".py:" in backbone
        bare = backbone.rpartition("/")[2].partition(".")[0]
        return any(fnmatchcase(bare, glob) for glob in self.backbones.split("|"))


class Place(NamedTuple):
    """A tensor as a framework stores it; `key` is our name of it, None for one that we do not have, of zeros."""

    name: str
    shape: tuple[int, ...]
    key: str | None
    form: Form | None = None
    """How it is made of ours, where that is not by its name alone."""


@dataclass(frozen=True)
class Framework:
    """A framework's state dicts."""

    name: str
    source: str
    """Where its names and shapes are from."""
    targets: tuple[Target, ...]
    """The default one first."""
    keys: Rows = SAME
    suffix: str = ".safetensors"
    """What its own loader reads; empty where that is a folder, with `model.safetensors` and more in it."""
    nest: str | None = None
    """The key of the state dict in its `.pth` files."""
    sources: str = "torchvision"
    """Where 2D networks of those names come from."""
    named_by_backbone: bool = False
    """Whether its networks are called as the 2D ones, of which there are too many for a target each."""
    install: str = ""
    """How its networks are installed."""
    biased: Rows = ()
    """Convolutions that have a bias there and none here, and the BatchNorm that follows each, in its names."""
    inside: str = ""
    """What a larger network's checkpoint has in front of the names, or the end of that."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """How the tensors that it stores otherwise than we do are converted, by a glob over our keys."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """What its own checkpoints were trained on."""

    def network(self, name: str) -> Target:
        """The network called `name`; raises `LayoutError`."""
        found = next((target for target in self.targets if target.name == name), None)
        if found is None:
            choices = ", ".join(target.name for target in self.targets)
            raise LayoutError(f"{self.name} has no network {name!r}; known: {choices}")
        return found

    def target(self, backbone: str, name: str = "") -> Target:
        """The network called `name`, or by default the first, that is a 3D form of `backbone`; raises `LayoutError`."""
        fitting = [target for target in self.targets if target.takes(backbone)]
        if not fitting:
            choices = ", ".join(dict.fromkeys("|".join(target.backbones for target in self.targets).split("|")))
            raise LayoutError(f"{self.name} has no 3D form of {backbone}; it has those of {choices}")
        found = [target for target in fitting if name in ("", target.name)]
        choices = ", ".join(target.name for target in fitting)
        if not name and fitting[0].package:
            raise LayoutError(
                f"say which of {self.name}'s networks {backbone} is: --layout {self.name}:NAME, of {choices}"
            )
        if not found:
            raise LayoutError(f"{self.name} has no network {name!r} that is a 3D form of {backbone}; it has {choices}")
        return found[0]

    def places(self, target: Target, shapes: Mapping[str, tuple[int, ...]]) -> list[Place]:
        """Where the tensors of our keys and shapes go; raises `LayoutError` for one that has no place."""
        placed = []
        for key, shape in shapes.items():
            name = translated(target.keys or self.keys, key)
            if name is None:
                raise LayoutError(f"{self.name} has no place for {key}: its networks have no such layer")
            if (form := self.form(target, key)) is not None:
                shape = tuple(form.theirs(torch.empty(shape, device="meta")).shape)
            placed.append(Place(name, shape, key, form))
            if name.endswith(".weight") and translated(self.biased_in(target), name) is not None:
                placed.append(Place(f"{name.removesuffix('weight')}bias", shape[:1], None))
        return placed

    def form(self, target: Target, key: str) -> Form | None:
        """That of the tensor called `key` by us, if it has one of its own."""
        forms = {**self.forms, **target.forms}
        return next((form for glob, form in forms.items() if fnmatchcase(key, glob)), None)

    def unwrapped(self, state: Mapping[str, Tensor], where: str) -> State:
        """The tensors of the network in a larger one's checkpoint; raises `LayoutError` where there are others too."""
        within = [key for key in state if self.inside and self.inside in key]
        if not within:
            return dict(state)
        if others := [key for key in state if key not in within]:
            raise LayoutError(
                f"{where} holds more than an image network: {others[0]} and {len(others) - 1} more tensors; "
                f"keep {{key: tensor for key, tensor in state.items() if {self.inside!r} in key}}"
            )
        return {key.rpartition(self.inside)[2]: tensor for key, tensor in state.items()}

    def biased_in(self, target: Target) -> Rows:
        """`biased`, of a network that goes by the framework's own table of names."""
        return () if target.keys else self.biased

    def state(self, target: Target, state: Mapping[str, Tensor]) -> State:
        """Our tensors under the framework's names."""
        places = self.places(target, {key: tuple(tensor.shape) for key, tensor in state.items()})
        dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
        return {
            name: torch.zeros(shape, dtype=dtype) if key is None else form.theirs(state[key]) if form else state[key]
            for name, shape, key, form in places
        }

    def restored(self, target: Target, state: Mapping[str, Tensor], where: str) -> State:
        """The framework's tensors under our names; raises `LayoutError` for those that we have no name for.

        A bias in front of a BatchNorm is taken into its mean, which is the same in eval mode.
        """
        state = {name: tensor for name, tensor in state.items() if not fnmatchcase(name, target.others)}
        biased = self.biased_in(target)
        norms = {name: translated(biased, name) for name in state if name.endswith(".bias")}
        for name, norm in norms.items():
            mean = (norm or "").replace(".bias", ".running_mean")
            if mean in state:
                bias = state.pop(name)
                state[mean] = state[mean] - bias if bool(bias.any()) else state[mean]
        named = {name: translated(target.keys or self.keys, name, back=True) for name in state}
        if strange := [name for name, key in named.items() if key is None]:
            raise LayoutError(
                f"{where} is no checkpoint of {self.name}'s {target.name}: it has {', '.join(strange[:3])}"
                f"{f' and {len(strange) - 3} more' if len(strange) > 3 else ''}"
            )
        restored = {str(key): state[name] for name, key in named.items()}
        for key, tensor in restored.items():
            if (form := self.form(target, key)) is not None:
                restored[key] = form.ours(tensor)
        for key in [key for key in restored if key.endswith(".running_var")]:
            restored.setdefault(key.replace("running_var", "num_batches_tracked"), torch.tensor(0))
        return restored


def called(network: nn.Module, given: Call | None = None, gives: Call | None = None) -> nn.Module:
    """`network`, called with what `given` makes of a clip, and giving what `gives` makes of its output."""
    if given is not None:
        network.register_forward_pre_hook(lambda _, clip: given(*clip))
    if gives is not None:
        network.register_forward_hook(lambda _module, _given, output: gives(output))
    return network


def how_to_load(target: Target, origin: Origin) -> str:
    """How the framework's users build the network that the weights load into."""
    backbone = origin.backbone
    sizes = {"depth": backbone.depth, "classes": origin.classes, "channels": origin.input[0]}
    return target.built_by.format(name=backbone.model, **sizes)


def statements(target: Target, origin: Origin) -> list[str]:
    """The same as Python to paste, imports first; none where the framework's users write no Python for it."""
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
    """Raise `LayoutError`, naming the layer, where the inflation of `origin` is not what the network has."""
    where = f"{framework.name}'s {target.name}"
    if target.read_only:
        raise LayoutError(f"files of {where} are read and not written: {target.read_only}")
    if target.changed(origin.changes) != origin.changes:
        raise LayoutError(f"{where} is the 3D form of another 2D network: {target.note}; inflate with --layout")
    if target.headless and origin.changes.head != "none":
        raise LayoutError(f"{where} has no head; --no-head")
    model = origin.build()
    of_class = full_name(model).startswith(f"{target.package}.") and type(model).__name__ == target.name
    if target.package and not of_class:
        raise LayoutError(f"{origin.backbone.qualified} builds {full_name(model)}, not {target.package}.{target.name}")
    if inflation.style.conv != "3d" or inflation.style.padding != target.padding:
        how = {"zeros": "pad time with zeros", "replicate": "replicate the first and last frame"}[target.padding]
        raise LayoutError(f"{where} has full 3D convolutions that {how}; --conv 3d --padding {target.padding}")
    if inflation.style.time_embedding != target.time_embedding:
        raise LayoutError(f"{where} differs in the time embedding; --time-embedding {target.time_embedding}")
    if inflation.recipe == target.recipe:
        return
    if differing := {*inflation.recipe.pools} ^ {*target.recipe.pools}:
        raise LayoutError(f"{where} differs in the temporal pool after {', '.join({pool.after for pool in differing})}")
    found, wanted = (
        plan(model, recipe, inflation.style, inflation.input).inflation for recipe in (inflation.recipe, target.recipe)
    )
    for layer, other in zip(found.layers, wanted.layers, strict=True):
        if layer.temporal != other.temporal:
            raise LayoutError(f"{where} differs in {layer.name}: {_difference(layer.temporal, other.temporal)}")


def _difference(found: Temporal, wanted: Temporal) -> str:
    names = {"kernel": "kernel", "stride": "stride", "before": "padding", "after": "padding", "dilation": "dilation"}
    field = next((field for field in names if getattr(found, field) != getattr(wanted, field)), "kernel")
    return f"a temporal {names[field]} of {getattr(found, field)} where it has {getattr(wanted, field)}"
