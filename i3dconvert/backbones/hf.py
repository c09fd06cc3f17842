"""Image networks of Hugging Face transformers: `hf/FOLDER`, written by `save_pretrained`, or `hf/ORG/NAME` on the hub.

No code from a folder or the hub is run: `config.json` names a class of the installed transformers.
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
from i3dconvert.files import check_merged, check_text
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import State, check_bounds

PRETRAINED = "pretrained"
"""The only set of weights: the folder's own."""

_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Names of PIL's numbers, which preprocessor configurations use."""


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
    """Make the network's forward pass return its logits only, if it has any."""
    cls: Any = type(network)

    def forward(self: Any, pixel_values: Any) -> Any:
        output = cls.forward(self, pixel_values)
        return output.logits if "logits" in output else output

    network.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    found: nn.Module = network
    return found


def _file(name: str, file: str) -> Path:
    """Return the path of a file in a folder or in the hub's cache, downloading it if necessary."""
    if Path(name).is_dir():
        check_merged(Path(name), BackboneError)
        path = Path(name) / file
        if not path.is_file():
            raise BackboneError(f"{name} has no {file}: it is not a folder written by transformers' save_pretrained")
        return path
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise BackboneError(
            f"there is no folder {name}; use hf/FOLDER for one from save_pretrained, hf/ORG/NAME for the hub"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception as error:  # noqa: BLE001 - the hub client raises many kinds of errors when it is offline
        raise BackboneError(
            f"{name} is not a folder, and its {file} can't be downloaded from the hub: {_first_line(error)}"
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
    """Return the height in a preprocessor configuration's size."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return None if size is None else int(size)


def _image_size(config: Mapping[str, Any]) -> int | None:
    size = config.get("image_size")
    if isinstance(size, list | tuple):
        size = size[0]
    return int(size) if size else None


_MOST_LAYERS, _MOST_CHANNELS, _MOST_IN_ALL = 1_000, 100_000, 10_000
"""Upper bounds for a configuration from a file."""
_MOST_TOKENS = 4096
"""The most patches, or pixels without patches, in a row of the image."""


_OF_OTHERS = frozenset(
    ("model_args", "backbone", "backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone", "pretrained_cfg")
)
"""Keys whose values go to another library's builder, which downloads and unpickles what they name."""


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a configuration at any depth, those of lists under the list's key, without label names."""
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
    """The networks of transformers, from a folder or a repository."""

    version = transformers.__version__
    takes = {"architecture": str, "config": dict, "folder": bool}  # noqa: RUF012

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build the network of a configuration; it takes images and returns logits if it is a classifier."""
        cls = _class(name, arguments)
        try:
            network: Any = cls(cls.config_class.from_dict(dict(arguments["config"])))
        except Exception as error:  # noqa: BLE001 - configurations raise errors of many types
            raise BackboneError(
                f"transformers can't build the {cls.__name__} of {name}: {_first_line(error)}"
            ) from None
        return _giving_logits(network)

    def arguments(self, name: str, weights: str | None, classes: int | None) -> dict[str, Any]:
        """Return the class and the configuration that the folder names, for `classes` classes."""
        config = _read(name, "config.json")
        if not isinstance(config.get("architectures"), list) or not config["architectures"]:
            raise BackboneError(f"the config.json of {name} names no architecture to build")
        if classes is not None:
            config |= {"num_labels": classes, "id2label": None, "label2id": None}
        return {"architecture": config["architectures"][0], "config": config, "folder": Path(name).is_dir()}

    def check(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Also reject wrappers around another library's builder, and networks of unlimited size."""
        super().check(name, arguments)
        config = arguments.get("config", {})
        others = [key for key, value in _entries(config) if _is_of_others(key, value)]
        if others or str(arguments.get("architecture", "")).startswith("Timm"):
            raise BackboneError("the configuration wraps a network of another library, which is not supported")
        layers = 0.0
        sizes: dict[str, list[float]] = {"image": [0.0], "patch": []}
        for key, value in _entries(config):
            if isinstance(value, int | float):
                of_layers = any(word in key for word in ("layer", "depth", "block", "stage"))
                layers += abs(value) if of_layers else 0
                most = _MOST_LAYERS if of_layers else _MOST_CHANNELS
                if not (abs(value) <= most and layers <= _MOST_IN_ALL):
                    raise BackboneError(f"the configuration has {key}={str(value)[:60]}, more than any network needs")
                kind = {"image_size": "image", "img_size": "image", "patch_size": "patch"}.get(key)
                if kind is not None and value > 0:
                    sizes[kind].append(value)
        if max(sizes["image"]) / min(sizes["patch"], default=1) > _MOST_TOKENS:
            raise BackboneError(
                f"the configuration is for images of {max(sizes['image']):,} pixels, too large to be true"
            )

    def offered(self, name: str) -> list[str]:
        return [PRETRAINED]

    def pretrained(self, name: str, weights: str, progress: bool) -> State:
        """Return the folder's weights, loaded by transformers, which knows the names they were saved under.

        Raises `WeightsError` if they can't be read or are incomplete.
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
        except Exception as error:  # noqa: BLE001 - the hub client and the readers raise errors of many types
            reason = _first_line(error).rstrip(".")
            raise WeightsError(f"can't read the weights of {name}: {reason}; -w PATH, -w random") from None
        finally:
            utils.logging.set_verbosity(verbosity)
            utils.logging.enable_progress_bar()
        if missing := [*report["missing_keys"], *report["mismatched_keys"]]:
            raise WeightsError(
                f"{name} lacks {len(missing)} of the network's weights, such as {sorted(map(str, missing))[0]}"
            )
        return dict(loaded.state_dict())

    def preprocessing(self, name: str, weights: str | None) -> Preprocessing:
        """Return the preprocessing of the folder's preprocessor_config.json, or ImageNet's at the network's size."""
        own = _image_size(_read(name, "config.json"))
        usual = Preprocessing().at(own) if own else Preprocessing()
        try:
            config = _read(name, "preprocessor_config.json")
        except BackboneError:
            return usual
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
        return _image_size(arguments["config"]) or self.preprocessing(name, weights).size

    def channels(self, name: str, model: nn.Module, size: int) -> int:
        return int(getattr(model.config, "num_channels", 3))

    def class_names(self, name: str, weights: str | None) -> list[str]:
        """Return the configuration's class names, if the folder still exists."""
        try:
            labels = _read(name, "config.json").get("id2label") or {}
            return [str(labels[key]) for key in sorted(labels, key=int)]
        except (BackboneError, ValueError, TypeError, AttributeError):
            return []


LIBRARY = Transformers()
