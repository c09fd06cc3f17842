"""torchvision's classifiers and segmentation networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any
from urllib.error import URLError

import torchvision
from torch import nn
from torchvision import models

from i3dconvert.backbones.library import Library
from i3dconvert.errors import WeightsError
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import State

_ARGUMENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("googlenet", {"aux_logits": False, "init_weights": False}),
    ("inception_v3", {"aux_logits": False, "init_weights": False}),
    *((glob, {"weights_backbone": None, "aux_loss": False}) for glob in ("fcn_*", "deeplabv3_*")),
    ("lraspp_*", {"weights_backbone": None}),
)
"""Further arguments of the builders: no auxiliary heads (I3D has none), no slow initialisation."""

_PRETRAINED_ARGUMENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("googlenet", {"transform_input": True}),
    ("inception_v3", {"transform_input": True}),
)
"""Arguments that torchvision's builders change when they get their own weights."""

_DROPPED = (
    ("googlenet", r"aux[12]\."),
    ("inception_v3", r"AuxLogits\."),
    ("fcn_*", r"aux_classifier\."),
    ("deeplabv3_*", r"aux_classifier\."),
)
_RENAMED = (("densenet*", r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)", r"\1\2"),)
"""Keys in torchvision's weight files that its builders drop, or rename because the files are older than the code."""

_SIZES = (("inception_v3", 299), ("swin_v2_*", 256))


def _entry(name: str, weights: str) -> Any:
    """Return a pretrained set; raises `WeightsError` if the library has none of that name."""
    sets = models.get_model_weights(name)
    if weights not in sets.__members__:
        raise WeightsError(f"{name} has no weights {str(weights)[:60]!r}; available: {', '.join(sets.__members__)}")
    return sets[weights]


class Torchvision(Library):
    """torchvision's builders, weights and transforms."""

    version = torchvision.__version__
    takes = {  # noqa: RUF012
        **dict.fromkeys(("num_classes", "image_size"), int),
        **dict.fromkeys(("aux_logits", "aux_loss", "init_weights", "transform_input"), bool),
        "weights_backbone": type(None),
    }

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        network: nn.Module = models.get_model(name, weights=None, **arguments)
        return network

    def arguments(self, name: str, weights: str | None, classes: int | None) -> dict[str, Any]:
        chosen: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        tables = (*_ARGUMENTS, *(_PRETRAINED_ARGUMENTS if weights else ()))
        for glob, given in tables:
            chosen |= given if fnmatchcase(name, glob) else {}
        if weights and name.startswith("vit_"):
            chosen["image_size"] = models.get_model_weights(name)[weights].meta["min_size"][0]
        return chosen

    def offered(self, name: str) -> list[str]:
        sets = models.get_model_weights(name)
        default = sets.DEFAULT.name if len(sets) else None
        return sorted((entry.name for entry in sets), key=lambda entry: (entry != default, entry))

    def parameters(self, name: str) -> int | None:
        sets = models.get_model_weights(name)
        return int(sets.DEFAULT.meta["num_params"]) if len(sets) else None

    def recognise(self, name: str, file_name: str) -> str | None:
        """Return the name of the pretrained set that torchvision stores in a file of this name."""
        return next(
            (entry.name for entry in models.get_model_weights(name) if entry.url.endswith(f"/{file_name}")), None
        )

    def pretrained(self, name: str, weights: str, progress: bool) -> State:
        entry = _entry(name, weights)
        try:
            state: State = entry.get_state_dict(progress=progress, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise WeightsError(
                f"can't get {name}'s weights {weights} from {entry.url} ({getattr(error, 'reason', error)}); "
                "use -w PATH for a local file or -w random for random weights"
            ) from None
        return state

    def canonical(self, name: str, arguments: Mapping[str, Any], state: State, model: nn.Module) -> State:
        for glob, dropped in _DROPPED:
            if fnmatchcase(name, glob):
                state = {key: value for key, value in state.items() if not re.match(dropped, key)}
        for glob, pattern, replacement in _RENAMED:
            if fnmatchcase(name, glob):
                state = {re.sub(f"^{pattern}$", replacement, key): value for key, value in state.items()}
        return state

    def preprocessing(self, name: str, weights: str | None) -> Preprocessing:
        sets = models.get_model_weights(name)
        if not len(sets):
            return Preprocessing()
        preset = (_entry(name, weights) if weights else sets.DEFAULT).transforms()
        return Preprocessing(
            size=getattr(preset, "crop_size", preset.resize_size)[0],
            resize=preset.resize_size[0],
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        )

    def image_size(self, name: str, weights: str | None, arguments: Mapping[str, Any]) -> int:
        if "image_size" in arguments:
            return int(arguments["image_size"])
        return next((size for glob, size in _SIZES if fnmatchcase(name, glob)), 224)

    def licence(self, name: str, weights: str) -> str:
        """Return the licence of a pretrained set by its name on the Hugging Face hub."""
        licence = str(_entry(name, weights).meta.get("license", ""))
        return "cc-by-nc-4.0" if "SWAG" in licence else "other" if licence else "bsd-3-clause"

    def class_names(self, name: str, weights: str | None) -> list[str]:
        sets = models.get_model_weights(name)
        return list((_entry(name, weights) if weights else sets.DEFAULT).meta["categories"]) if len(sets) else []


LIBRARY = Torchvision()
