"""The parts of a recording (rows, calls of modules, decisions), and the walk through nested values."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading.numbers import Remembered, plain


@dataclasses.dataclass(frozen=True)
class Ref:
    """The result of row `row`, or an item of it at `path`."""

    row: int
    path: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Lost:
    """A value that is no longer known."""

    what: str


@dataclasses.dataclass(frozen=True)
class Again:
    """A view of a tensor that was written to later: `step`, which made it, is applied again to `of`."""

    of: Tensor
    step: Ref


@dataclasses.dataclass
class Row:
    """One step; `kind` is `input`, `get` (a tensor by its name), `constant`, `number`, `call` or `module`."""

    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    scope: str
    value: Any = None
    """Its result: tensors on the meta device, or a number."""
    graded: bool = True
    """Whether it is outside the network's own `no_grad` regions."""
    call: int = 0
    """The index of the module's call that contains it."""


def value_at(rows: Sequence[Row], ref: Ref) -> Any:
    """Return the value that `ref` stands for."""
    return reduce(getitem, ref.path, rows[ref.row].value)


@dataclasses.dataclass
class Call:
    """A call of the module `name` inside the call `parent`."""

    name: str
    parent: int
    start: int
    """The index of its first row."""
    inputs: tuple[tuple[str, Any], ...] = ()
    """Its inputs, by the names of its forward's parameters."""
    output: Any = None
    end: int = 0
    """The index of the first row after it."""


@dataclasses.dataclass
class Decision:
    """A comparison of sizes, its place, and its result."""

    operation: str
    """The comparison; or `item`, if the operand is a tensor with one value, which is the result."""
    operands: tuple[Any, ...]
    result: Any
    row: int
    scope: str
    line: str
    call: int = 0


_NESTED = (tuple, list, dict, slice)


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to each leaf of nested tuples, lists, dicts and slices."""
    if not isinstance(value, _NESTED):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, function) for item in value))
    if isinstance(value, list):
        return [mapped(item, function) for item in value]
    if isinstance(value, tuple):
        return tuple(mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    return slice(*(mapped(part, function) for part in (value.start, value.stop, value.step)))


def as_plain(value: Any) -> Any:
    """Convert libraries' output classes to dicts; raises `LiftError` for unknown classes."""
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items() if item is not None}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: as_plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(as_plain, value))
    if isinstance(value, tuple | list):
        return (list if isinstance(value, list) else tuple)(map(as_plain, value))
    if value is None or isinstance(value, Tensor | int | float | str):
        return value
    raise LiftError(f"the network returns a {type(value).__name__}, in which no tensor can be found")


def positional(args: Any, kwargs: Any, names: Iterable[str]) -> tuple[Any, Any]:
    """Return the arguments of a call with the first ones by position, if all are by name."""
    leading = [] if args else list(itertools.takewhile(kwargs.__contains__, names))
    rest = {key: value for key, value in kwargs.items() if key not in leading}
    return (*args, *(kwargs[name] for name in leading)), rest


def dtype_named(kind: Any = None, *_: Any) -> torch.dtype | None:
    """Return the dtype of a tensor type, `torch.FloatTensor` or its name, which `Tensor.type` takes."""
    cls = getattr(torch, kind.rpartition(".")[2], None) if isinstance(kind, str) else kind
    dtype = getattr(cls, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else None


def leaves(value: Any) -> Iterator[Any]:
    """Yield the contents of nested tuples, lists, dicts and slices."""
    if not isinstance(value, _NESTED):
        yield value
    elif isinstance(value, slice):
        yield from leaves((value.start, value.stop, value.step))
    else:
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)


def to_meta(value: Any) -> Any:
    """Convert tensors and devices to the meta device, and sizes to plain numbers, so that torch's comparisons
    of them are not recorded."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if isinstance(value, torch.device):
        return _META
    if isinstance(value, Remembered):
        return plain(value)
    if isinstance(value, torch.Size):
        return torch.Size(map(plain, value))
    if type(value).__module__ == "torch.return_types":
        return value
    if isinstance(value, _NESTED):
        return mapped(value, to_meta)
    return value


_META = torch.device("meta")


_OURS = __name__.rpartition(".")[0]


def line_of_the_network() -> str:
    """Return the innermost line of code that is neither ours nor torch's."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        home = str(frame.f_globals.get("__name__", ""))
        if not home.startswith((_OURS, "torch.", "typing")) and home != "torch":
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def autograd_functions() -> dict[CodeType, str]:
    """Return the names of all autograd functions that are not torch's, by the code of their forward."""
    found, todo = dict[CodeType, str](), list(torch.autograd.Function.__subclasses__())
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        code = getattr(inspect.unwrap(cls.forward), "__code__", None)
        if code is not None and not cls.__module__.startswith("torch."):
            found[code] = cls.__name__
    return found


def running(codes: Mapping[CodeType, str]) -> Iterator[str]:
    """Yield the names of those `codes` that are running."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_code in codes:
            yield codes[frame.f_code]
        frame = frame.f_back


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """Return the function that runs when a module is called, which its constructor may have chosen."""
    forward: Callable[..., Any] = getattr(module.forward, "__func__", module.forward)
    return forward
