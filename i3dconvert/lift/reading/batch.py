"""Axes that follow the batch: found by runs with several batch sizes, and stored as the fact `batch` of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from i3dconvert.lift.facts import facts_of

Multiples = Any
"""The ratio of each axis of a tensor to the batch; 0 if it does not follow the batch. Nested like the value."""


class PerSize(int):
    """A multiple that depends on height and width, such as the number of windows."""


def rows(node: Any) -> int:
    """Return how many rows a tensor has for each image of the batch; 0 if its first axis does not follow the batch."""
    value = facts_of(node).get("value") if isinstance(node, fx.Node) else None
    return rows_in(value, facts_of(node)["batch"]) if isinstance(value, Tensor) else 0


def rows_in(value: Any, multiples: Multiples) -> int:
    """Return `rows` of a value whose axes have these ratios to the batch."""
    return int(multiples[0]) if isinstance(value, Tensor) and value.dim() and multiples else 0


def is_image(node: Any) -> bool:
    """Return whether a value, or each of several, is `(batch, C, H, W)`, so that it has a clip layout."""
    value, multiples = facts_of(node)["value"], facts_of(node)["batch"]
    if isinstance(value, tuple | list):
        return bool(value) and all(_is_image(*pair) for pair in zip(value, multiples, strict=True))
    if isinstance(value, dict):
        return bool(value) and all(_is_image(item, multiples[key]) for key, item in value.items())
    return _is_image(value, multiples)


def _is_image(value: Any, multiples: Multiples) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and one_each(value, multiples)


def one_each(value: Any, multiples: Multiples) -> bool:
    """Return whether a tensor has one row for each image, at every height and width."""
    return rows_in(value, multiples) == 1 and not isinstance(multiples[0], PerSize)


def varies(node: fx.Node) -> bool:
    """Return whether a value, or one of several, has an axis that follows the batch, unlike tables of positions."""
    return any(any(multiples) for multiples in _of_tensors(facts_of(node)["value"], facts_of(node)["batch"]))


def holds_batch(node: fx.Node) -> bool:
    """Return whether a value is, or has, a size that follows the batch."""
    value, multiples = facts_of(node)["value"], facts_of(node)["batch"]
    if isinstance(value, tuple):
        return bool(value) and bool(multiples) and bool(multiples[0])
    return any(multiples) if isinstance(value, Tensor) else bool(multiples)


def _of_tensors(value: Any, multiples: Multiples) -> Iterator[tuple[int, ...]]:
    if isinstance(value, Tensor):
        yield multiples or ()
    elif isinstance(value, tuple | list):
        for pair in zip(value, multiples or (), strict=False):
            yield from _of_tensors(*pair)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _of_tensors(item, (multiples or {}).get(key))
