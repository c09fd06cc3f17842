"""Inflate a pretrained 2D image backbone into a 3D network, prove that the two agree, and export the result."""

import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from i3dconvert.version import VERSION as __version__

if TYPE_CHECKING:
    from i3dconvert.checkpoint import class_names, load, save
    from i3dconvert.errors import I3DError
    from i3dconvert.export import export_onnx
    from i3dconvert.export.frames import optimize
    from i3dconvert.hub.pretrained import from_pretrained, push_to_hub, save_pretrained
    from i3dconvert.inflation import inflate
    from i3dconvert.lift.network import Network3d, frames_left, gives_scores, inflation_of, origin_of, preprocessing_of
    from i3dconvert.lift.trainers import head_name, reset_head, set_grad_checkpointing
    from i3dconvert.lift.tree.blocks import code_of
    from i3dconvert.lift.tree.flat import graph_of
    from i3dconvert.names import list_models
    from i3dconvert.recipes import Recipe
    from i3dconvert.streaming import Stream, stream
    from i3dconvert.verification import Report, verify

_HOMES = {
    "I3DError": "errors",
    "Network3d": "lift.network",
    "Recipe": "recipes",
    "Report": "verification",
    "Stream": "streaming",
    "class_names": "checkpoint",
    "code_of": "lift.tree.blocks",
    "export_onnx": "export",
    "frames_left": "lift.network",
    "from_pretrained": "hub.pretrained",
    "gives_scores": "lift.network",
    "graph_of": "lift.tree.flat",
    "head_name": "lift.trainers",
    "inflate": "inflation",
    "inflation_of": "lift.network",
    "list_models": "names",
    "load": "checkpoint",
    "optimize": "export.frames",
    "origin_of": "lift.network",
    "preprocessing_of": "lift.network",
    "push_to_hub": "hub.pretrained",
    "reset_head": "lift.trainers",
    "save": "checkpoint",
    "save_pretrained": "hub.pretrained",
    "set_grad_checkpointing": "lift.trainers",
    "stream": "streaming",
    "verify": "verification",
}
__all__ = ["I3DError", "Network3d", "Recipe", "Report", "Stream", "__version__"]
__all__ += ["export_onnx", "inflate", "list_models", "load", "optimize", "save", "stream", "verify"]
__all__ += [
    "class_names",
    "code_of",
    "frames_left",
    "gives_scores",
    "graph_of",
    "head_name",
    "inflation_of",
    "origin_of",
    "preprocessing_of",
]
__all__ += ["from_pretrained", "push_to_hub", "reset_head", "save_pretrained", "set_grad_checkpointing"]


def __getattr__(name: str) -> Any:
    """Import names on first use, so that the command line answers `--help` without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if network := sys.modules.get(f"{__name__}.lift.network"):
        network.HUB.update({method: partial(_of_the_hub, method) for method in _OF_THE_HUB})
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_OF_THE_HUB = ("from_pretrained", "push_to_hub", "save_pretrained")
"""Functions of the topmost module that are also methods of a network."""


def _of_the_hub(function: str, *args: Any, **options: Any) -> Any:
    return __getattr__(function)(*args, **options)
