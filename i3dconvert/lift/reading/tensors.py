"""Know a run's tensors by identity: the rows that they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading.numbers import Remembered, remember
from i3dconvert.lift.reading.records import (
    Again,
    Call,
    Decision,
    Lost,
    Ref,
    Row,
    autograd_functions,
    line_of_the_network,
    running,
)


class Tensors(TorchFunctionMode):
    """Records a run in `rows`; `names` maps identities of the network's tensors to their names."""

    def __init__(self, names: Mapping[int, str], is_whole: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._refs: dict[int, Any] = {}
        self._made_by: dict[int, Ref] = {}
        self._owner: dict[Ref, Tensor] = {}
        self._order: list[int] = []
        """The identities of tensors in the order in which they became known or changed."""
        self._sharing: dict[int, dict[int, Tensor]] = {}
        """Tensors by the identity of the memory that they share."""
        self._passed: dict[int, list[Tensor]] = {}
        """By identity, the tensors that are one: layers such as nn.Identity returned the first of them unchanged."""
        self.decisions: list[Decision] = []
        self.output: Any = None
        self.left_keys = False
        self.device = torch.device("cpu")
        """The device that the network sees: its own, because its code may decide on it."""
        self.asked: list[tuple[int, str]] = []
        """The rows before which the code asked for the device or its surroundings, and the lines."""
        self._codes, self.functions = autograd_functions(), set[str]()
        """The names of the network's own autograd functions, whose backward is not recorded."""
        self.failed_at = ""
        self._names, self._is_whole = names, is_whole
        self._alive: dict[int, Tensor] = {}  # an identity is unique only while its object lives
        self._memory: list[Any] = []
        self.calls: list[Call] = []
        self._open: list[int] = []
        self._graded = True
        self._unrecorded = False
        self._values: dict[int, Any] = {}

    def row(self, kind: str, target: Any, args: Any = (), kwargs: Any = None, value: Any = None) -> Ref:
        """Add a row and return its place."""
        if self._codes:
            self.functions.update(running(self._codes))
        self.rows.append(Row(kind, target, args, kwargs or {}, self._scope, value, self._graded, self._call))
        return Ref(len(self.rows) - 1)

    @property
    def _call(self) -> int:
        """The index of the innermost call of a module that is running."""
        return self._open[-1] if self._open else 0

    @property
    def _scope(self) -> str:
        """The module whose code is running."""
        return self.calls[self._open[-1]].name if self._open else ""

    def input(self, image: Tensor) -> Tensor:
        """Record the network's input image."""
        self._keep(image, self.row("input", "clip", value=image))
        return image

    def number(self, value: Any, operation: str, operands: tuple[Any, ...]) -> Ref:
        """Record a number computed from sizes."""
        return self.row("number", operation, tuple(map(self.ref, operands)), value=value)

    def hashed(self) -> None:
        """Note that a size became a key, perhaps of a cache that outlives the run."""
        self.left_keys = True

    def asks(self, line: str) -> None:
        """Note that `line` asks for the device or the surroundings."""
        self.asked.append((len(self.rows), line))

    def decision(self, result: bool, operation: str, operands: tuple[Any, ...]) -> None:
        """Record a decision on sizes."""
        self._decided(operation, tuple(map(self.ref, operands)), result)

    def answer(self, ref: Ref, value: Any) -> None:
        """Record the answer to whether values of the image are finite, which is asked again at each call."""
        if not isinstance(value, bool | int | float):
            raise LiftError("depends on the data")
        self._decided("item", (ref,), value)

    def _decided(self, operation: str, refs: tuple[Any, ...], result: Any) -> None:
        line = line_of_the_network()
        self.decisions.append(Decision(operation, refs, result, len(self.rows), self._scope, line, self._call))

    def ref(self, value: Any) -> Any:
        """Return a value as it appears in a row: its place, or itself if it is constant."""
        if isinstance(value, Remembered):
            if value.notes is not self:
                raise LiftError(f"{self.place()} uses a size that was kept outside the network from an earlier run")
            return value.ref
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            value = torch.tensor(value)  # a new one each time, because code may write into the array
        if not isinstance(value, Tensor):
            return value.item() if isinstance(value, np.generic) else value
        found = self._refs.get(id(value))
        if isinstance(found, Again):
            found = self._again(value, found)
        if isinstance(found, Lost):
            raise LiftError(f"{self.place()} uses {found.what}")
        if found is None:
            name = self._names.get(id(value))
            if name is None and isinstance(value, nn.Parameter):
                raise LiftError(
                    f"{self.place()} uses a parameter that is not registered in the network: its module is in a Python "
                    "list or dict (use nn.ModuleList or nn.ModuleDict)"
                )
            if name is None and value.is_meta:
                raise LiftError(
                    f"{self.place()} uses a tensor of unknown origin (torch.func and torch.vmap hide theirs: compute "
                    "all images at once instead; globals and caches may keep one from an earlier run)"
                )
            found = self.row("get", name, value=value) if name else self.row("constant", None, (value,), value=value)
            self._keep(value, found)
        return found

    def _again(self, view: Tensor, found: Again) -> Ref:
        """Record again the step that made a view, and return its place."""
        step = self.rows[found.step.row]
        row = self.row("call", step.target, (self.ref(found.of), *step.args[1:]), step.kwargs, step.value)
        ref = Ref(row.row, found.step.path)
        self._refs |= {id(one): ref for one in self._same(view)}
        self._owner[ref] = view
        return ref

    def _same(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors that are one with `tensor`; the others are what layers returned for the first."""
        return self._passed.setdefault(id(tensor), [tensor])

    def _keep(self, value: Any, ref: Ref) -> None:
        """Recognise tensors by identity. An in-place operation returns its input tensor."""
        if isinstance(value, Tensor):
            if value.layout is not torch.strided:
                raise LiftError(
                    f"{self.place()} uses a tensor that is not dense ({value.layout}): use to_dense() of it"
                )
            self._alive[id(value)] = value
            self._order.append(id(value))
            memory = value.untyped_storage()
            if id(memory) not in self._sharing:
                self._memory.append(memory)
            self._sharing.setdefault(id(memory), {})[id(value)] = value
            self._refs[id(value)], self._owner[ref] = ref, value
            self._made_by.setdefault(id(value), ref)
        elif isinstance(value, tuple | list):
            for index, item in enumerate(value):
                self._keep(item, Ref(ref.row, (*ref.path, index)))
        elif isinstance(value, dict):
            for key, item in value.items():
                self._keep(item, Ref(ref.row, (*ref.path, key)))

    def _sizes(self, value: Any, ref: Ref) -> Any:
        if isinstance(value, tuple | list):
            return type(value)([self._sizes(item, Ref(ref.row, (*ref.path, i))) for i, item in enumerate(value)])
        return remember(value, self, ref)

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Run torch's functions without a row, for our own hooks."""
        self._unrecorded = True
        try:
            yield
        finally:
            self._unrecorded = False

    def place(self) -> str:
        """Return the module whose code is running, for messages."""
        return self._scope or "the network itself"
