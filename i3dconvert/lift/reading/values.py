"""Compute tensors that follow only from sizes and constants: masks of ones, tables of positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import torch
from torch import Tensor

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading.records import Ref, Row, leaves, mapped

_CPU = torch.device("cpu")
_OF = {
    "input": "depends on the data",
    "get": "depends on the value of {}, which may change when weights are loaded; keep it as a Python number",
    "module": "depends on the data",
}

_FINITE = {
    **dict.fromkeys((torch.isfinite, Tensor.isfinite), True),
    **dict.fromkeys((torch.isnan, Tensor.isnan, torch.isinf, Tensor.isinf), False),
}
"""Questions that code asks to refuse images that are not finite; the answers for finite ones."""
_WITH_POLES = frozenset("log log2 log10 log1p reciprocal rsqrt".split())
"""Functions that return infinities for finite values."""


def value_of(rows: Sequence[Row], ref: Any, known: dict[int, Any]) -> Any:
    """Return the value of `ref`, computed on the CPU if it is a row's; `known` caches the values of rows.

    Raises `LiftError` if it depends on the image, the network's tensors or random numbers. What is computed from
    the image without infinities counts as finite.
    """
    if not isinstance(ref, Ref):
        return _CPU if isinstance(ref, torch.device) else ref
    if ref.row not in known:
        known[ref.row] = _computed(rows, rows[ref.row], known)
    return reduce(getitem, ref.path, known[ref.row])


def is_assumed(rows: Sequence[Row], ref: Any) -> bool:
    """Return whether the value of `ref` is one for finite images, which other images may change."""
    return isinstance(ref, Ref) and any(
        row.target in _FINITE and _is_of_a_finite_image(rows, row) for row in _before(rows, rows[ref.row])
    )


def _computed(rows: Sequence[Row], row: Row, known: dict[int, Any]) -> Any:
    if row.kind == "number" or (row.kind == "call" and not any(isinstance(one, Tensor) for one in leaves(row.value))):
        return row.value
    if row.kind == "constant":
        return row.args[0]
    if row.target in _FINITE and _is_of_a_finite_image(rows, row):
        return torch.full(row.value.shape, _FINITE[row.target])
    if row.kind != "call":
        raise LiftError(_OF[row.kind].format(row.target))

    def real(value: Any) -> Any:
        found = value_of(rows, value, known)
        return found.clone() if isinstance(found, Tensor) else found  # a step may write into its inputs

    args, kwargs = mapped(row.args, real), mapped(row.kwargs, real)
    before = torch.get_rng_state()
    with torch.no_grad():
        value = row.target(*args, **kwargs)
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        raise LiftError("depends on random numbers")
    return value


def _is_of_a_finite_image(rows: Sequence[Row], row: Row) -> bool:
    """Return whether a row follows from the image, and no step before it uses or makes infinities or NaN."""
    before = list(_before(rows, row))
    given = (value for one in before for value in leaves((one.args, one.kwargs)))
    poles = any(getattr(one.target, "__name__", "") in _WITH_POLES for one in before)
    return not poles and all(map(_is_finite, given)) and any(one.kind == "input" for one in before)


def _before(rows: Sequence[Row], row: Row) -> Iterator[Row]:
    """Yield the rows from which a row is computed, and itself."""
    todo, seen = [row], set[int]()
    while todo:
        yield (one := todo.pop())
        new = {ref.row for ref in leaves((one.args, one.kwargs)) if isinstance(ref, Ref)} - seen
        seen |= new
        todo += [rows[index] for index in new]


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_meta or not value.is_floating_point() or bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)
