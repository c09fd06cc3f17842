"""Writes into a tensor through a view of it, as a step that returns the whole new tensor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache, reduce
from operator import attrgetter, getitem
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WRITES = frozenset(("__setitem__",))
"""Functions that write and return nothing."""

TURNS = {
    "set_": None,
    **{
        f"{name}_": getattr(Tensor, name)
        for name in "transpose t swapaxes swapdims squeeze unsqueeze as_strided".split()
    },
}
"""Methods that change the shape of a tensor in place, not its memory, and the same as a view; `set_` has none."""

_OWN_OPERATORS = frozenset(f"__i{name}__" for name in "add sub mul truediv floordiv mod pow and or xor matmul".split())


def written_to(function: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the tensor that a call writes into: by torch's names (`add_`, `x += 1`), by `inplace` or by `out`."""
    if isinstance(out := kwargs.get("out"), Tensor):
        return out
    named = (name.endswith("_") and not name.endswith("__")) or name in WRITES or name in _OWN_OPERATORS
    given = args[0] if args else kwargs.get("input")
    if isinstance(given, Tensor) and (named or _is_inplace(function, args, kwargs)):
        return given
    return None


def _is_inplace(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    place = _place_of_inplace(function)
    return bool(kwargs.get("inplace") or (place is not None and len(args) > place and args[place]))


@cache
def _place_of_inplace(function: Any) -> int | None:
    """Return the position of a function's `inplace` parameter."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


OVERLOAD = type(torch.ops.aten.alias.default)
"""The type of an operation as torch's dispatcher sees it."""

_HOMES: dict[str, Any] = {"tensor": Tensor, "torch": torch, "functional": F, "ops": torch.ops}

Step = tuple[str, tuple[Any, ...], dict[str, Any], tuple[Any, ...]]
"""A function's name, its arguments besides the tensor, and the part that is taken of a tuple it returns."""


def name_of(function: Any) -> str:
    """Return the name by which `call` finds a function of torch; those of attributes begin with a dot."""
    if function.__name__ == "__get__":
        return f".{function.__self__.__name__}"
    if isinstance(function, OVERLOAD):
        return f"ops/{function}"
    home = next((home for home in _HOMES if getattr(_HOMES[home], function.__name__, None) is function), "tensor")
    return f"{home}/{function.__name__}"


def call(name: str, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the function called `name` with `tensor`."""
    if name.startswith("."):
        return getattr(tensor, name[1:])
    home, _, bare = name.partition("/")
    return attrgetter(bare)(_HOMES[home])(tensor, *args, **kwargs)


def written(base: Tensor, steps: tuple[Step, ...], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return `base` after the function `name` wrote into the view that `steps` lead to; `base` itself is unchanged."""
    base = base.clone(memory_format=torch.contiguous_format)  # so that the steps are views as in the 2D network
    view: Any = base
    for step, given, options, path in steps:
        view = reduce(getitem, path, call(step, view, given, options))
    call(name, view, args, kwargs)
    return base
