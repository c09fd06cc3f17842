"""What is asked of a library of 2D networks; what most of them answer alike is answered here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from i3dconvert.errors import BackboneError
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import State

_ADDRESSES = ("hf-hub:", "hf_hub:", "local-dir:")
_MOST = 2**15
"""The most classes, pixels and the like that a file may ask for."""


def first_channels(model: nn.Module) -> int:
    """The input channels of its first convolution; 3 where there is none."""
    return next((int(m.in_channels) for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


class Library(ABC):
    """A library's networks, by name. `weights` is a pretrained set's name, or None."""

    version = ""
    takes: Mapping[str, type] = {"num_classes": int}
    """The builder's arguments that a file may hold, and their types; none of them is a path or an address."""
    hub = ""
    """Before the name of a repository on the Hugging Face hub, where weights come from one."""

    @abstractmethod
    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """The network, uninitialised weights included; raises `BackboneError`."""

    def check(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Raise `BackboneError` where a name and arguments, maybe a stranger's, are none that a file of ours has."""
        if name.startswith(_ADDRESSES):
            raise BackboneError(f"{name} would be fetched; a file of ours names a network of a library")
        for key, value in arguments.items():
            kind = self.takes.get(key)
            if kind is None or type(value) is not kind or (type(value) is int and not 0 <= value <= _MOST):
                raise BackboneError(f"a network with {key}={repr(value)[:60]} is asked for, which no file of ours has")

    def arguments(self, name: str, weights: str | None, classes: int | None) -> dict[str, Any]:
        """The builder's arguments for these weights and this number of classes."""
        return {} if classes is None else {"num_classes": classes}

    @abstractmethod
    def offered(self, name: str) -> list[str]:
        """The names of the pretrained sets, the default one first."""

    def parameters(self, name: str) -> int | None:
        """How many parameters it has; None where building it is the only way to a count."""
        return None

    def recognise(self, name: str, file_name: str) -> str | None:
        """The pretrained set that a file of this name is."""
        return None

    @abstractmethod
    def pretrained(self, name: str, weights: str, progress: bool) -> State:
        """The pretrained set's state dict, from a cache or downloaded into it; raises `WeightsError`."""

    def canonical(self, name: str, arguments: Mapping[str, Any], state: State, model: nn.Module) -> State:
        """The keys of a weight file as the network built today has them."""
        return state

    def preprocessing(self, name: str, weights: str | None) -> Preprocessing:
        """That of the pretrained set, or of the default one."""
        return Preprocessing()

    def image_size(self, name: str, weights: str | None, arguments: Mapping[str, Any]) -> int:
        """Height and width that the network is traced at."""
        return 224

    def channels(self, name: str, model: nn.Module, size: int) -> int:
        """The channels of the image that the network takes, of `size` pixels in height and width."""
        return first_channels(model)

    def licence(self, name: str, weights: str) -> str:
        """Return the licence of a pretrained set by its name on the Hugging Face hub; empty if unknown."""
        return ""

    def class_names(self, name: str, weights: str | None) -> list[str]:
        """Return the names of the classes that the weights were trained on; none if unknown."""
        return []
