"""Batch sizes that a network reads from one value and uses with another.

In 2D, both have the same batch size. Over frames, each has N·T, and their T differ if the recipe has strided time in
between (a class token expanded to the batch of the input, next to tubelets). Such sizes, and what is computed from
them, are read again from the value that they are used with.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading import holds_batch
from i3dconvert.lift.reading import rows as rows_of
from i3dconvert.recipes import Temporal

Stage = tuple[int, ...]

_PROBES: Stage = (96, 97, 105, 112, 127)
"""Clip lengths whose later lengths distinguish the stages of a network."""


class BatchSizes:
    """Tracks the sizes in one lifted graph.

    `frames` returns a 2D node's value over frames, `each` how many rows it has for each frame.
    """

    def __init__(self, graph: fx.Graph, frames: Callable[[fx.Node], fx.Node], each: Callable[[fx.Node], Any]) -> None:
        self._graph, self._frames, self._each = graph, frames, each
        self._stages: dict[fx.Node, Stage] = {}
        self._cursor: fx.Node = graph._root
        self._read: dict[fx.Node, Stage] = {}
        self._queries: set[fx.Node] = set()
        self._anew: dict[tuple[fx.Node, Stage], fx.Node] = {}

    def note(self, node: fx.Node, varying: list[fx.Node]) -> None:
        """Record the stage in time at which a plain 2D value that may hold a batch size was read."""
        value = facts_of(node)["value"]
        if not holds_batch(node):
            return
        if not varying:
            stages = [self._read[n] for n in node.all_input_nodes if n in self._read]
            if stages:
                self._read[node] = stages[0]
        elif isinstance(value, tuple) or layout.is_size(node):
            self._queries.add(node)
            self._read[node] = self.stage(self._frames(varying[0]))

    def beside(self, node: fx.Node, varying: list[fx.Node]) -> fx.Node:
        """Return the value of a 2D node over frames, with the sizes of the values in `varying`."""
        reference = next((n for n in varying if rows_of(n)), None) if node in self._read else None
        if reference is None:
            return self._frames(node)
        return self._reread(node, reference, self.stage(self._frames(reference)))

    def _reread(self, node: fx.Node, reference: fx.Node, stage: Stage) -> fx.Node:
        if self._read.get(node, stage) == stage:
            return self._frames(node)
        if (node, stage) not in self._anew:
            self._anew[node, stage] = (
                self._query(node, reference) if node in self._queries else self._copy(node, reference, stage)
            )
        return self._anew[node, stage]

    def _copy(self, node: fx.Node, reference: fx.Node, stage: Stage) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._reread(n, reference, stage))
        new = self._graph.create_node(node.op, node.target, args, kwargs, node.name)
        facts_of(new)["plain"] = True
        return new

    def _query(self, node: fx.Node, reference: fx.Node) -> fx.Node:
        value, call = facts_of(node)["value"], self._graph.call_function
        rows = self._graph.call_method("size", (self._frames(reference), 0))
        ours = facts_of(node)["batch"][0] if isinstance(value, tuple) else facts_of(node)["batch"]
        if ours != rows_of(reference):
            rows = call(operator.floordiv, (call(operator.mul, (rows, ours)), self._each(reference)))
        return call(_with_rows, (self._frames(node), rows)) if isinstance(value, tuple) else rows

    def stage(self, new: fx.Node) -> Stage:
        """Return the numbers of frames at a node of the lifted graph, for clips of the probed lengths."""
        while new not in self._stages:
            self._cursor = self._cursor.next
            self._stages[self._cursor] = self._next_stage(self._cursor)
        return self._stages[new]

    def _next_stage(self, node: fx.Node) -> Stage:
        like = layout.length_source(node)
        sources = [like] if like is not None else node.all_input_nodes
        before: Stage = next((s for n in sources if (s := self._stages[n])), ())
        temporal: Temporal | None = facts_of(node).get("temporal") if like is None else None
        if node.op == "placeholder":
            return _PROBES
        if layout.is_size(node) or facts_of(node).get("plain"):
            return ()
        return tuple(map(temporal.length, before)) if temporal else before


def _with_rows(shape: Any, rows: int) -> tuple[int, ...]:
    return (rows, *shape[1:])
