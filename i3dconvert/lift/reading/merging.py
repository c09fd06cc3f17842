"""Find what several runs of a network have in common: the steps that hold for any batch and size, and in both modes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from i3dconvert.lift.reading.recording import Recorder
from i3dconvert.lift.reading.records import Decision, Ref, Row, leaves, value_at


@dataclass(frozen=True)
class Cast:
    """A plain number that equalled the value of `ref` in all runs: `int(x.size(0) / 4)`, `len(x)`, `math.floor(...)`.

    Or `times` that value: `len(x) * heads`, `len(x) // 2`.
    """

    ref: Ref
    kind: type
    times: Fraction = Fraction(1)


@dataclass(frozen=True)
class ByMode:
    """A value that follows the mode of the module `scope`: dropout's flag, or a probability that is 0 in evaluation."""

    scope: str
    training: Any
    evaluating: Any


@dataclass(frozen=True)
class OfImage:
    """An attribute that equals the image's: its `dtype` or `device`, or a dtype's `to_complex()`."""

    name: str
    method: str = ""


@dataclass(frozen=True)
class OfDtype:
    """A number that follows the image's dtype: a multiple of its `min`, `max`, `eps` or `tiny`."""

    name: str
    times: float


class Differ(Exception):
    """The runs differ, first at the row `row`."""

    row: int | None = None


