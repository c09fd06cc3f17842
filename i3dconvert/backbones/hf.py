"""Hugging Face transformers' image networks: `hf/FOLDER`, as `save_pretrained` writes it, or `hf/ORG/NAME` of the hub.

No code of a folder or of the hub is run: its `config.json` names a class of the installed transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from i3dconvert.errors import BackboneError, WeightsError
from i3dconvert.preprocessing import Preprocessing
from i3dconvert.weights import State

version: str = transformers.__version__

PRETRAINED = "pretrained"
"""The one set of weights on offer: the folder's own."""

_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""By PIL's numbers, which preprocessor configurations give."""


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network of a configuration, called with images and giving its logits where it is a classifier."""
    cls = _class(name, arguments)
    try:
        network: Any = cls(cls.config_class.from_dict(dict(arguments["config"])))
    except Exception as error:  # noqa: BLE001 - configurations are checked by as many types as they have fields
        raise BackboneError(f"transformers can't build the {cls.__name__} of {name}: {_first_line(error)}") from None
    return _giving_logits(network)


def _class(name: str, arguments: Mapping[str, Any]) -> Any:
    known: Any = transformers
    cls = getattr(known, str(arguments["architecture"]), None)
    if isinstance(cls, type) and issubclass(cls, known.PreTrainedModel):
        return cls
    raise BackboneError(f"{name} is a {arguments['architecture']}, which transformers {version} does not have")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _giving_logits(network: Any) -> nn.Module:
    """The same network under the same names, whose forward pass gives the logits alone, where it has any."""
    cls: Any = type(network)

    def forward(self: Any, pixel_values: Any) -> Any:
        output = cls.forward(self, pixel_values)
        return output.logits if "logits" in output else output

    network.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    found: nn.Module = network
    return found


def arguments(name: str, weights: str | None, classes: int | None) -> dict[str, Any]:
    """The class and configuration that the folder names, of so many classes."""
    config = _read(name, "config.json")
    if not isinstance(config.get("architectures"), list) or not config["architectures"]:
        raise BackboneError(f"the config.json of {name} names no architecture: it is of no network that can be built")
    if classes is not None:
        config |= {"num_labels": classes, "id2label": None, "label2id": None}
    return {"architecture": config["architectures"][0], "config": config, "folder": Path(name).is_dir()}


def offered(name: str) -> list[str]:
    """The folder's own."""
    return [PRETRAINED]


def pretrained(name: str, weights: str, progress: bool) -> State:
    """The folder's weights, by transformers' own loading, which knows under what names they were saved.

    Raises `WeightsError` for what can't be read, and for weights that are not all there.
    """
    utils: Any = transformers.utils
    verbosity = utils.logging.get_verbosity()
    utils.logging.set_verbosity_error()
    utils.logging.disable_progress_bar()
    try:
        loaded, told = _class(name, arguments(name, weights, None)).from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except BackboneError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub client and the readers have errors of their own
        raise WeightsError(f"can't read the weights of {name}: {_first_line(error)}; -w PATH, -w random") from None
    finally:
        utils.logging.set_verbosity(verbosity)
        utils.logging.enable_progress_bar()
    if missing := [*told["missing_keys"], *told["mismatched_keys"]]:
        raise WeightsError(
            f"{name} lacks {len(missing)} of the network's weights, such as {sorted(map(str, missing))[0]}"
        )
    return dict(loaded.state_dict())


def _file(name: str, file: str) -> Path:
    """A file of a folder, or of the hub's cache, downloaded into it if need be."""
    if Path(name).is_dir():
        path = Path(name) / file
        if not path.is_file():
            raise BackboneError(f"{name} has no {file}: it is no folder that transformers' save_pretrained wrote")
        return path
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise BackboneError(
            f"there is no folder {name}; hf/FOLDER is one that save_pretrained wrote, hf/ORG/NAME the hub's"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception as error:  # noqa: BLE001 - the hub client has its own errors for every way to be offline
        raise BackboneError(
            f"{name} is no folder, and its {file} is not to be had from the hub: {_first_line(error)}"
        ) from None


def _read(name: str, file: str) -> dict[str, Any]:
    path = _file(name, file)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {**document}
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise BackboneError(f"{path} is not a readable JSON document: {error}") from None


def parameters(name: str) -> int | None:
    """Building the network is the only way to a count."""
    return None


def recognise(name: str, file_name: str) -> str | None:
    """Files are all called alike."""
    return None


def canonical(name: str, arguments: Mapping[str, Any], state: State, model: nn.Module) -> State:
    """The keys are those of the network."""
    return state


def preprocessing(name: str, weights: str | None) -> Preprocessing:
    """That of the folder's preprocessor_config.json, or ImageNet's."""
    try:
        told = _read(name, "preprocessor_config.json")
    except BackboneError:
        return Preprocessing()
    usual = Preprocessing()
    try:
        size = _edge(told.get("crop_size") if told.get("do_center_crop", True) else None) or _edge(told.get("size"))
        resize = _edge(told.get("size"))
        if (share := told.get("crop_pct")) and size:
            resize = int(size / float(share))
        return Preprocessing(
            size=size or usual.size,
            resize=resize or size or usual.resize,
            mean=tuple(map(float, told.get("image_mean") or usual.mean)),
            std=tuple(map(float, told.get("image_std") or usual.std)),
            interpolation=_INTERPOLATIONS.get(told.get("resample", 2), usual.interpolation),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BackboneError(f"the preprocessor_config.json of {name} can't be read: {error}") from None


def _edge(size: Any) -> int | None:
    """The height that a size of a preprocessor's configuration says."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return None if size is None else int(size)


def image_size(name: str, weights: str | None, arguments: Mapping[str, Any]) -> int:
    """Height and width that the network is traced at."""
    size = arguments["config"].get("image_size")
    if isinstance(size, list | tuple):
        size = size[0]
    return int(size) if size else preprocessing(name, weights).size


def channels(name: str, model: nn.Module) -> int:
    """Input channels."""
    return int(getattr(model.config, "num_channels", 3))


def licence(name: str, weights: str) -> str:
    """It is in the card of the repository, and in none of its files that are read here."""
    return ""


def class_names(name: str, weights: str | None) -> list[str]:
    """Those of the configuration, where the folder is still there."""
    try:
        labels = _read(name, "config.json").get("id2label") or {}
        return [str(labels[key]) for key in sorted(labels, key=int)]
    except (BackboneError, ValueError, TypeError, AttributeError):
        return []
