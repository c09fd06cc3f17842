"""Record the calls of modules, too, with their inputs, outputs and rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading.masks import MaskRecorder
from i3dconvert.lift.reading.numbers import Remembered
from i3dconvert.lift.reading.records import Call, Lost, Ref, as_plain, forward_of, leaves, mapped, positional
from i3dconvert.lift.reading.views import written


class CallRecorder(MaskRecorder):
    """Record the calls of modules, too, with their inputs, outputs and rows."""

    def hooked(self, network: nn.Module) -> list[Any]:
        """Register hooks that record which module is being called; returns their handles."""
        handles = []
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name), prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leaving, always_call=True))
            if name and self._is_whole(module, name):
                handles.append(module.register_forward_pre_hook(self._starting, with_kwargs=True))
                handles.append(module.register_forward_hook(self._ending(name, module), prepend=True))
        return handles

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs = () if self._whole else tuple(self._inputs(module, args, kwargs))
            self.calls.append(Call(name, self._open[-1] if self._open else -1, len(self.rows), inputs))
            self._open.append(len(self.calls) - 1)

        return enter

    def _inputs(self, module: nn.Module, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
        """Yield a module's inputs, as far as they come from earlier rows."""
        names = _names_of_inputs(module)
        beyond = (f"input_{index}" for index in range(len(names), len(args)))
        for name, value in (*zip((*names, *beyond), args, strict=False), *kwargs.items()):
            with suppress(LiftError):
                yield name, mapped(value, self._given)

    def _given(self, value: Any) -> Any:
        tensor = isinstance(value, Tensor) and (id(value) in self._refs or id(value) in self._names)
        known = tensor or isinstance(value, Remembered)
        return self.ref(value) if known else None

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self.calls[self._open[-1]]
        if not self._whole:
            with suppress(LiftError):
                call.output = mapped(as_plain(output), self._given)
        call.end = len(self.rows)
        self._open.pop()

    def _starting(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = positional(args, kwargs, _names_of_inputs(module))
        refs = mapped(given, self.ref)
        before = {id(one): (self._written[id(one)], self._refs.get(id(one))) for one in (*args, *kwargs.values())}
        self._whole.append((len(self.rows), len(self.decisions), refs, len(self.calls), len(self._order), before))

    def _ending(self, name: str, module: nn.Module) -> Callable[..., Tensor | None]:
        own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}

        def end(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            start, decided, refs, calls, known, before = self._whole.pop()
            if self._whole or any(isinstance(one, Remembered) for one in leaves(output)):
                return None  # sizes that it returns may be computed in it
            through = self._through_view(start, args, output)
            if not self._closed(start, (refs, through and through[:2]), own, through is not None):
                return None
            again = {start + i for i, row in enumerate(self.rows[start:]) if row.kind in ("get", "constant")}
            del self.rows[start:], self.decisions[decided:], self.calls[calls:]
            self._through_views = [row for row in self._through_views if row < start]
            unchanged = {one: ref for one, (times, ref) in before.items() if times == self._written[one]}
            for identity in dict.fromkeys(self._order[known:]):
                ref, made_by = self._refs.get(identity), self._made_by.get(identity)
                if isinstance(ref, Ref) and ref.row >= start:
                    if isinstance(unchanged.get(identity), Ref):
                        self._refs[identity] = unchanged[identity]
                    elif ref.row in again or identity in self._names:
                        del self._refs[identity]
                    else:
                        self._refs[identity] = Lost(f"a tensor that was created inside {name}, which is kept whole")
                if made_by is not None and made_by.row >= start:
                    del self._made_by[identity]
            if isinstance(ref := unchanged.get(id(output)), Ref):
                self.returned[Ref(len(self.rows))] = ref
                with self.unrecorded():
                    output = self._own(output)
            new = self.row("module", name, refs[0], refs[1], output)
            self._keep(output, new)
            if id(output) in before:
                self._changed(output, new)
            if through is not None:  # a later use of the viewed tensor sees what the module wrote
                base, steps, whole = through
                self._write_through(self.row("call", written, (base, steps, "tensor/copy_", (new,), {}), value=whole))
            return cast(Tensor, output)

        return end

    def _through_view(self, start: int, args: Any, output: Any) -> tuple[Ref, Any, Tensor] | None:
        """Return the base, the steps and the value of an in-place module's only write through its input, a view."""
        rows = [row for row in self._through_views if row >= start]
        if len(rows) != 1 or not args or not isinstance(output, Tensor) or output is not args[0]:
            return None
        base, steps, *_ = self.rows[rows[0]].args
        if base.row >= start or steps != self._lineage(output)[1]:
            return None  # a view that the module itself made
        return base, steps, self.rows[rows[0]].value

    def _closed(self, start: int, given: Any, own: set[int], through: bool) -> bool:
        """Return whether the rows from `start` use only `given` values, the module's own tensors and constants."""
        if not through and any(row >= start > self.rows[row].args[0].row for row in self._through_views):
            return False
        allowed = {ref for ref in leaves(given) if isinstance(ref, Ref)}
        rows = {ref.row for ref in allowed}
        for row in self.rows[start:]:
            for ref in leaves((row.args, row.kwargs)):
                if isinstance(ref, Ref) and ref.row < start and ref not in allowed and ref.row not in rows:
                    kept = self.rows[ref.row]
                    if kept.kind != "get" or id(kept.value) not in own:
                        return False
        return True


def _names_of_inputs(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the positional parameters of a module's forward."""
    forward = forward_of(module)
    return _positional(forward)[1 if inspect.ismethod(module.forward) else 0 :]


@cache
def _positional(forward: Callable[..., Any]) -> tuple[str, ...]:
    with suppress(TypeError, ValueError):
        parameters = inspect.signature(forward).parameters.values()
        return tuple(one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))
    return ()