class Runs:
    """Recordings of a network; `training` are the indices of those in training mode.

    With `passing`, what a step returned unchanged counts as its input.
    """

    def __init__(
        self, recorders: Sequence[Recorder], training: frozenset[int] = frozenset(), passing: bool = False
    ) -> None:
        self.recorders, self.training, self.passing = recorders, training, passing
        self.columns = [recorder.rows for recorder in recorders]
        self.numbers = [dict(_numbers(rows)) for rows in self.columns]
        self.sizes_differ = len({tuple(rows[0].value.shape[2:]) for rows in self.columns}) > 1
        found: dict[Ref, tuple[Any, ...]] = {
            ref: tuple(numbers.get(ref) for numbers in self.numbers) for ref in self.numbers[0]
        }
        self.same = {ref: values for ref, values in found.items() if len(set(map(type, values))) == 1}
        self.places: dict[tuple[float, ...], list[Ref]] = {}
        for ref, values in self.same.items():
            if len(set(values)) > 1:
                self.places.setdefault(tuple(float(value) for value in values), []).append(ref)

    def common(self) -> tuple[list[Row], list[Decision], Any]:
        """Return the rows, decisions and output that all runs share; raises `Differ` at the first difference."""
        rows: list[Row] = []
        for alike in zip(*self.columns, strict=False):
            try:
                rows.append(self.row(len(rows), *alike))
            except Differ as reason:
                reason.row = len(rows)
                raise
        if len({len(column) for column in self.columns}) > 1:
            raise Differ(" and ".join(f"{len(column)}" for column in self.columns) + " steps")
        output = self.merge([recorder.output for recorder in self.recorders], len(rows), "", "the output")
        return rows, self.decisions(), output

    def row(self, index: int, *rows: Row) -> Row:
        first = rows[0]
        where = f"{_spoken(first)} in {first.scope or 'the network itself'}"
        if any(
            (row.kind, row.scope) != (first.kind, first.scope) or not _alike(row.target, first.target) for row in rows
        ):
            raise Differ(f"the steps differ, first at {where}")
        if first.kind in ("get", "input"):
            return first
        for other in self.training if first.kind == "module" else ():
            images = Fraction(*(self.columns[run][0].value.shape[0] for run in (other, 0)))
            if not _same_shapes(first.value, rows[other].value, images):
                raise Differ(f"{where} returns other shapes")
        args = self.merge([row.args for row in rows], index, first.scope, where)
        kwargs = self.merge([row.kwargs for row in rows], index, first.scope, where)
        return replace(first, args=args, kwargs=kwargs)

    def decisions(self) -> list[Decision]:
        found = []
        for alike in zip(*(recorder.decisions for recorder in self.recorders), strict=False):
            first = alike[0]
            if any((d.operation, d.row, d.result) != (first.operation, first.row, first.result) for d in alike):
                raise Differ(f"a decision on a size ({first.line})")
            if first.operation != "item" and all(self.is_settled(operand) for operand in first.operands):
                continue
            operands = tuple(
                self.merge(
                    [d.operands[i] for d in alike], first.row, first.scope, f"a decision on a size ({first.line})"
                )
                for i in range(len(first.operands))
            )
            found.append(replace(first, operands=operands))
        if len({len(recorder.decisions) for recorder in self.recorders}) > 1:
            raise Differ("the number of decisions on sizes")
        return found

    def is_constant(self, ref: Any) -> bool:
        """Return whether a number is the same for every image: channels, and what is computed from them."""
        row = self.columns[0][ref.row]
        if row.kind == "number":
            return all(not isinstance(operand, Ref) or self.is_constant(operand) for operand in row.args)
        alike = len(set(self.same.get(ref, (0, 1)))) == 1
        return self.sizes_differ and alike and _axis(self.columns[0], ref) == (4, 1)

    def is_settled(self, operand: Any) -> bool:
        """Return whether, as far as the runs tell, no other image changes a decision's operand, except by its size."""
        if not isinstance(operand, Ref):
            return True
        row = self.columns[0][operand.row]
        if row.kind == "number":
            return all(map(self.is_settled, row.args))
        dims, axis = _axis(self.columns[0], operand)
        alike = len(set(self.same.get(operand, (0, 1)))) == 1
        return self.sizes_differ and alike and (dims != 4 or axis == 1)

    def merge(self, values: list[Any], at: int, scope: str, where: str) -> Any:
        if self.passing and all(isinstance(value, Ref) for value in values):
            values = [_origin(*pair) for pair in zip(values, self.recorders, strict=True)]
        first = values[0]
        if isinstance(first, Ref) and all(value == first for value in values):
            return self.same[first][0] if first in self.same and self.is_constant(first) else first
        if isinstance(first, tuple | list) and all(type(v) is type(first) and len(v) == len(first) for v in values):
            parts = [self.merge(list(items), at, scope, where) for items in zip(*values, strict=True)]
            if isinstance(first, list):
                return parts
            return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
        if isinstance(first, dict) and all(isinstance(v, dict) and list(v) == list(first) for v in values):
            return {key: self.merge([value[key] for value in values], at, scope, where) for key in first}
        if isinstance(first, slice) and all(isinstance(v, slice) for v in values):
            parts = [self.merge([getattr(v, p) for v in values], at, scope, where) for p in ("start", "stop", "step")]
            return slice(*parts)
        if isinstance(first, torch.dtype | torch.device):
            return self.of_image(values, where)
        if all(_alike(first, value) for value in values):
            return first
        if self.training:
            by_mode = self.by_mode(values, scope)
            if by_mode is not None:
                return by_mode
        floats = all(type(value) is float for value in values)
        if floats and (limit := self.of_dtype(values)) is not None:
            return limit
        if type(first) in (int, float) and all(type(value) is type(first) for value in values):
            return self.cast(values, at, where)
        raise Differ(f"{where} is given " + ", ".join(dict.fromkeys(_named(value) for value in values)))

    def of_image(self, values: list[Any], where: str) -> Any:
        """Return a dtype or a device, as the image's if it follows that from run to run."""
        images = [column[0].value for column in self.columns]
        name = "dtype" if isinstance(values[0], torch.dtype) else "device"
        if name == "device" and values == [recorder.device for recorder in self.recorders]:
            return OfImage(name)
        if len(set(values)) > 1:
            if all(getattr(image, name) == value for image, value in zip(images, values, strict=True)):
                return OfImage(name)
            if name == "dtype" and [image.dtype.to_complex() for image in images] == values:
                return OfImage(name, "to_complex")
            raise Differ(f"{where}: " + " and ".join(map(str, values)))
        return values[0]

    def of_dtype(self, values: list[Any]) -> OfDtype | None:
        limits = [torch.finfo(column[0].value.dtype) for column in self.columns]
        for name in ("min", "max", "eps", "tiny"):
            shares = {value / getattr(limit, name) for value, limit in zip(values, limits, strict=True)}
            if len({limit.dtype for limit in limits}) > 1 and len(shares) == 1:
                return OfDtype(name, shares.pop())
        return None

    def by_mode(self, values: list[Any], scope: str) -> ByMode | None:
        modes: list[list[Any]] = [[], []]
        for index, value in enumerate(values):
            modes[index in self.training].append(value)
        evaluating, training = modes
        if type(training[0]) not in (bool, int, float) or type(evaluating[0]) not in (bool, int, float):
            return None
        if len(set(evaluating)) == 1 and len(set(training)) == 1:
            return ByMode(scope, training[0], evaluating[0])
        return None

    def cast(self, values: list[Any], at: int, where: str) -> Cast:
        """Return the number before `at` that had these values, or that truncates to them."""
        for ref in self.places.get(tuple(map(float, values)), ()):
            if ref.row < at:
                return Cast(ref, type(values[0]))
        if type(values[0]) is int:
            for known, refs in self.places.items():
                if all(math.trunc(one) == value for one, value in zip(known, values, strict=True)) and refs[0].row < at:
                    return Cast(refs[0], int)
            for known, refs in self.places.items():
                times = Fraction(values[0]) / Fraction(known[0]) if known[0] else Fraction(0)
                whole = times and 1 in (times.numerator, times.denominator)
                alike = all(
                    float(one).is_integer() and value == times * Fraction(one)
                    for one, value in zip(known, values, strict=True)
                )
                if whole and alike and refs[0].row < at:
                    return Cast(refs[0], int, times)
        raise Differ(f"{where}: a number that follows the size ({', '.join(map(str, values))})")


