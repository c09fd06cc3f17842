"""The forms of a value inside a module's code, and its conversion at the border between two modules.

Inside, a value has one of three forms:

* `"clip"`: `(N, C, T, H, W)`
* `(axis, times)`, frames: that axis has N·T·times entries, `times` of them for each frame
* `"plain"`: it does not vary with the clip

and lists and dicts of values have lists and dicts of forms. At a border, frames are split in place into
`(…, N, T, …)`, or `(…, N, T, times, …)` where `times` is not 1 (`(…, N, T·times, …)` where it follows the size), so
that each module reads N from its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from i3dconvert.lift.layout import Layout, fold, unfold
from i3dconvert.lift.reading import PerSize

Form = Any
"""`"clip"`, `"plain"`, `(axis, times)`, a list or dict of forms, or None: unknown, so it can't cross a border."""

NESTED = (list, dict)  # a tuple, which torch.compile supports

FRAMES: Form = (0, 1)
"""`(N·T, …)`."""


def form_of(value: Any, multiples: Any, layout: Layout) -> Form:
    """Return the form of a value whose axes in 2D are `multiples` of the batch."""
    if layout is Layout.PLAIN:
        return "plain"
    if isinstance(value, tuple | list):
        return [form_of(*pair, layout) for pair in zip(value, multiples, strict=True)]
    if isinstance(value, dict):
        return {key: form_of(item, multiples[key], layout) for key, item in value.items()}
    if layout is Layout.CLIP:
        return "clip"
    found = enumerate(multiples or ()) if isinstance(value, Tensor) else ()
    split = [(axis, 1 if isinstance(times, PerSize) else times) for axis, times in found if times]
    return "plain" if not split else split[0] if len(split) == 1 else None


def parts(form: Form) -> Iterator[Form]:
    """Yield the forms of all nested values."""
    if isinstance(form, list):
        for one in form:
            yield from parts(one)
    elif isinstance(form, dict):
        yield from parts(list(form.values()))
    else:
        yield form


def can_cross(form: Form) -> bool:
    """Return whether a value of this form can cross a border."""
    return all(one is not None for one in parts(form))


def is_frames(form: Form) -> bool:
    """Return whether the form is that of one tensor over frames."""
    return isinstance(form, tuple)


def like(value: Any, items: list[Any]) -> Any:
    """Return the items in a list, tuple or named tuple of the type of `value`."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def enter(value: Any, form: Form) -> Any:
    """Convert a value that crossed the border to its inner form: `(…, N, T, times, …)` → `(…, N·T·times, …)`."""
    if isinstance(form, list):
        return like(value, [enter(*pair) for pair in zip(value, form, strict=True)])
    if isinstance(form, dict):
        return {key: enter(item, form[key]) for key, item in value.items()}
    if not is_frames(form):
        return value
    axis, times = form
    return value.flatten(axis, axis + 1 + (times > 1))


def leave(value: Any, form: Form, clips: int) -> Any:
    """Convert an inner value for the border: `(…, N·T·times, …)` → `(…, N, T, times, …)`, where N is `clips`."""
    if isinstance(form, list):
        return like(value, [leave(*pair, clips) for pair in zip(value, form, strict=True)])
    if isinstance(form, dict):
        return {key: leave(item, form[key], clips) for key, item in value.items()}
    if not is_frames(form):
        return value
    axis, times = form
    return torch.unflatten(value, axis, (clips, -1, times) if times > 1 else (clips, -1))


def clips_in(value: Any, form: Form) -> Any:
    """Return N, read from a value that crossed the border; None if no part of it tells."""
    if isinstance(form, NESTED):
        pairs = zip(value, form, strict=True) if isinstance(form, list) else ((value[key], form[key]) for key in form)
        return next((found for pair in pairs if (found := clips_in(*pair)) is not None), None)
    if form == "clip":
        return value.size(0)
    return value.size(form[0]) if is_frames(form) else None


def converted(value: Any, is_in: Form, wanted: Form, clips: Any) -> Any:
    """Convert a value to another form; plain values, and forms that no rule connects, are unchanged."""
    if is_in == wanted or clips is None:
        return value
    if isinstance(is_in, list) and isinstance(wanted, list) and len(is_in) == len(wanted):
        return like(value, [converted(*each, clips) for each in zip(value, is_in, wanted, strict=True)])
    if is_in == "clip" and is_frames(wanted):
        return fold(value)
    if is_frames(is_in) and wanted == "clip":
        return unfold(value, clips)
    return value
