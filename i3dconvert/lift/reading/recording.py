"""Record a run of a network: every torch function that its code calls, with the arguments and the module.

A `TorchFunctionMode` receives all calls, with real tensors on the meta device, so there are no proxies and no patches
of torch. Hooks run. Tensors are recognised by identity, so parameters keep their names however the code accesses
them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading import known
from i3dconvert.lift.reading.copying import empty_like
from i3dconvert.lift.reading.records import Ref, dtype_named, leaves, line_of_the_network, mapped, positional, to_meta
from i3dconvert.lift.reading.values import is_assumed, value_of
from i3dconvert.lift.reading.views import OVERLOAD, TURNS, written_to
from i3dconvert.lift.reading.writes import Writes

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Recorder(Writes):
    """Records the functions of torch that a network calls."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._unrecorded:
            return func(*args, **(kwargs or {}))
        args, kwargs = positional(args, kwargs or {}, known.FIRST.get(func, ("input",)))
        name = getattr(func, "__name__", str(func))
        if name.startswith("_record_function"):
            return func(*args, **kwargs)
        attribute = getattr(getattr(func, "__self__", None), "__name__", None) if name in known.ACCESS else None
        if func is Tensor.register_hook:
            raise LiftError(f"{self.place()} registers a hook on a tensor, which a graph can't have")
        if func in known.NO_STEP:
            return None
        if name == "__getitem__" and isinstance(args[1], str):
            raise LiftError(f"{self.place()} looks up {args[1]!r} in its input: wrap it so that it takes an image")
        if attribute in known.DEVICES and args[0].is_meta:
            self.asks(line_of_the_network())
            return self.device if attribute == "device" else attribute == f"is_{self.device.type}"
        if func in known.PLAIN or func in known.UNSEEN or attribute in known.PLAIN_ATTRIBUTES:
            return func(*args, **kwargs)
        if name == "__set__" and attribute == "_backward_hooks":
            return func(*args, **kwargs)  # by set_, before it is recorded
        if name == "__set__":
            tensor = self._names.get(id(args[0]), "a tensor")
            advice = "; compute a new tensor instead (weight * mask)" if attribute == "data" else ""
            raise LiftError(f"{self.place()} assigns to {attribute} of {tensor}, which a graph can't do{advice}")
        if func in known.VALUES:
            if self._whole and self._names.get(id(args[0]), "").endswith("num_batches_tracked"):
                return type(func(torch.zeros(())))(1)  # BatchNorm's count, used to average its statistics
            return self._value(func, name, args, kwargs)
        if name == "_set_grad_enabled":
            self._graded = bool(args[0])
            return func(*args, **kwargs)
        if name in ("_enter_autocast", "_exit_autocast"):
            if name == "_enter_autocast" and dict(zip(("type", "dtype", "enabled"), args, strict=False)).get("enabled"):
                raise LiftError(f"{self.place()}: the network enables autocast in its forward")
            return func(*args, **kwargs)
        if func is Tensor.type and (dtype := dtype_named(*args[1:])) is not None:
            func, args = Tensor.to, (args[0], dtype)
        if isinstance(func, OVERLOAD):
            func, name = self._below(func, args), name.partition(".")[0]
        if func is torch.tensor and isinstance(args[0], np.ndarray):  # torch copies an array, but warns of tensors
            array = self.__torch_function__(torch.as_tensor, types, args, kwargs)
            return self.__torch_function__(Tensor.clone, types, (array,))
        if attribute == "data":  # it shares memory, without a record of that
            func = Tensor.detach
        if name == "add_" and self._names.get(id(args[0]), "").endswith("num_batches_tracked"):
            return args[0]  # BatchNorm's count, which only its momentum uses
        if isinstance(out := kwargs.get("out"), Tensor):
            kwargs = {key: one for key, one in kwargs.items() if key != "out"}
            value = self.__torch_function__(func, types, args, kwargs)
            if out.shape != value.shape:
                raise LiftError(f"{self.place()}: {name} writes into a tensor of another shape (out=)")
            return self.__torch_function__(Tensor.copy_, types, (out, value))
        refs = mapped((args, kwargs), self.ref)
        if name in TURNS:
            return self._turn(args[0], name, args, kwargs, refs)
        target = written_to(func, name, args, kwargs)
        try:
            # With gradients, torch refuses to write into one of several views (chunk, unbind).
            with torch.set_grad_enabled(torch.is_grad_enabled() and target is None):
                value = self._computed(func, args, kwargs)
        except Exception:
            value = self._of_constants(func, *refs)
            if value is None:
                self.failed_at = self.failed_at or f"{name} in {self.place()}"
                raise
        if func in known.SIZES or attribute == "shape":
            if self._is_of_network(args[0]):
                return value
            query: Any = Tensor.size if attribute else func
            return self._sizes(value, self.row("call", query, refs[0], refs[1], value))
        if isinstance(value, bool | int | float | complex):
            return self._value(func, name, args, kwargs)
        if target is not None:
            self._write(target, func, name, args, refs, value)
        else:
            if args and value is args[0] and isinstance(refs[0][0], Ref):
                if name in known.MAY_GIVE_BACK:
                    value = self._as_its_own(value, name, args, kwargs)
                elif not self._whole:
                    value = self._own(value)
                    self.returned[Ref(len(self.rows))] = refs[0][0]
            self._keep(value, self.row("call", func, refs[0], refs[1], value))
        return value

    def _below(self, func: Any, args: Any) -> Any:
        """Return the function for an operation that `KernelsSeen` makes visible (script functions, `torch.from_numpy`,
        `Variable(x)`), and record the sizes that this C++ code may have read."""
        for tensor in args:
            if isinstance(tensor, Tensor) and any(type(one) is int for one in leaves(args)):
                self.row("call", Tensor.size, (self.ref(tensor),), {}, tensor.shape)
        return Tensor.clone if func is torch.ops.aten.lift_fresh.default else func

    def _as_its_own(self, value: Tensor, name: str, args: Any, kwargs: Any) -> Tensor:
        """Return a new tensor if a function returned its input, which it may not do at other sizes or dtypes."""
        if name in known.CASTS or any(isinstance(one, Tensor | torch.dtype) for one in (*args[1:], *kwargs.values())):
            new = torch.empty_like(value).requires_grad_(value.requires_grad)
            storages = [value.untyped_storage(), new.untyped_storage()]
            self._memory += storages
            group = set().union(*(self._casts.get(id(one), {id(one)}) for one in storages))
            self._casts |= dict.fromkeys(group, group)
            return new
        return value.view_as(value)

    @staticmethod
    def _computed(func: Any, args: Any, kwargs: Any) -> Any:
        if func in known.NORMS and args:
            return empty_like(args[0])
        if func is F.interpolate:
            kwargs, args = {**dict(zip(known.INTERPOLATE, args, strict=False)), **kwargs}, ()
            if kwargs.get("mode") in known.SLOW_MODES and kwargs["input"].dim() == 4:
                kwargs |= {"mode": "nearest", "align_corners": None, "antialias": False}
        return to_meta(func(*to_meta(args), **to_meta(kwargs)))

    def _of_constants(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return a result whose shape depends on constants and sizes (`nonzero` of a mask); None for any other."""
        with suppress(Exception):
            given, options = mapped((args, kwargs), lambda one: value_of(self.rows, one, self._values))
            return to_meta(func(*given, **options))

    def _value(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Return a value that the network reads from tensors, if it depends only on sizes and constants."""
        refs = mapped((args, kwargs), self.ref)
        try:
            given, options = mapped(refs, lambda one: value_of(self.rows, one, self._values))
            value = func(*given, **options)
            for ref in leaves(refs):
                if is_assumed(self.rows, ref):
                    self.answer(ref, value)
            return value
        except LiftError as error:
            raise LiftError(f"{self.place()}: the network reads a tensor's value ({name}), which {error}") from None

    def _is_of_network(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (id(value) in self._names or id(value) not in self._refs)
