"""The origin of a 2D network: everything needed to build it again, with its weights."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from i3dconvert import trust
from i3dconvert.backbones import user
from i3dconvert.backbones.changes import HEADLESS, RGB, UNCHANGED, Changes, with_head
from i3dconvert.backbones.library import Library
from i3dconvert.backbones.wrappers import unwrapped
from i3dconvert.errors import BackboneError, I3DError, WeightsError, first_line
from i3dconvert.names import HF, SOURCES, USER, qualified
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import NoInit, State, digest, fit, randomise, read_state


def of_a_user(origin: Origin | None) -> bool:
    """Return whether a network is a user's own: in memory, or built by a user's file."""
    return origin is None or origin.backbone.source == USER


def library(source: str) -> Library:
    """Import and return the library called `source` (`torchvision`, `timm`, `hf`, `user`)."""
    if source not in (*SOURCES, HF, USER):
        raise BackboneError(f"unknown library of networks {str(source)[:60]!r}")
    found: Library = importlib.import_module(f"i3dconvert.backbones.{source}").LIBRARY
    return found


@dataclass(frozen=True)
class Backbone:
    """A 2D network by name, with the arguments for its library's builder."""

    source: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    @property
    def of_files(self) -> bool:
        """Whether its name is a path on the user's disk."""
        return self.source == USER or (self.source == HF and bool(self.arguments.get("folder")))

    @classmethod
    def of(cls, source: str, name: str, weights: str | None = None, classes: int | None = None) -> Backbone:
        """Return a network as its library builds it for these weights and `classes` classes, by default its own."""
        return cls(source, name, library(source).arguments(name, weights, classes), library(source).version)

    @property
    def library(self) -> Library:
        """The library that it belongs to."""
        return library(self.source)

    def canonical(self, state: State, model: nn.Module, where: str) -> State:
        """Return the weights of a file, which `where` names, under the keys of `model`, which was built today."""
        state = unwrapped(state, model.state_dict(), where)
        return self.library.canonical(self.name, self.arguments, state, model)

    @property
    def model(self) -> str:
        """The name without paths and names of weights."""
        return self.name.rpartition("/")[2].partition(".")[0]

    @property
    def depth(self) -> int:
        """The first number in the name, such as 50 in `resnet50`."""
        return int((re.findall(r"\d+", self.model) or [0])[0])

    @property
    def qualified(self) -> str:
        """The name on the command line."""
        return qualified(self.source, self.name)


MEMORY = "memory"
KINDS = ("pretrained", "random", "file", MEMORY)


@dataclass(frozen=True)
class Weights:
    """The source of 2D weights: a `pretrained` set by `name`, `random` ones by `seed`, the `file` at `path`, or a
    module in `memory`, which can't be loaded again."""

    kind: str
    name: str | None = None
    seed: int = 0
    path: str | None = None
    sha256: str = ""

    def __str__(self) -> str:
        said = {"pretrained": self.name, "random": f"random (seed {self.seed})", "file": self.path}
        return str(said.get(self.kind, "of a module in memory"))