def _numbers(rows: list[Row]) -> Iterator[tuple[Ref, Any]]:
    for index, row in enumerate(rows):
        if row.kind == "number":
            yield Ref(index), row.value
        elif row.kind == "call" and isinstance(row.value, int | torch.Size | tuple):
            values = row.value if isinstance(row.value, tuple) else None
            if values is None:
                yield Ref(index), row.value
            else:
                yield from ((Ref(index, (i,)), value) for i, value in enumerate(values) if type(value) is int)


def _axis(rows: list[Row], ref: Ref) -> tuple[int, int | None]:
    """Return the number of axes of the tensor whose size a number is, and which axis it is (None: all together)."""
    row = rows[ref.row]
    axis = ref.path[0] if ref.path else row.args[1] if len(row.args) > 1 else row.kwargs.get("dim")
    dims = value_at(rows, row.args[0]).dim()
    return dims, axis % dims if isinstance(axis, int) else None


def _same_shapes(ours: Any, theirs: Any, images: Fraction) -> bool:
    """Return whether two results have the same shapes; an axis may follow the number of images, of which the second
    has `images` times as many."""
    pairs = list(zip(leaves(ours), leaves(theirs), strict=False))
    alike = type(ours) is type(theirs) and len(pairs) == len(list(leaves(ours))) == len(list(leaves(theirs)))
    return alike and all(
        one.dim() == other.dim() and all(a == b or a * images == b for a, b in zip(one.shape, other.shape, strict=True))
        for one, other in pairs
        if isinstance(one, Tensor) and isinstance(other, Tensor)
    )


def _alike(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and (a.is_meta or bool(torch.equal(a, b)))
    if type(a) is not type(b):
        return False
    if callable(a) and getattr(a, "__name__", "") == getattr(b, "__name__", None) == "__get__":
        return bool(a.__self__ is b.__self__)
    try:
        return bool(a == b) or bool(a != a and b != b)
    except Exception:  # noqa: BLE001 - comparing a user's objects may raise anything
        return False


def _named(value: Any) -> str:
    if isinstance(value, list | tuple) and any(isinstance(one, Ref) for one in value):
        return f"{len(value)} tensor{'s' * (len(value) > 1)}"
    return f"the result of step {value.row}" if isinstance(value, Ref) else str(value)[:40]


_SPOKEN = {"module": "the layer", "constant": "a constant"}


def _spoken(row: Row) -> str:
    if row.kind in _SPOKEN:
        return _SPOKEN[row.kind]
    return str(getattr(row.target, "__name__", row.target))


def _origin(ref: Ref, recorder: Recorder) -> Ref:
    """Return the value that steps returned unchanged to give `ref`."""
    while (before := recorder.returned.get(ref)) is not None:
        ref = before
    return ref
