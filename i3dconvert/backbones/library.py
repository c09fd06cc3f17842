"""The interface to a library of 2D networks, with the answers that most of them share."""

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
    """Return the input channels of the first convolution, transposed ones included; 3 if there is none."""
    return next((int(m.in_channels) for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)), 3)


class Library(ABC):
    """The networks of a library, by name. `weights` is the name of a pretrained set, or None."""

    version = ""
    takes: Mapping[str, type] = {"num_classes": int}
    """The builder's arguments that a file may contain, and their types. None is a path or an address."""
    hub = ""
    """The prefix of repositories on the Hugging Face hub, if weights can come from there."""

    @abstractmethod
    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build the network with uninitialised weights; raises `BackboneError`."""

    def check(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Raise `BackboneError` for a name or arguments, possibly a stranger's, that our files never contain."""
        if name.startswith(_ADDRESSES):
            raise BackboneError(f"{name} would be downloaded; a checkpoint must name a network of an installed library")
        for key, value in arguments.items():
            kind = self.takes.get(key)
            if kind is None or type(value) is not kind or (type(value) is int and not 0 <= value <= _MOST):
                raise BackboneError(f"the file asks for {key}={repr(value)[:60]}, which i3dconvert never writes")

    def arguments(self, name: str, weights: str | None, classes: int | None) -> dict[str, Any]:
        """Return the builder's arguments for these weights and this number of classes."""
        return {} if classes is None else {"num_classes": classes}

    @abstractmethod
    def offered(self, name: str) -> list[str]:
        """Return the names of the pretrained sets, the default first."""

    def parameters(self, name: str) -> int | None:
        """Return the number of parameters; None if only building the network would tell."""
        return None

    def recognise(self, name: str, file_name: str) -> str | None:
        """Return the pretrained set that a file of this name contains."""
        return None

    @abstractmethod
    def pretrained(self, name: str, weights: str, progress: bool) -> State:
        """Return the pretrained set's state dict from the cache, downloading it if necessary; raises `WeightsError`."""

    def canonical(self, name: str, arguments: Mapping[str, Any], state: State, model: nn.Module) -> State:
        """Return the weights of a file under the keys of the network as it is built today."""
        return state

    def preprocessing(self, name: str, weights: str | None) -> Preprocessing:
        """Return the preprocessing of the pretrained set, or of the default one."""
        return Preprocessing()

    def image_size(self, name: str, weights: str | None, arguments: Mapping[str, Any]) -> int:
        """Return the height and width that the network is traced at."""
        return 224

    def channels(self, name: str, model: nn.Module, size: int) -> int:
        """Return the channels of the image that the network takes, at `size` pixels in height and width."""
        return first_channels(model)

    def licence(self, name: str, weights: str) -> str:
        """Return the licence of a pretrained set by its name on the Hugging Face hub; empty if unknown."""
        return ""

    def class_names(self, name: str, weights: str | None) -> list[str]:
        """Return the names of the classes that the weights were trained on; none if unknown."""
        return []
