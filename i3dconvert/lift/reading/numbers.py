"""Sizes that know their origin: plain ints and floats for the network's code, references to rows of the recording.

C code (`range`, `%d`, `int()`, `math.sqrt`) treats them as plain numbers and loses their origin; comparing runs with
other sizes finds it again (`merging.py`).
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import Any, Protocol

Plain = int | float


class Notes(Protocol):
    """Receives arithmetic and decisions on sizes."""

    def number(self, value: Plain, operation: str, operands: tuple[Any, ...]) -> Any:
        """Return the place of a number in the recording."""

    def hashed(self) -> None:
        """Note that a size became a key."""

    def decision(self, result: bool, operation: str, operands: tuple[Any, ...]) -> None:
        """Record a comparison of sizes and its result."""


def plain(value: Any) -> Any:
    """Return the number without its origin."""
    if isinstance(value, Size):
        return int.__index__(value)
    return float.__float__(value) if isinstance(value, Share) else value


def _rounded(value: float, digits: int | None = None) -> Plain:
    return round(value) if digits is None else round(value, digits)


ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in "add sub mul floordiv truediv mod pow neg abs".split()},
    **{"and": operator.and_, "or": operator.or_, "xor": operator.xor},
    **{"lshift": operator.lshift, "rshift": operator.rshift},
    **{"round": _rounded, "floor": math.floor, "ceil": math.ceil, "trunc": math.trunc},
}  # fmt: skip
COMPARISONS: dict[str, Callable[..., bool]] = {
    **{name: getattr(operator, name) for name in "eq ne lt le gt ge".split()},
    "bool": lambda value: value != 0,
}


class Remembered:
    """The base class of recorded ints and floats."""

    notes: Notes
    ref: Any


def remember(value: Any, notes: Notes, ref: Any) -> Any:
    """Return `value` as a number with its place `ref` in the recording of `notes`."""
    if type(value) not in (int, float):
        return value
    number: Any = (Size if type(value) is int else Share)(value)
    number.notes, number.ref = notes, ref
    return number


def _compute(operation: str, *operands: Any) -> Any:
    value = ARITHMETIC[operation](*map(plain, operands))
    notes = next(operand.notes for operand in operands if isinstance(operand, Remembered))
    return remember(value, notes, notes.number(value, operation, operands)) if type(value) in (int, float) else value


def _decide(operation: str, *operands: Any) -> bool:
    result = COMPARISONS[operation](*map(plain, operands))
    notes = next(operand.notes for operand in operands if isinstance(operand, Remembered))
    notes.decision(result, operation, operands)
    return result


def _binary(operation: str, swapped: bool = False) -> Any:
    def call(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        return _compute(operation, other, self) if swapped else _compute(operation, self, other)

    return call


def _unary(operation: str) -> Any:
    return lambda self, *rest: _compute(operation, self, *rest)


def _comparison(operation: str) -> Any:
    def call(self: Any, other: Any) -> Any:
        return _decide(operation, self, other) if isinstance(other, int | float) else NotImplemented

    return call


def _hash(self: Any) -> int:
    """Refuse hashing for einops, whose cache of shapes would outlive a run, and which works without it."""
    if str(sys._getframe(1).f_globals.get("__name__", "")).startswith("einops"):
        raise TypeError("unhashable: a size that is being recorded")
    self.notes.hashed()
    return hash(plain(self))


_BINARY = ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow")
_OF_INTS = ("and", "or", "xor", "lshift", "rshift")
_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")


def _members(binary: tuple[str, ...], unary: tuple[str, ...]) -> dict[str, Any]:
    return {
        **{f"__{name}__": _binary(name) for name in binary},
        **{f"__r{name}__": _binary(name, swapped=True) for name in binary},
        **{f"__{name}__": _unary(name) for name in unary},
        **{f"__{name}__": _comparison(name) for name in _COMPARED},
        "__bool__": lambda self: _decide("bool", self),
        "__pos__": lambda self: self,
        "__divmod__": lambda self, other: (self // other, self % other),
        "__hash__": _hash,
        "__str__": lambda self: str(plain(self)),
        "__repr__": lambda self: repr(plain(self)),
        "__format__": lambda self, spec: format(plain(self), spec),
        "__deepcopy__": lambda self, memo: self,
        "__reduce__": lambda self: (type(plain(self)), (plain(self),)),
    }


class Size(Remembered, int):
    """An int with its place in the recording."""


class Share(Remembered, float):
    """A float with its place in the recording."""


for _name, _member in _members((*_BINARY, *_OF_INTS), ("neg", "abs")).items():
    setattr(Size, _name, _member)
for _name, _member in _members(_BINARY, ("neg", "abs", "round", "floor", "ceil", "trunc")).items():
    setattr(Share, _name, _member)
