"""Copy a network without allocating memory."""

from __future__ import annotations

import copy
import functools
import gc
import sys
from collections import OrderedDict
from itertools import chain
from types import CellType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from i3dconvert.errors import LiftError, first_line


def on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the meta device; raises `LiftError` if it can't be copied."""
    memo: dict[int, Any] = {id(tensor): _meta(tensor) for tensor in (*model.parameters(), *model.buffers())}
    modules = [module for module in model.modules() if not _copies_itself(type(module))]
    try:
        # deepcopy takes modules apart one by one, which takes longer than running them without arithmetic.
        memo |= {id(module): type(module).__new__(type(module)) for module in modules}
        for module in modules:
            memo[id(module)].__dict__.update({key: _copied(value, memo) for key, value in vars(module).items()})
        copied = copy.deepcopy(model, memo)
        for module in copied.modules():
            _rebind(vars(module), memo)
        return copied
    except Exception as error:
        raise LiftError(
            f"{type(model).__name__} can't be copied ({first_line(error)}): copy.deepcopy(model) must work; "
            "build it again, and inflate it before it runs"
        ) from error


def clear_caches() -> None:
    """Clear each `functools.lru_cache` whose keys may be sizes: a run leaves its own there.

    Python's and torch's caches stay, and those that hold one object for a whole program.
    """
    cache = type(functools.lru_cache(clear_caches))
    for found in [one for one in gc.get_objects() if type(one) is cache]:
        home = str(getattr(found, "__module__", "")).partition(".")[0]
        entries = [held for held in gc.get_referents(found) if isinstance(held, dict)]
        if home != "torch" and home not in sys.stdlib_module_names and any(map(_may_be_size, chain(*entries))):
            found.cache_clear()


def _may_be_size(key: Any) -> bool:
    return any(map(_may_be_size, key)) if isinstance(key, tuple) else not isinstance(key, str | type | None)


def without_hooks(model: nn.Module) -> nn.Module:
    """Remove the hooks of `model`, which are part of the graph if they ran."""
    registries = [key for key, value in vars(nn.Module()).items() if isinstance(value, dict)]
    for module in model.modules():
        for key in registries:  # a module keeps tensors, modules and functions (its hooks) in dicts
            held = vars(module)[key]
            if any(callable(value) and not isinstance(value, nn.Module) for value in held.values()):
                held.clear()
    return model


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if type(value) in (dict, OrderedDict) and all(isinstance(key, str) for key in value):
        copied = memo[id(value)] = type(value)()  # modules may share a dict, and it may hold itself
        copied.update((key, _copied(item, memo)) for key, item in value.items())
        return copied
    if isinstance(value, Tensor) and not value.is_leaf:
        return memo.setdefault(id(value), _meta(value))  # a kernel of weight_norm or pruning, computed in the last call
    return copy.deepcopy(value, memo)


def _rebind(held: dict[Any, Any], memo: dict[int, Any]) -> None:
    """Make the functions that a module holds, such as hooks, refer to the copies instead of the originals."""
    for key, value in held.items():
        if isinstance(value, FunctionType):
            held[key] = _rebound(value, memo)
        elif type(value) in (dict, OrderedDict) and value and id(value) not in memo:
            memo[id(value)] = value  # it may hold itself
            _rebind(value, memo)


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    if id(function) in memo:
        return cast(FunctionType, memo[id(function)])
    memo[id(function)] = function  # it may refer to itself
    cells = function.__closure__ or ()
    new = tuple(_cell(cell, memo) for cell in cells)
    used = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    globally = {name: memo[id(one)] for name, one in used.items() if isinstance(one, nn.Module) and id(one) in memo}
    if globally or any(one is not other for one, other in zip(cells, new, strict=True)):
        known = {**function.__globals__, **globally} if globally else function.__globals__
        rebound = FunctionType(function.__code__, known, function.__name__, function.__defaults__, new)
        rebound.__kwdefaults__ = function.__kwdefaults__
        memo[id(function)] = rebound
    return cast(FunctionType, memo[id(function)])


def _cell(cell: CellType, memo: dict[int, Any]) -> CellType:
    try:
        old = cell.cell_contents
    except ValueError:  # it is empty
        return cell
    new = _rebound(old, memo) if isinstance(old, FunctionType) else memo.get(id(old), old)
    return cell if new is old else CellType(new)


def _copies_itself(cls: type[nn.Module]) -> bool:
    """Return whether a class defines how it is copied."""
    return any(name in vars(base) for base in cls.__mro__[: cls.__mro__.index(nn.Module)] for name in _COPYING)


_COPYING = ("__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__", "__slots__", "__new__")


def empty_like(tensor: Tensor) -> Tensor:
    """Return a tensor of another's kind on the meta device, where `torch.empty_like` is slow Python code."""
    if tensor.is_contiguous() and type(tensor) in (Tensor, nn.Parameter):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def _meta(tensor: Tensor) -> Tensor:
    empty = empty_like(tensor)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
