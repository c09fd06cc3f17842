"""timm's classifiers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import timm
import timm.data
from torch import nn

from i3dconvert.errors import BackboneError, WeightsError
from i3dconvert.preprocessing import Preprocessing
from i3dconvert.weights import State

version: str = timm.__version__


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network, uninitialised weights included."""
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except RuntimeError as error:
        raise BackboneError(f"timm can't build {name!r}: {error}") from None
    return network


def arguments(name: str, weights: str | None, classes: int | None) -> dict[str, Any]:
    """The builder's arguments for this number of classes."""
    return {} if classes is None else {"num_classes": classes}


def _tagged(name: str, weights: str | None) -> str:
    return f"{name.partition('.')[0]}.{weights}" if weights else name


def _config(name: str, weights: str | None) -> Any:
    config = timm.models.get_pretrained_cfg(_tagged(name, weights), allow_unregistered=True)
    if config is None:
        raise BackboneError(f"timm knows no configuration of {name!r}")
    return config


def offered(name: str) -> list[str]:
    """The tags of the pretrained sets, the default one first."""
    base = name.partition(".")[0]
    tags = [entry.partition(".")[2] for entry in timm.list_pretrained(f"{base}.*")]
    default = timm.models.get_pretrained_cfg(base)
    first = default.tag if default else None
    return sorted((tag for tag in tags if tag), key=lambda tag: (tag != first, tag))


def parameters(name: str) -> int | None:
    """timm keeps no count; building the network is the only way to one."""
    return None


def recognise(name: str, file_name: str) -> str | None:
    """timm's files are all called alike."""
    return None


def pretrained(name: str, weights: str, progress: bool) -> State:
    """The pretrained set's state dict from the hub's cache, or downloaded into it."""
    try:
        state: State = timm.create_model(_tagged(name, weights), pretrained=True).state_dict()
    except Exception as error:  # noqa: BLE001 - the hub client has its own errors for every way to be offline
        raise WeightsError(
            f"can't get timm's weights {weights} for {name} ({str(error).partition(chr(10))[0]}); "
            "-w PATH takes a local file, -w random seeded random weights"
        ) from None
    return state


def canonical(name: str, state: State) -> State:
    """timm's files are as its networks are."""
    return state


def preprocessing(name: str, weights: str | None) -> Preprocessing:
    """That of the pretrained configuration."""
    config = timm.data.resolve_data_config(pretrained_cfg=_config(name, weights).to_dict())
    size = config["input_size"][-1]
    return Preprocessing(
        size=size,
        resize=math.floor(size / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def image_size(name: str, weights: str | None, arguments: Mapping[str, Any]) -> int:
    """Height and width that the network is traced at."""
    return int(_config(name, weights).input_size[-1])


def channels(name: str) -> int:
    """Input channels."""
    return int(_config(name, None).input_size[0])


def class_names(name: str, weights: str | None) -> list[str]:
    """The ImageNet classes, where the configuration is of that kind."""
    subset = timm.data.infer_imagenet_subset(_config(name, weights).to_dict())
    if not subset:
        return []
    info = timm.data.ImageNetInfo(subset)
    return [info.index_to_description(index).partition(",")[0] for index in range(info.num_classes())]