@dataclass(frozen=True)
class Origin:
    """Everything needed to build a 2D network again, with its weights."""

    backbone: Backbone
    weights: Weights
    preprocessing: Preprocessing
    input: tuple[int, int, int]
    classes: int
    changes: Changes = UNCHANGED
    """Applied after the weights were read and hashed."""

    def to_dict(self, beside: Path | None = None) -> dict[str, Any]:
        """Return plain data; paths of the user's files are written relative to the directory `beside`."""
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
        """Read the data written by `to_dict`."""
        weights = Weights(**document["weights"])
        if weights.kind not in KINDS:
            raise WeightsError(f"unknown kind of weights {str(weights.kind)[:60]!r}")
        if weights.path is not None and beside is not None:
            weights = replace(weights, path=str(beside / weights.path))
        backbone = Backbone(**document["backbone"])
        if backbone.of_files and beside is not None:
            backbone = replace(backbone, name=os.path.normpath(beside / backbone.name))
        channels, height, width = document["input"]
        changes = Changes.from_dict(document.get("changes", {}))
        return cls(
            backbone=backbone,
            weights=weights,
            preprocessing=Preprocessing.from_dict(document["preprocessing"]),
            input=(int(channels), int(height), int(width)),
            classes=int(document["classes"]),
            changes=changes,
        )

    def class_names(self) -> list[str]:
        """Return the class names; none if they are not the library's own."""
        if self.changes.head:
            return []
        names: list[str] = []
        with self._as_cached(), suppress(WeightsError):
            names = self.backbone.library.class_names(self.backbone.name, self.weights.name)
        return names if len(names) == self.classes else []

    def licence(self) -> str:
        """Return the licence of the 2D weights by its name on the Hugging Face hub; empty if unknown."""
        if self.weights.kind != "pretrained" or self.backbone.source == USER:
            return ""
        with self._as_cached(), suppress(WeightsError):
            return str(self.backbone.library.licence(self.backbone.name, str(self.weights.name)))
        return ""

    @contextmanager
    def _as_cached(self) -> Iterator[None]:
        """Read repositories that a file names from the hub's cache only; download nothing while active."""
        hub = self.backbone.library.hub
        if self.backbone.source != HF and not (hub and str(self.weights.name).startswith(hub)):
            yield
            return
        from huggingface_hub import constants

        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before

    def with_classes(self, classes: int) -> Origin:
        """Return the same network with a head for `classes` classes."""
        if self.changes.head == "fresh":
            return replace(self, changes=replace(self.changes, classes=classes), classes=classes)
        arguments = self.backbone.library.arguments(self.backbone.name, self.weights.name, classes)
        return replace(self, backbone=replace(self.backbone, arguments=arguments), classes=classes)

    def build(self) -> nn.Module:
        """Build the 2D network in eval mode, with its parameters not yet set.

        Raises `CheckpointError` if that would run a file that the user has neither run nor trusted before.
        """
        if self.backbone.source == USER:
            trust.check(user.split(self.backbone.name)[0])
        return self.changes.apply(build(self.backbone))

    def changed(self, changes: Changes) -> Origin:
        """Return the origin with changes to the 2D network, which has none yet."""
        shape, preprocessing = self.input, self.preprocessing
        if changes.channels:
            shape, preprocessing = (changes.channels, *shape[1:]), preprocessing.with_channels(changes.channels)
        classes = 0 if changes.head in HEADLESS else changes.classes or self.classes
        return replace(self, preprocessing=preprocessing, input=shape, classes=classes, changes=changes)

    def unchanged(self) -> Origin:
        """Return the 2D network as its weights were trained."""
        before = self.changes.before
        channels = RGB if self.changes.channels and not before.channels else self.input[0]
        return replace(self, changes=before, input=(channels, *self.input[1:]))

    def load(self, reference: Path | None = None, progress: bool = False) -> nn.Module:
        """Return the 2D network with its weights, from `reference` if given, else from where they first came from.

        Raises `WeightsError` if they can't be read, or do not match the recorded hash.
        """
        if self.changes != self.changes.before:
            return self.changes.apply(self.unchanged().load(reference, progress))
        model = self.build()
        weights = self.weights if reference is None else Weights("file", path=str(reference))
        with self._as_cached():
            state = state_of(self.backbone, weights, progress)
        if state is None:
            randomise(model, weights.seed, self.input)
        else:
            where = weights.path or f"{self.backbone.qualified} {weights}"
            fit(model, with_head(self.backbone.canonical(state, model, where), model), where)
        found = digest(model.state_dict())
        if self.weights.sha256 and found != self.weights.sha256:
            if weights.name == user.AS_BUILT:
                raise WeightsError(
                    f"{self.backbone.qualified} builds other weights than those that were inflated: let it load a "
                    "file or call torch.manual_seed, and inflate it again, or give its state dict with --reference PATH"
                )
            raise WeightsError(
                f"the weights of {self.backbone.qualified} from {weights} are not those that were inflated "
                f"(SHA-256 {found[:12]}…, recorded {self.weights.sha256[:12]}…); --reference PATH names the right file"
            )
        return model


def build(backbone: Backbone) -> nn.Module:
    """Build a backbone's 2D network in eval mode; its parameters are uninitialised.

    Raises `BackboneError`, also for arguments that our files never contain.
    """
    backbone.library.check(backbone.name, backbone.arguments)
    try:
        with NoInit():
            return backbone.library.build(backbone.name, backbone.arguments).eval()
    except (I3DError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - names and arguments may be a stranger's, or another version's
        raise BackboneError(f"{backbone.source} can't build {backbone.name!r}: {first_line(error)}") from None


def state_of(backbone: Backbone, weights: Weights, progress: bool) -> State | None:
    """Return the state dict that `weights` names; None for random ones, which are drawn into the network itself.

    Raises `WeightsError` if they can't be read.
    """
    if weights.kind == MEMORY:
        raise WeightsError(
            f"{backbone.qualified} was inflated from a module in memory; pass a file of its state dict with "
            "--reference PATH"
        )
    if weights.kind == "random":
        return None
    if weights.kind == "pretrained":
        return backbone.library.pretrained(backbone.name, str(weights.name), progress)
    return read_state(Path(str(weights.path)))
