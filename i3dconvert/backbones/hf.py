"""Hugging Face transformers' image networks: `hf/FOLDER`, as `save_pretrained` writes it, or `hf/ORG/NAME` of the hub.

No code of a folder or of the hub is run: its `config.json` names a class of the installed transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from i3dconvert.backbones.library import Library
from i3dconvert.errors import BackboneError, WeightsError
from i3dconvert.files import check_text
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import State, check_bounds

PRETRAINED = "pretrained"
"""The one set of weights on offer: the folder's own."""

_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""By PIL's numbers, which preprocessor configurations give."""


def _class(name: str, arguments: Mapping[str, Any]) -> Any:
    namespace: Any = transformers
    cls = getattr(namespace, str(arguments["architecture"]), None)
    if isinstance(cls, type) and issubclass(cls, namespace.PreTrainedModel):
        return cls
    version = transformers.__version__
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
    check_text(path.stat().st_size, str(path), BackboneError)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {**document}
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise BackboneError(f"{path} is not a readable JSON document: {error}") from None


def _edge(size: Any) -> int | None:
    """The height that a size of a preprocessor's configuration says."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return None if size is None else int(size)


_MOST_LAYERS, _MOST_CHANNELS, _MOST_IN_ALL = 1_000, 100_000, 10_000
"""In the configuration of a network that a file asks for."""


_OF_OTHERS = frozenset(
    ("model_args", "backbone", "backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone", "pretrained_cfg")
)
"""Keys whose values go to another library's builder, which fetches and unpickles what they say."""


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a configuration at any depth, those of lists under the list's key; but not the labels' names."""
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, list | tuple):
            waiting += [(key, part) for part in value]
        elif isinstance(value, dict) and key not in ("id2label", "label2id"):
            waiting += [(str(name), part) for name, part in value.items()]


def _is_of_others(key: str, value: Any) -> bool:
    return bool(value) and (key in _OF_OTHERS or (key == "model_type" and str(value).startswith("timm")))


class Transformers(Library):
    """A folder's or a repository's."""

    version = transformers.__version__
    takes = {"architecture": str, "config": dict, "folder": bool}  # noqa: RUF012

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """The network of a configuration, called with images and giving its logits where it is a classifier."""
        cls = _class(name, arguments)
        try:
            network: Any = cls(cls.config_class.from_dict(dict(arguments["config"])))
        except Exception as error:  # noqa: BLE001 - configurations are checked by as many types as they have fields
            raise BackboneError(
                f"transformers can't build the {cls.__name__} of {name}: {_first_line(error)}"
            ) from None
        return _giving_logits(network)

    def arguments(self, name: str, weights: str | None, classes: int | None) -> dict[str, Any]:
        """The class and configuration that the folder names, of so many classes."""
        config = _read(name, "config.json")
        if not isinstance(config.get("architectures"), list) or not config["architectures"]:
            raise BackboneError(
                f"the config.json of {name} names no architecture: it is of no network that can be built"
            )
        if classes is not None:
            config |= {"num_labels": classes, "id2label": None, "label2id": None}
        return {"architecture": config["architectures"][0], "config": config, "folder": Path(name).is_dir()}

    def check(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Beside that: no configuration of a wrapper around another library's builder, and no network without end."""
        super().check(name, arguments)
        config = arguments.get("config", {})
        others = [key for key, value in _entries(config) if _is_of_others(key, value)]
        if others or str(arguments.get("architecture", "")).startswith("Timm"):
            raise BackboneError("the configuration is of a wrapper around another library, with arguments of that")
        layers = 0.0
        for key, value in _entries(config):
            if isinstance(value, int | float):
                of_layers = any(word in key for word in ("layer", "depth", "block", "stage"))
                layers += abs(value) if of_layers else 0
                most = _MOST_LAYERS if of_layers else _MOST_CHANNELS
                if not (abs(value) <= most and layers <= _MOST_IN_ALL):
                    raise BackboneError(f"the configuration has {key}={str(value)[:60]}, more than any network has")

    def offered(self, name: str) -> list[str]:
        return [PRETRAINED]

    def pretrained(self, name: str, weights: str, progress: bool) -> State:
        """The folder's weights, by transformers' own loading, which knows under what names they were saved.

        Raises `WeightsError` for what can't be read, and for weights that are not all there.
        """
        for file in Path(name).glob("*.bin"):
            check_bounds(file)
        utils: Any = transformers.utils
        verbosity = utils.logging.get_verbosity()
        utils.logging.set_verbosity_error()
        utils.logging.disable_progress_bar()
        try:
            loaded, report = _class(name, self.arguments(name, weights, None)).from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
        except BackboneError:
            raise
        except Exception as error:  # noqa: BLE001 - the hub client and the readers have errors of their own
            raise WeightsError(f"can't read the weights of {name}: {_first_line(error)}; -w PATH, -w random") from None
        finally:
            utils.logging.set_verbosity(verbosity)
            utils.logging.enable_progress_bar()
        if missing := [*report["missing_keys"], *report["mismatched_keys"]]:
            raise WeightsError(
                f"{name} lacks {len(missing)} of the network's weights, such as {sorted(map(str, missing))[0]}"
            )
        return dict(loaded.state_dict())

    def preprocessing(self, name: str, weights: str | None) -> Preprocessing:
        """That of the folder's preprocessor_config.json, or ImageNet's."""
        try:
            config = _read(name, "preprocessor_config.json")
        except BackboneError:
            return Preprocessing()
        usual = Preprocessing()
        try:
            resize, crops = _edge(config.get("size")), config.get("do_center_crop", True)
            size = _edge(config.get("crop_size") if crops else None) or resize
            if (share := config.get("crop_pct")) and size:
                resize = int(size / float(share))
            return Preprocessing(
                size=size or usual.size,
                resize=resize or size or usual.resize,
                mean=tuple(map(float, config.get("image_mean") or usual.mean)),
                std=tuple(map(float, config.get("image_std") or usual.std)),
                interpolation=_INTERPOLATIONS.get(config.get("resample", 2), usual.interpolation),
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BackboneError(f"the preprocessor_config.json of {name} can't be read: {error}") from None

    def image_size(self, name: str, weights: str | None, arguments: Mapping[str, Any]) -> int:
        size = arguments["config"].get("image_size")
        if isinstance(size, list | tuple):
            size = size[0]
        return int(size) if size else self.preprocessing(name, weights).size

    def channels(self, name: str, model: nn.Module, size: int) -> int:
        return int(getattr(model.config, "num_channels", 3))

    def class_names(self, name: str, weights: str | None) -> list[str]:
        """Those of the configuration, where the folder is still there."""
        try:
            labels = _read(name, "config.json").get("id2label") or {}
            return [str(labels[key]) for key in sorted(labels, key=int)]
        except (BackboneError, ValueError, TypeError, AttributeError):
            return []


LIBRARY = Transformers()
