"""A name and weights → a 2D network, and where it came from."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from i3dconvert import trust
from i3dconvert.backbones.changes import HEADLESS, RGB, UNCHANGED, Changes
from i3dconvert.errors import BackboneError, WeightsError
from i3dconvert.names import HF, USER, names, parse, qualified_names
from i3dconvert.preprocessing import Preprocessing
from i3dconvert.weights import NoInit, State, classes_in, digest, fit, inspect, randomise, read_state

__all__ = ["Backbone", "Changes", "Origin", "Weights", "build", "load", "names", "parse", "qualified_names"]

IMAGENET_CLASSES = 1000


def library(source: str) -> Any:
    """The module of this package that knows `source` (`torchvision`, `timm`, `hf`, `user`)."""
    return importlib.import_module(f"i3dconvert.backbones.{source}")


@dataclass(frozen=True)
class Backbone:
    """A 2D network by name, and the arguments that its library's builder is called with."""

    source: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    @property
    def of_files(self) -> bool:
        """Whether its name is a path of the user's."""
        return self.source == USER or (self.source == HF and bool(self.arguments.get("folder")))

    @property
    def qualified(self) -> str:
        """The name as the command line takes it."""
        return f"{self.source}/{self.name}" if self.source in ("timm", HF) else self.name


@dataclass(frozen=True)
class Weights:
    """Where 2D weights come from: a `pretrained` set by `name`, `random` ones by `seed`, or the `file` at `path`."""

    kind: str
    name: str | None = None
    seed: int = 0
    path: str | None = None
    sha256: str = ""

    def __str__(self) -> str:
        return {"pretrained": str(self.name), "random": f"random (seed {self.seed})", "file": str(self.path)}[self.kind]


