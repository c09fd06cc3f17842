"""Compute tensors that follow only from sizes and constants: masks of ones, tables of positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading.records import Ref, Row, mapped

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


def value_of(rows: Sequence[Row], ref: Any, known: dict[int, Any]) -> Any:
    """Return the value of `ref`, computed on the CPU if it is a row's; `known` caches the values of rows.

    Raises `LiftError` if it depends on the image, the network's tensors or random numbers. Tensors count as finite.
    """
    if not isinstance(ref, Ref):
        return _CPU if isinstance(ref, torch.device) else ref
    if ref.row not in known:
        known[ref.row] = _computed(rows, rows[ref.row], known)
    value = known[ref.row]
    for part in ref.path:
        value = value[part]
    return value


def _computed(rows: Sequence[Row], row: Row, known: dict[int, Any]) -> Any:
    if row.kind == "number" or (row.kind == "call" and not _holds_tensors(row.value)):
        return row.value
    if row.kind == "constant":
        return row.args[0]
    if row.target in _FINITE:
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


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)
