"""Track which call of a module each node of a lifted graph belongs to, and the inputs and output of each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.forms import form_of, like
from i3dconvert.lift.reading import CallOf
from i3dconvert.lift.rewriting import Rewriting


class Calls:
    """Follows a rewriting node by node: the calls of the 2D graph become those of the lifted one."""

    def __init__(self, to: Rewriting, calls: Sequence[CallOf]) -> None:
        self._to, self._calls, self._lifted = to, calls, list(calls)
        self._entered: set[int] = set()

    def enter(self, node: fx.Node) -> None:
        """Record the inputs of the calls that begin with a 2D node, before it is rewritten."""
        for number in self._around(node):
            if number not in self._entered:
                self._entered.add(number)
                inputs = tuple((name, self._now(value)) for name, value in self._calls[number].inputs)
                self._lifted[number] = replace(self._calls[number], inputs=inputs, output=None)

    def leave(self, node: fx.Node) -> None:
        """Record the outputs of the calls that end with a 2D node, after it was rewritten."""
        new, layout = self._to.env[node]
        facts_of(new).setdefault("form", form_of(facts_of(node)["value"], facts_of(node)["batch"], layout))
        for number in self._around(node):
            if self._calls[number].last is node:
                self._lifted[number] = replace(self._lifted[number], output=self._now(self._calls[number].output))

    def mark(self) -> fx.Node | None:
        """Return the last lifted node so far."""
        return next(iter(reversed(self._to.graph.nodes)), None)

    def own(self, mark: fx.Node | None, number: int) -> None:
        """Make the lifted nodes after `mark`, as far as they belong to no call yet, part of that with this number."""
        for node in reversed(self._to.graph.nodes):
            if node is mark:
                break
            facts_of(node).setdefault("call", number)
            facts_of(node).setdefault("within", self._calls[number].name)

    def around(self, module: str, node: fx.Node) -> int:
        """Return the call that contains the call of `module` that ends with the 2D node."""
        inside = [number for number in self._around(node) if self._calls[number].name == module]
        return self._calls[inside[-1]].parent if inside else int(facts_of(node)["call"])

    def all(self) -> tuple[CallOf, ...]:
        """Return the calls with lifted nodes; those without any have no output."""
        return tuple(self._lifted)

    def _around(self, node: fx.Node) -> list[int]:
        """Return the numbers of the calls that a 2D node is part of, the innermost first."""
        numbers, number = [], facts_of(node)["call"]
        while number >= 0:
            numbers.append(number)
            number = self._calls[number].parent
        return numbers

    def _now(self, value: Any) -> Any:
        """Convert a nested value of 2D nodes to their current lifted nodes."""
        if isinstance(value, fx.Node):
            return self._to.env[value][0] if value in self._to.env else None
        if isinstance(value, tuple | list):
            return like(value, list(map(self._now, value)))
        if isinstance(value, dict):
            return {key: self._now(item) for key, item in value.items()}
        return None