@dataclass(frozen=True)
class Origin:
    """All that is needed to build a 2D network again, with its weights."""

    backbone: Backbone
    weights: Weights
    preprocessing: Preprocessing
    input: tuple[int, int, int]
    classes: int
    changes: Changes = UNCHANGED
    """Made after the weights were read, and hashed."""

    def to_dict(self, beside: Path | None = None) -> dict[str, Any]:
        """Plain data; paths of the user's files are written relative to the directory `beside`."""
        weights = {key: value for key, value in vars(self.weights).items() if value is not None}
        if self.weights.kind != "random":
            weights.pop("seed")
        if self.weights.path is not None and beside is not None:
            weights["path"] = os.path.relpath(self.weights.path, beside)
        backbone = dict(vars(self.backbone)) | {"arguments": dict(self.backbone.arguments)}
        if self.backbone.of_files and beside is not None:
            backbone["name"] = os.path.relpath(self.backbone.name, beside)
        document = {
            "backbone": backbone,
            "weights": weights,
            "preprocessing": self.preprocessing.to_dict(),
            "input": list(self.input),
            "classes": self.classes,
        }
        return document | ({"changes": vars(self.changes)} if self.changes != UNCHANGED else {})

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], beside: Path | None = None) -> Origin:
        """Read what `to_dict` wrote."""
        weights = Weights(**document["weights"])
        if weights.path is not None and beside is not None:
            weights = replace(weights, path=str(beside / weights.path))
        backbone = Backbone(**document["backbone"])
        if backbone.of_files and beside is not None:
            backbone = replace(backbone, name=os.path.normpath(beside / backbone.name))
        channels, height, width = document["input"]
        changes = Changes(**document.get("changes", {}))
        changes.check()
        return cls(
            backbone=backbone,
            weights=weights,
            preprocessing=Preprocessing.from_dict(document["preprocessing"]),
            input=(int(channels), int(height), int(width)),
            classes=int(document["classes"]),
            changes=changes,
        )

    def class_names(self) -> list[str]:
        """The names of the classes, or none when they are not the library's own."""
        if self.changes.head:
            return []
        known = library(self.backbone.source).class_names(self.backbone.name, self.weights.name)
        return known if len(known) == self.classes else []

    def licence(self) -> str:
        """Of the 2D weights, by the Hugging Face hub's word for it; empty where it is not known."""
        if self.weights.kind != "pretrained" or self.backbone.source == USER:
            return ""
        return str(library(self.backbone.source).licence(self.backbone.name, str(self.weights.name)))

    def with_classes(self, classes: int) -> Origin:
        """The same network with a head for so many classes."""
        if self.changes.head == "fresh":
            return replace(self, changes=replace(self.changes, classes=classes), classes=classes)
        arguments = library(self.backbone.source).arguments(self.backbone.name, self.weights.name, classes)
        return replace(self, backbone=replace(self.backbone, arguments=arguments), classes=classes)

    def build(self) -> nn.Module:
        """The 2D network in eval mode, its parameters not yet set.

        Raises `CheckpointError` where that would run a file that the user has not run or trusted before.
        """
        if self.backbone.source == USER:
            trust.check(library(USER).split(self.backbone.name)[0])
        return self.changes.apply(build(self.backbone))

    def unchanged(self) -> Origin:
        """The 2D network as its weights were trained."""
        channels = RGB if self.changes.channels else self.input[0]
        return replace(self, changes=UNCHANGED, input=(channels, *self.input[1:]))

    def load(self, reference: Path | None = None, progress: bool = False) -> nn.Module:
        """The 2D network with its weights, from `reference` if given, else from where they came the first time.

        Raises `WeightsError` when they are not to be had, or are not the ones of the recorded hash.
        """
        if self.changes != UNCHANGED:
            return self.changes.apply(self.unchanged().load(reference, progress))
        model = self.build()
        weights = self.weights if reference is None else Weights("file", path=str(reference))
        state = _state(self.backbone, weights, progress)
        if state is None:
            randomise(model, weights.seed, self.input)
        else:
            state = _canonical(self.backbone, state, model)
            fit(model, state, weights.path or f"{self.backbone.qualified} {weights}")
        found = digest(model.state_dict())
        if self.weights.sha256 and found != self.weights.sha256:
            raise WeightsError(
                f"the weights of {self.backbone.qualified} from {weights} are not those that were inflated "
                f"(SHA-256 {found[:12]}…, recorded {self.weights.sha256[:12]}…); --reference PATH names the right file"
            )
        return model


def build(backbone: Backbone) -> nn.Module:
    """The 2D network of a backbone in eval mode; its parameters hold whatever was in memory."""
    with NoInit():
        model: nn.Module = library(backbone.source).build(backbone.name, backbone.arguments)
    return model.eval()


