"""Record elements that a boolean mask picks: `y[y < 0] *= 0.1` is read as `torch.where`.

The number of elements depends on the data, so they have no shape in a graph. The whole tensor stands for them while
code computes with each element by itself and writes them back at the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading import known
from i3dconvert.lift.reading.recording import Recorder
from i3dconvert.lift.reading.records import Ref, Row, leaves, line_of_the_network
from i3dconvert.lift.reading.values import value_of

_BY_ELEMENT = frozenset(
    """
    add sub rsub mul div truediv floordiv floor_divide mod remainder fmod pow
    neg pos abs and or xor invert eq ne lt le gt ge true_divide
    multiply subtract divide negative exp log log2 log10 log1p expm1 sqrt rsqrt reciprocal square sin cos tanh
    sigmoid relu relu6 leaky_relu elu gelu silu softplus hardtanh floor ceil round trunc sign clamp clamp_min
    clamp_max clip maximum minimum isnan isinf isfinite nan_to_num logical_and logical_or logical_not
    logical_xor to float double half bfloat16 type_as clone detach
    """.split()
)
_WITH_DOMAIN = frozenset(
    """
    div truediv true_divide divide floordiv floor_divide mod remainder fmod pow exp log log2 log10 log1p sqrt rsqrt
    reciprocal
    """.split()
)
"""Those of them whose values or gradients may be infinite."""
_HARMLESS = 0.5
"""In the domain of all functions in `_BY_ELEMENT`, and of their inverses."""
_DEPENDS = (
    "which depends on the data, and a graph can't represent that; use torch.where(mask, a, b), or multiply by the mask"
)
_PLACES: dict[str, dict[str, Any]] = {"where": {}, "nonzero": {"as_tuple": True}}
"""Functions that return the places where a mask is true, and the arguments with which they return all axes apart."""
_ATTRIBUTES = frozenset(("dtype", *known.DEVICES))


class Picked(NamedTuple):
    """What a tensor stands for: the elements that a mask with this row and number of axes picks in a line of code."""

    mask: Ref
    axes: int
    line: str
    beside: Tensor | None
    """Where the mask is false, with axes for all of the tensor's; None for integers, which have no gradients."""


