"""Record the calls of modules, too, with their inputs, outputs and rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from torch import Tensor, nn

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading.numbers import Remembered
from i3dconvert.lift.reading.recording import Recorder
from i3dconvert.lift.reading.records import Call, Lost, Ref, as_plain, leaves, mapped, positional


class CallRecorder(Recorder):
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
        names = _names_of_inputs(type(module).forward)
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
        given = positional(args, kwargs, _names_of_inputs(type(module).forward))
        refs = mapped(given, self.ref)
        self._whole.append((len(self.rows), len(self.decisions), refs, len(self.calls), len(self._order)))

    def _ending(self, name: str, module: nn.Module) -> Callable[..., None]:
        own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}

        def end(module: nn.Module, args: Any, output: Any) -> None:
            start, decided, refs, calls, known = self._whole.pop()
            if self._whole or not self._closed(start, refs, own):
                return
            again = {start + i for i, row in enumerate(self.rows[start:]) if row.kind in ("get", "constant")}
            del self.rows[start:], self.decisions[decided:], self.calls[calls:]
            self._through_views = [row for row in self._through_views if row < start]
            for identity in dict.fromkeys(self._order[known:]):
                ref, made_by = self._refs.get(identity), self._made_by.get(identity)
                if isinstance(ref, Ref) and ref.row >= start:
                    if ref.row in again or identity in self._names:
                        del self._refs[identity]
                    else:
                        self._refs[identity] = Lost(f"a tensor that was created inside {name}, which is kept whole")
                if made_by is not None and made_by.row >= start:
                    del self._made_by[identity]
            self._keep(output, self.row("module", name, refs[0], refs[1], output))

        return end

    def _closed(self, start: int, given: Any, own: set[int]) -> bool:
        """Return whether the rows from `start` use only the module's inputs, its own tensors and constants."""
        if any(row >= start > self.rows[row].args[0].row for row in self._through_views):
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


@cache
def _names_of_inputs(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the positional parameters of a class's forward."""
    with suppress(TypeError, ValueError):
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        return tuple(one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))
    return ()