def load(
    text: str,
    weights: str = "default",
    seed: int = 0,
    progress: bool = False,
    *,
    features: bool = False,
    size: int | None = None,
    allow_nonfinite: bool = False,
    changes: Changes | None = None,
) -> tuple[nn.Module, Origin]:
    """A 2D network by name, with `weights`: `default`, a pretrained set's name, `random`, or the path of a file.

    With `features`, a timm backbone without its head, which gives a list of feature maps. `size` is the height and
    width that the network is traced at, by default the backbone's own; `changes` are made to the input and the head
    once the weights are there. Code of the user's own, `path/to/module.py:factory`, is run.

    Raises `BackboneError` for an unknown name or changes that can't be made, `WeightsError` for weights that are not to
    be had, do not fit, or are not all finite (unless `allow_nonfinite`).
    """
    changes = changes or UNCHANGED
    changes.check()
    source, name = parse(text)
    known = library(source)
    if features and source != "timm":
        raise BackboneError(f"feature maps are given by timm's backbones; {text} is none (timm/NAME)")
    if source == USER:
        trust.remember(known.split(name)[0])
    if source == "timm" and "." in name and weights == "default":
        name, _, weights = name.partition(".")
    chosen = _choose(known, name, weights, seed)
    arguments = known.arguments(name, chosen.name, None) | ({"features_only": True} if features else {})
    backbone = Backbone(source, name, arguments, known.version)
    state = _state(backbone, chosen, progress)
    model = build(backbone)
    classes = 0 if features else _classes(model) or IMAGENET_CLASSES
    if state is not None:
        state = _canonical(backbone, state, model)
        if (count := classes_in(state, model, classes)) is not None:
            backbone = replace(backbone, arguments=known.arguments(name, chosen.name, count))
            model, classes = build(backbone), count
    preprocessing = known.preprocessing(name, chosen.name)
    if (changes.channels or changes.same) and backbone.arguments.get("transform_input"):
        # The network's own step from ImageNet's normalisation of RGB to this one.
        preprocessing = replace(preprocessing, mean=(0.5,) * RGB, std=(0.5,) * RGB)
        backbone = replace(backbone, arguments=dict(backbone.arguments) | {"transform_input": False})
        model = build(backbone)
    size = size or known.image_size(name, chosen.name, backbone.arguments)
    shape = (known.channels(name, model), size, size)
    if state is None:
        randomise(model, seed, shape)
        sha256 = digest(model.state_dict())
    else:
        where = chosen.path or f"{backbone.qualified} {chosen}"
        _fit(model, state, where, backbone)
        sha256 = inspect(model.state_dict(), where, allow_nonfinite, mapped=chosen.kind == "file")
    chosen = replace(chosen, sha256=sha256)
    if changes.channels:
        shape, preprocessing = (changes.channels, size, size), preprocessing.with_channels(changes.channels)
    classes = 0 if changes.head in HEADLESS else changes.classes or classes
    return changes.apply(model), Origin(backbone, chosen, preprocessing, shape, classes, changes)


def _fit(model: nn.Module, state: State, where: str, backbone: Backbone) -> None:
    try:
        fit(model, state, where)
    except WeightsError as error:
        from i3dconvert.backbones.likely import likely

        other = likely(state, backbone.source, backbone.name)
        hint = f"; they look like those of {other}: i3dconvert inflate {other} -w {where}"
        hint = hint if other not in (None, backbone.qualified) else ""
        raise WeightsError(f"{error}{hint}") from None


def _canonical(backbone: Backbone, state: State, model: nn.Module) -> State:
    """The keys of a weight file as the network built today has them."""
    renamed: State = library(backbone.source).canonical(backbone.name, backbone.arguments, state, model)
    return renamed


def _classes(model: nn.Module) -> int:
    """The outputs of the last linear or convolutional layer: the head."""
    heads = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    head = heads[-1] if heads else None
    return int(head.out_features if isinstance(head, nn.Linear) else head.out_channels) if head is not None else 0


def _choose(known: Any, name: str, weights: str, seed: int) -> Weights:
    if weights == "random":
        return Weights("random", seed=seed)
    path = Path(weights)
    if weights.startswith("hf-hub:") and hasattr(known, "HUB"):
        return Weights("pretrained", name=weights)
    if path.suffix in (".pth", ".pt", ".safetensors", ".bin", ".json") or "/" in weights:
        return Weights("file", name=known.recognise(name, path.name), path=str(path))
    offered = known.offered(name)
    if weights == "default" and offered:
        return Weights("pretrained", name=offered[0])
    if weights in offered:
        return Weights("pretrained", name=weights)
    sets = f"on offer: {', '.join(offered)}" if offered else "there are no pretrained weights for it"
    wanted = "" if weights == "default" else f" weights {weights!r};"
    raise WeightsError(f"{name} has no{wanted or ' default weights;'} {sets}; or -w PATH, -w random")


def _state(backbone: Backbone, weights: Weights, progress: bool) -> State | None:
    """The state dict that `weights` names; None for random ones, which are drawn into the network itself."""
    known = library(backbone.source)
    if weights.kind == "random":
        return None
    if weights.kind == "pretrained":
        state: State = known.pretrained(backbone.name, weights.name, progress)
        return state
    return read_state(Path(str(weights.path)))
