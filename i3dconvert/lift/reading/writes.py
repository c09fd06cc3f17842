"""Operations in place: later uses of a tensor, and of all that share its memory, see the new values."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.errors import LiftError
from i3dconvert.lift.reading.records import Again, Lost, Ref, leaves, mapped
from i3dconvert.lift.reading.tensors import Tensors
from i3dconvert.lift.reading.views import TURNS, WRITES, name_of, written


class Writes(Tensors):
    """The part of a recorder that records operations in place."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._through_views: list[int] = []
        self._casts: dict[int, set[int]] = {}
        """For each storage, those that are the same one if the image has the dtype of this run."""
        self._written: Counter[int] = Counter()
        """How often each tensor was written into, by its identity."""
        self.apart = True
        """Whether what a layer returned unchanged is a tensor of its own; else it is the layer's input, as in 2D."""
        self.returned: dict[Ref, Ref] = {}
        """The input of each step that returned its input unchanged in this run, such as dropout in eval mode."""
        self._whole: list[tuple[int, int, Any, int, int, dict[int, tuple[int, Any]]]] = []

    def _turn(self, tensor: Tensor, name: str, args: Any, kwargs: Any, refs: Any) -> Tensor:
        """Record an operation that changes a tensor's shape in place: its views, and what is known of it, stay.

        A tensor that is given other memory is not known any more.
        """
        if id(tensor) in self._names:
            raise LiftError(f"{self.place()}: {name} changes {self._names[id(tensor)]}, a tensor of the network")
        function = TURNS[name]
        if function is None:
            self._refs[id(tensor)] = Lost(
                f"a tensor that {name} freed or gave other memory; assign a new tensor instead"
            )
            return tensor
        one = list(self._same(tensor))
        former = [self._former(member) for member in one]
        self._passed |= {id(member): former for member in former}
        row = self.row("call", function, refs[0], refs[1], tensor)
        for member in one:
            with torch.no_grad():
                getattr(member, name)(*args[1:], **kwargs)
            self._keep(member, row)
        return tensor

    def _former(self, tensor: Tensor) -> Tensor:
        """Return what stands for a tensor as it was, in rows and for its views, before its shape changes in place."""
        former = tensor.view_as(tensor)
        for row in self.rows:
            if any(one is tensor for one in leaves((row.value, row.args))):
                row.value, row.args = mapped((row.value, row.args), lambda one: former if one is tensor else one)
        self._written[id(tensor)] += 1
        for identity, known in self._refs.items():
            if isinstance(known, Again) and known.of is tensor:
                self._refs[identity] = Again(former, known.step)
        self._owner = {ref: former if one is tensor else one for ref, one in self._owner.items()}
        if (made_by := self._made_by.pop(id(tensor), None)) is not None:
            self._made_by[id(former)] = made_by
        self._keep(former, self.ref(tensor))
        return former

    def _write(self, target: Tensor, func: Any, name: str, args: Any, refs: Any, value: Any) -> None:
        """Record a write into `target`, and so into all tensors that share its memory."""
        aliases = self._aliases(target)
        self._written.update(map(id, aliases))
        memory = id(target.untyped_storage())
        others = self._casts.get(memory, {memory}) - {memory}
        casts = [tensor for other in others for tensor in self._sharing.get(other, {}).values()]
        for tensor in (*aliases, *casts):
            if id(tensor) in self._names and not self._whole:
                raise LiftError(
                    f"{self.place()}: {name} writes into {self._names[id(tensor)]}, a tensor of the network, which may "
                    "change from call to call; compute a new tensor instead (weight * mask)"
                )
        for tensor in casts:
            self._refs[id(tensor)] = Lost(f"a tensor that {name} wrote into in the same dtype; clone it first")
        if len(aliases) == len(self._same(target)) and name not in WRITES:
            row = self.row("call", func, refs[0], refs[1], value)
            self._keep(target, row)
            self._keep(value, row)
            self._changed(target, row)
            return
        if not args or args[0] is not target:
            raise LiftError(f"{self.place()}: {name} writes into a tensor that shares its memory with others")
        parents = {id(tensor): self._parent(tensor, aliases) for tensor in aliases}
        if len({id(self._same(tensor)) for tensor in aliases if parents[id(tensor)] is None}) != 1:
            raise LiftError(f"{self.place()}: {name} writes into a view that a layer returned; clone it first")
        base, steps = self._lineage(target)
        (_, *rest), kwargs = refs
        row = self.row("call", written, (self.ref(base), steps, name_of(func), tuple(rest), kwargs), value=base)
        for tensor in aliases:
            if (parent := parents[id(tensor)]) is not None:
                self._refs[id(tensor)] = Again(parent, self._made_by[id(self._same(tensor)[0])])
        self._write_through(row)

    def _write_through(self, row: Ref) -> None:
        """Take a row as the new value of the tensor that was written into through a view."""
        base = self.rows[row.row].value
        self._through_views.append(row.row)
        self._owner[row] = base
        self._changed(base, row)

    def _changed(self, tensor: Tensor, row: Ref) -> None:
        """Take a row as the new value of a tensor and of all that are one with it."""
        for one in self._same(tensor):
            self._refs[id(one)] = row
            self._order.append(id(one))

    def _own(self, tensor: Tensor) -> Tensor:
        """Return a tensor of its own for what a layer returned unchanged: code may use the layer's input beside it."""
        if not self.apart:
            return tensor
        if isinstance(tensor, nn.Parameter):
            own: Tensor = nn.Parameter(tensor.detach(), tensor.requires_grad)
        else:
            own = tensor.view_as(tensor)
        own.__dict__ = tensor.__dict__  # attributes that code sets on one are those of the other
        self._passed[id(own)] = self._same(tensor)
        self._passed[id(own)].append(own)
        return own

    def _aliases(self, tensor: Tensor) -> list[Tensor]:
        """Return all known tensors that share a tensor's memory."""
        return list(self._sharing.get(id(tensor.untyped_storage()), {id(tensor): tensor}).values())

    def _lineage(self, view: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the base of a view, and the steps that made the view from it."""
        aliases, steps = self._aliases(view), list[Any]()
        while (parent := self._parent(view, aliases)) is not None:
            steps.append(self._step(view))
            view = parent
        return view, tuple(reversed(steps))

    def _parent(self, tensor: Tensor, aliases: list[Tensor]) -> Tensor | None:
        """Return the tensor that `tensor` is a view of, by the step that made it; None for the base of all."""
        tensor = self._same(tensor)[0]
        step = self.rows[self._made_by[id(tensor)].row]
        first = step.args[0] if step.kind == "call" and step.args else None
        owner = self._owner.get(first) if isinstance(first, Ref) else None
        return owner if owner is not tensor and any(owner is alias for alias in aliases) else None

    def _step(self, view: Tensor) -> tuple[str, tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
        """Return how a view was made from its base: the function, its other arguments, the path in its result."""
        made = self._made_by[id(self._same(view)[0])]
        step = self.rows[made.row]
        return name_of(step.target), step.args[1:], step.kwargs, made.path
