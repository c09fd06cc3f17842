"""Call a child with the form that it takes, whatever module it is now.

A module of the tree takes values that cross a border, a 3D layer clips, and any other module frames folded into the
batch, as in 2D. So replacing a layer has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from i3dconvert.lift.attention.divided import TimeAttention
from i3dconvert.lift.computed import ComputedConv3d
from i3dconvert.lift.counterparts import ANY_RANK, full_name
from i3dconvert.lift.forms import FRAMES, Form, converted, enter, is_frames, leave, parts
from i3dconvert.lift.modules import (
    OVER_VOLUMES,
    BlurPool3d,
    GlobalAvgPool,
    LayerNorm3d,
    PaddedPool3d,
    SinusoidalTime,
    TimeEmbedding,
)

OVER_CLIPS = (
    *OVER_VOLUMES,
    BlurPool3d, ComputedConv3d, GlobalAvgPool, LayerNorm3d, PaddedPool3d, SinusoidalTime, TimeEmbedding,
)  # fmt: skip
"""Layers that take clips."""

AS_GIVEN = (TimeAttention,)
"""Layers that take the value as it is."""


class Tree(nn.Module):
    """A module of the tree."""

    def _i3d_borders(self) -> tuple[list[Form] | None, Form]:
        """Return the forms of its inputs and of its output; None if unknown."""
        raise NotImplementedError

    def _i3d_beside(self) -> dict[str, Form]:
        """Return the forms of the values that its code uses besides its inputs, by name."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Rebuild classes of `named` when unpickling, as no module defines them."""
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        key = vars(type(self)).get("_i3d_class")
        return (_new, key, *reduced[2:]) if key else reduced


T = TypeVar("T", bound=Tree)
_CLASSES: dict[tuple[type, ...], type] = {}


def named(cls: type[T], name: str, *beside: type[nn.Module]) -> type[T]:
    """Return `cls` under a 2D class's name, by which trainers distinguish modules; also a subclass of `beside`."""
    key: Any = (cls, name, *beside)
    if key not in _CLASSES:
        _CLASSES[key] = type(name, (cls, *beside), {"__module__": cls.__module__, "_i3d_class": key})
    return _CLASSES[key]


def _new(cls: type[T], name: str, *beside: type[nn.Module]) -> T:
    made = named(cls, name, *beside)
    return made.__new__(made)


def kind(module: nn.Module) -> str:
    """Return what a module takes: `tree` (values that cross a border), `clip`, `given` (any form) or `frames`."""
    if isinstance(module, Tree):
        return "tree"
    if isinstance(module, OVER_CLIPS):
        return "clip"
    if isinstance(module, AS_GIVEN) or full_name(module) in ANY_RANK:
        return "given"
    if next(module.children(), None) is not None:  # a wrapper takes what its inner module takes
        for inner in module.modules():
            if isinstance(inner, Tree):
                return "tree"
            if isinstance(inner, OVER_CLIPS):
                return "clip"
    return "frames"


def tree_in(module: nn.Module) -> Tree:
    """Return the module of the tree that a module is or wraps."""
    return next(inner for inner in module.modules() if isinstance(inner, Tree))


def forms(module: nn.Module, takes: Sequence[Form], gives: Form = None) -> tuple[Sequence[Form], Form]:
    """Return the forms that `module` takes and returns if called with values in the forms `takes`.

    `gives` is that of the module that it replaced; a 2D module's result has as many parts.
    """
    is_a = kind(module)
    if is_a == "tree":
        wanted, given = tree_in(module)._i3d_borders()
        return (wanted if wanted is not None else takes), given
    if is_a == "given":
        return takes, takes[0] if takes else gives
    if is_a == "clip":
        return [_each(form, "clip", is_frames) for form in takes], "clip"
    first = next((form for form in takes if is_frames(form)), FRAMES)
    wanted = [_each(form, FRAMES, lambda one: one == "clip") for form in takes]
    return wanted, first if gives is None else _each(gives, FRAMES, lambda one: one == "clip")


def _each(form: Form, to: Form, where: Any) -> Form:
    if isinstance(form, list):
        return [_each(one, to, where) for one in form]
    if isinstance(form, dict):
        return {key: _each(one, to, where) for key, one in form.items()}
    return to if where(form) else form


def call(
    module: nn.Module,
    clips: Any,
    *args: Any,
    takes: Sequence[Form] | None = None,
    gives: Form = "clip",
    named: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
    as_it_is: str = "",
) -> Any:
    """Call `module` with `args`, which are in the forms `takes` (by default clips), and return the form `gives`.

    `named` are keyword arguments, `beside` values that a module of the tree uses besides its inputs; a module of the
    class `as_it_is` gets the values unconverted.
    """
    if as_it_is == type(module).__qualname__:
        return module(*args, **(named or {}))
    takes = takes if takes is not None else ["clip"] * len(args)
    wanted, given = forms(module, takes, gives)
    if "clip" in takes and wanted != takes:  # a clip tells N itself: of windows or heads, each clip has several
        clips = args[list(takes).index("clip")].size(0)
    args = tuple(converted(*each, clips) for each in zip(args, takes, wanted, strict=True))
    if kind(module) != "tree":
        run = _inside(module) if any(isinstance(one, fx.Proxy) for one in args) else module
        result = _normed(module, *args) if _has_one_pixel(module, *args) else run(*args, **(named or {}))
        return converted(result, given, gives, clips)
    args = tuple(leave(value, form, clips) for value, form in zip(args, wanted, strict=True))
    tree = tree_in(module)
    options = {key: leave(value, tree._i3d_beside().get(key, "plain"), clips) for key, value in (beside or {}).items()}
    if tree.__dict__.get("_i3d_checkpointed") and module.training and torch.is_grad_enabled():
        result = checkpoint(module, *args, use_reentrant=False, **options)
    else:
        result = module(*args, **options)
    given = tree._i3d_borders()[1] if given is None else given
    return converted(enter(result, given), given, gives, clips)


def hold(owner: nn.Module, name: str, layer: nn.Module) -> None:
    """Give `owner` a layer that is a function in 2D: as an attribute, so that the children are the 2D network's."""
    owner.__dict__[name] = layer
    layer.__dict__["_i3d_held"] = True


def _inside(module: nn.Module) -> Any:
    """Return what torch.fx's tracers follow: a layer that is no child is not a module for them."""
    return module.forward if "_i3d_held" in module.__dict__ else module


def _has_one_pixel(module: nn.Module, *args: Any) -> bool:
    return (
        isinstance(module, nn.BatchNorm3d)
        and len(args) == 1
        and isinstance(args[0], Tensor)
        and not torch.compiler.is_compiling()
        and args[0].shape[3:].numel() == 1
        and torch.is_grad_enabled()
    )


def _normed(norm: nn.Module, clip: Tensor) -> Tensor:
    """Apply a batch norm to maps of one pixel, for which torch's backward pass on a CPU is wrong (seen in 2.14).

    It takes the gradient for one in the memory order of the maps; so both are made contiguous.
    """
    normed: Tensor = norm(clip.contiguous())
    if normed.requires_grad:
        normed.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
    return normed


def varies(form: Form) -> bool:
    """Return whether a value of this form varies with the clip."""
    return any(one != "plain" for one in parts(form))
