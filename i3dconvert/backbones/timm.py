"""timm's classifiers, and its backbones without a head (`features_only`)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import timm
import timm.data
import torch
from timm.models import PretrainedCfg
from timm.models._hub import load_model_config_from_hf
from torch import nn

from i3dconvert.backbones.library import Library
from i3dconvert.errors import BackboneError, WeightsError, first_line
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import State

HUB = "hf-hub:"
"""timm's prefix for repositories on the Hugging Face hub."""


def _hub_config(name: str, weights: str) -> dict[str, Any]:
    """Return the configuration of a repository on the Hugging Face hub, read by timm."""
    try:
        config, architecture, _ = load_model_config_from_hf(weights.removeprefix(HUB))
    except Exception as error:  # noqa: BLE001 - the hub client raises many kinds of errors when it is offline
        raise _unavailable(name, weights, error) from None
    if architecture != name.partition(".")[0]:
        raise WeightsError(f"{weights} holds weights of timm/{architecture}, not of timm/{name}")
    return dict(config)


def _unavailable(name: str, weights: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"can't get timm's weights {weights} for {name} ({first_line(error)}); "
        "use -w PATH for a local file or -w random for random weights"
    )


def _tagged(name: str, weights: str | None) -> str:
    return f"{name.partition('.')[0]}.{weights}" if weights else name


def _config(name: str, weights: str | None) -> Any:
    if weights is not None and weights.startswith(HUB):
        return PretrainedCfg(**_hub_config(name, weights))
    config = timm.models.get_pretrained_cfg(_tagged(name, weights), allow_unregistered=True)
    if config is None:
        raise BackboneError(f"timm has no configuration for {name!r}")
    return config


def _filtered(state: State, model: nn.Module) -> State:
    """Convert a file of an older format with the architecture's own `checkpoint_filter_fn`, if that works."""
    for cls in type(model).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "checkpoint_filter_fn", None)
        if function is not None:
            with suppress(Exception):  # it may fail on a file of another architecture
                found = function(dict(state), model)
                return {key: tensor for key, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    return state


class Timm(Library):
    """The networks of timm."""

    version = timm.__version__
    takes = {"num_classes": int, "features_only": bool}  # noqa: RUF012
    hub = HUB

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        return network

    def offered(self, name: str) -> list[str]:
        """Return the tags of the pretrained sets, the default first."""
        base = name.partition(".")[0]
        tags = [entry.partition(".")[2] for entry in timm.list_pretrained(f"{base}.*")]
        default = timm.models.get_pretrained_cfg(base)
        first = default.tag if default else None
        return sorted((tag for tag in tags if tag), key=lambda tag: (tag != first, tag))

    def pretrained(self, name: str, weights: str, progress: bool) -> State:
        given: dict[str, Any] = {"model_name": _tagged(name, weights)}
        if weights.startswith(HUB):
            config = _hub_config(name, weights)
            given = {"model_name": name, "pretrained_cfg": config, "num_classes": config.get("num_classes")}
        try:
            state: State = timm.create_model(**given, pretrained=True).state_dict()
        except Exception as error:  # noqa: BLE001 - the hub client raises many kinds of errors when it is offline
            raise _unavailable(name, weights, error) from None
        return state

    def canonical(self, name: str, arguments: Mapping[str, Any], state: State, model: nn.Module) -> State:
        """Return a classifier's weights under the keys of the network without a head, if that is asked for."""
        if not arguments.get("features_only"):
            return state if state.keys() == model.state_dict().keys() else _filtered(state, model)
        flat = {key.replace(".", "_"): key for key in state}
        wanted = {key: key.removeprefix("model.").replace(".", "_") for key in model.state_dict()}
        return {key: state[flat[bare]] for key, bare in wanted.items() if bare in flat}

    def preprocessing(self, name: str, weights: str | None) -> Preprocessing:
        config = timm.data.resolve_data_config(pretrained_cfg=_config(name, weights).to_dict())
        size = config["input_size"][-1]
        return Preprocessing(
            size=size,
            resize=math.floor(size / config["crop_pct"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
        )

    def image_size(self, name: str, weights: str | None, arguments: Mapping[str, Any]) -> int:
        return int(_config(name, weights).input_size[-1])

    def channels(self, name: str, model: nn.Module, size: int) -> int:
        return int(_config(name, None).input_size[0])

    def licence(self, name: str, weights: str) -> str:
        """Return the licence of a pretrained set by its name on the Hugging Face hub; empty if unknown."""
        return str(getattr(_config(name, weights), "license", None) or "")

    def class_names(self, name: str, weights: str | None) -> list[str]:
        """Return the ImageNet classes, if the configuration has those."""
        subset = timm.data.infer_imagenet_subset(_config(name, weights).to_dict())
        if not subset:
            return []
        info = timm.data.ImageNetInfo(subset)
        return [info.index_to_description(index).partition(",")[0] for index in range(info.num_classes())]


LIBRARY = Timm()