class MaskRecorder(Recorder):
    """Record elements that a boolean mask picks as the whole tensor that they are picked from."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._picked: dict[int, Picked] = {}
        """By the identity of the tensor that stands for them."""
        self._places: dict[int, tuple[Ref, int, Tensor]] = {}
        """By the identity of an index of the places where a mask is true: the mask's row, the axis, and the mask."""
        self._in_reach = False

    def ref(self, value: Any) -> Any:
        if not (self._picked or self._places):
            return super().ref(value)
        if isinstance(value, Tensor) and id(value) in self._picked and not self._in_reach:
            raise self._beyond(value, "a use")
        if isinstance(value, Tensor) and id(value) in self._places:
            raise LiftError(f"{self.place()} uses the places where a mask is true, {_DEPENDS}")
        return super().ref(value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], self._index(args[1]), *args[2:])
        elif name in _PLACES and (places := self._places_of(name, *args, **kwargs)) is not None:
            return places
        elif name == "masked_select" and len(args) == 2 and args[0].shape == args[1].shape:
            func, name = Tensor.__getitem__, "__getitem__"
        given = leaves((args, kwargs)) if self._picked else ()
        picked = [one for one in given if isinstance(one, Tensor) and id(one) in self._picked]
        if not picked:
            if name == "__getitem__" and self._picks(*args):
                value, beside = self._whole_of(*args)
                self._picked[id(value)] = Picked(self.ref(args[1]), args[1].dim(), line_of_the_network(), beside)
                return value
            return super().__torch_function__(func, types, args, kwargs)
        if name == "__get__" and func.__self__.__name__ in _ATTRIBUTES:
            return super().__torch_function__(func, types, args, kwargs)
        found = self._picked[id(picked[0])]
        if not all(_alike(self.rows, self._picked[id(one)].mask, found.mask) for one in picked):
            raise self._beyond(picked[0], "a use with another mask")
        self._in_reach = True
        try:
            if name == "__setitem__" and args[2] is picked[0] and isinstance(args[1], Tensor):
                if _alike(self.rows, self.ref(args[1]), found.mask):
                    return self._written_back(*args)
            elif _bare(name) in _BY_ELEMENT and self._each_by_itself(picked[0].dim() - found.axes, (args, kwargs)):
                if _bare(name) in _WITH_DOMAIN:
                    first = self._harmless(args[0], in_place=_in_place(name))
                    args = (first, *map(self._harmless, args[1:]))
                value = super().__torch_function__(func, types, args, kwargs)
                self._picked[id(value)] = found
                return value
        finally:
            self._in_reach = False
        raise self._beyond(picked[0], name)

    def _places_of(self, name: str, mask: Any, *rest: Any, **options: Any) -> tuple[Tensor, ...] | None:
        """Return indices that stand for the places where a mask is true: `torch.where(y < 0)`."""
        if rest or options != _PLACES[name] or not self._picks(mask, mask):
            return None
        places = tuple(torch.empty(0, dtype=torch.int64, device="meta") for _ in range(mask.dim()))
        self._places |= {id(one): (self.ref(mask), axis, mask) for axis, one in enumerate(places)}
        self._alive |= {id(one): one for one in places}
        return places

    def _index(self, index: Any) -> Any:
        """Return an index with a mask instead of the places where it is true, and places for a mask of constants.

        A tensor without axes becomes a number.
        """
        if not isinstance(index, tuple):
            return self._number(index)
        known = [self._places[id(one)] for one in index if id(one) in self._places]
        if known:
            _, _, mask = known[0]
            axes = [(self.ref(mask), axis) for axis in range(mask.dim())]
            return mask if len(index) == len(known) and [one[:2] for one in known] == axes else index
        whole: list[Any] = []
        for one in index:
            masks = isinstance(one := self._number(one), Tensor) and one.dtype is torch.bool and one.dim() > 0
            constant = masks and not self._depends_on_data(one)
            places = self._recorded(Tensor.unbind, self._recorded(Tensor.nonzero, one), 1) if constant else (one,)
            whole += places
        return tuple(whole)

    def _number(self, index: Any) -> Any:
        """Return an index without axes as a number or a bool, which torch makes of it, too."""
        if not isinstance(index, Tensor) or index.dim() or index.dtype not in (torch.bool, torch.int32, torch.int64):
            return index
        return self._value(Tensor.item, "an index", (index,), {})

    def _picks(self, tensor: Any, index: Any) -> bool:
        """Return whether an index is a mask that depends on the data."""
        if not (isinstance(index, Tensor) and index.dtype is torch.bool and isinstance(tensor, Tensor)):
            return False
        return index.dim() > 0 and index.shape == tensor.shape[: index.dim()] and self._depends_on_data(index)

    def _depends_on_data(self, tensor: Tensor) -> bool:
        with suppress(Exception):
            value_of(self.rows, self.ref(tensor), self._values)
            return False
        return True

    def _whole_of(self, tensor: Tensor, mask: Tensor) -> Any:
        """Record the tensor that stands for the elements at `mask`; the others get a harmless value.

        Otherwise functions outside of their domain, such as `y[y > 0].log()`, would give gradients of NaN.
        """
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return self._recorded(Tensor.clone, tensor), None
        beside = self._recorded(torch.logical_not, self._spread(mask, tensor))
        return self._recorded(Tensor.masked_fill, tensor, beside, _HARMLESS), beside

    def _harmless(self, value: Any, in_place: bool = False) -> Any:
        """Record an operand of a function with a domain, again with a harmless value beside the picked elements."""
        picked = self._picked.get(id(value))
        if picked is None or picked.beside is None or picked.beside.shape != value.shape:
            return value
        fill = Tensor.masked_fill_ if in_place else Tensor.masked_fill
        return self._recorded(fill, value, picked.beside, _HARMLESS)

    def _spread(self, mask: Tensor, tensor: Tensor) -> Any:
        """Record `mask` with axes for all of the tensor's."""
        return self._recorded(Tensor.__getitem__, mask, (..., *[None] * (tensor.dim() - mask.dim())))

    def _written_back(self, whole: Tensor, mask: Tensor, values: Tensor) -> None:
        """Record `whole[mask] = values`, where `values` stands for the elements at `mask`."""
        if whole.shape != values.shape:
            raise self._beyond(values, "a use with another shape")
        new = self._recorded(torch.where, self._spread(mask, whole), values, whole)
        self._recorded(Tensor.copy_, whole, new)

    def _recorded(self, func: Any, *args: Any) -> Any:
        return super().__torch_function__(func, (), args)

    def _each_by_itself(self, inner: int, given: Any) -> bool:
        """Return whether the other tensors of a call broadcast alike to the elements and to the whole tensor."""
        tensors = (one for one in leaves(given) if isinstance(one, Tensor) and id(one) not in self._picked)
        return all(one.dim() <= inner or one.shape == (1,) for one in tensors)

    def _beyond(self, picked: Tensor, use: str) -> LiftError:
        line = self._picked[id(picked)].line
        return LiftError(
            f"{self.place()}: {use} of the elements that a mask picks ({line}) needs their number, {_DEPENDS}"
        )


def _alike(rows: Sequence[Row], one: Any, other: Any) -> bool:
    """Return whether two values of a recording are the same, or computed alike from the same ones."""
    if isinstance(one, Ref) and isinstance(other, Ref):
        if one == other:
            return True
        first, second = rows[one.row], rows[other.row]
        if one.path != other.path or first.kind != "call" or second.kind != "call" or first.target != second.target:
            return False
        name = _bare(getattr(first.target, "__name__", ""))
        return name in _BY_ELEMENT and _alike(rows, (first.args, first.kwargs), (second.args, second.kwargs))
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(_alike(rows, a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(rows, value, other[key]) for key, value in one.items())
    return one is other or (not isinstance(one, Tensor) and bool(one == other))


def _in_place(name: str) -> bool:
    """Return whether a function writes into its first argument: `mul_`, `__imul__`."""
    if name.startswith("__"):
        return name.startswith("__i") and name[3:-2] in _BY_ELEMENT
    return name.endswith("_")


def _bare(name: str) -> str:
    """Return a function's name without the marks of operators and writes: `__imul__`, `mul_` → `mul`."""
    operator = name.startswith("__") and name.endswith("__")
    bare = name.strip("_") if operator else name.removesuffix("_")
    return bare[1:] if operator and bare not in _BY_ELEMENT and bare[1:] in _BY_ELEMENT else bare
