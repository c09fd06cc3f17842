"""Cut the flat lifted graph into the code of each module that the 2D network calls.

A call of a module is a contiguous run of nodes. A call whose values can't cross a border, or that differs from another
call of the same module, is inlined: its nodes become part of the enclosing code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading import CallOf
from i3dconvert.lift.tree.body import Body, ChainOf, Inline
from i3dconvert.lift.tree.code import Code


@dataclass(frozen=True)
class Cut:
    """The code of each module, by name; `inlined` maps calls without their own code to reasons."""

    codes: Mapping[str, Code]
    chains: Mapping[str, ChainOf]
    """Each `Sequential` whose code is a chain of its children."""
    inlined: Mapping[str, str]
    constants: Mapping[str, tuple[str, ...]]
    """For each module, the names of the constants that its code reads."""


def cut(graph: fx.Graph, calls: Sequence[CallOf], root: nn.Module, layers: Mapping[str, nn.Module]) -> Cut:
    """Cut `graph` by `calls` of the modules of `root`; `layers` are those that it calls without entering."""
    inlined: dict[int, str] = {
        number: "" for number, one in enumerate(calls) if number and (one.last is None or one.name in layers)
    }
    while True:
        try:
            return Cutting(graph, calls, root, layers, inlined).run()
        except Inline as found:
            inlined[found.call] = found.reason


class Cutting:
    def __init__(
        self,
        graph: fx.Graph,
        calls: Sequence[CallOf],
        root: nn.Module,
        layers: Mapping[str, nn.Module],
        inlined: dict[int, str],
    ) -> None:
        self.graph, self.calls, self.layers, self.inlined = graph, calls, layers, inlined
        self.root = root
        self.names: dict[int, list[str]] = {}
        for name, module in root.named_modules(remove_duplicate=False):
            self.names.setdefault(id(module), []).append(name)
        self.around = {number: self._around(number) for number in range(len(calls))}
        self.items: dict[int, list[fx.Node | int]] = {}
        self._sort()
        self.clips = next((n for n in graph.nodes if layout.is_size(n) and n.name == "clips"), None)
        self.bodies: dict[int, Body] = {}

    def _around(self, number: int) -> list[int]:
        """Return the calls with their own code around a call, from the outermost to itself."""
        found = []
        while number >= 0:
            if number not in self.inlined:
                found.append(number)
            number = self.calls[number].parent
        return found[::-1]

    def _sort(self) -> None:
        """Sort nodes and calls into the code of each call, in order."""
        open_calls: list[int] = []
        begun: set[int] = set()
        for node in self.graph.nodes:
            path = self.around[facts_of(node).get("call", 0)] or [0]
            shared = 0
            while shared < min(len(path), len(open_calls)) and path[shared] == open_calls[shared]:
                shared += 1
            for number in path[shared:]:
                if number in begun:
                    raise Inline(number, "its operations are not contiguous")
                begun.add(number)
                self.items[number] = []
                if number:
                    self.items[path[path.index(number) - 1]].append(number)
            open_calls = path
            self.items[path[-1]].append(node)

    def run(self) -> Cut:
        codes: dict[str, Code] = {}
        chains: dict[str, ChainOf] = {}
        constants: dict[str, tuple[str, ...]] = {}
        self.body(0)
        for number, body in self.bodies.items():
            name = self.calls[number].name
            if name in codes and not codes[name].same(body.code()):
                raise Inline(number, "two calls of it differ")
            codes[name], constants[name] = body.code(), tuple(body.constants)
            if number and (chain := body.chain()) is not None:
                chains[name] = chain
        shown = {self.calls[number].name: reason for number, reason in self.inlined.items() if reason}
        return Cut(codes, chains, shown, constants)

    def body(self, number: int) -> Body:
        if number not in self.bodies:
            self.bodies[number] = Body(self, number)
        return self.bodies[number]

    def inside(self, node: fx.Node, number: int) -> bool:
        return number in self.around[facts_of(node).get("call", 0)]

    def relative(self, name: str, number: int) -> str | None:
        """Return a module's or tensor's name relative to the called module; None if it is outside of it."""
        prefix = self.calls[number].name
        if not prefix:
            return name
        if name.startswith(f"{prefix}."):
            return name.removeprefix(f"{prefix}.")
        owner, _, last = name.rpartition(".")
        for path, ending in ((name, ""), (owner, f".{last}")):
            try:
                others = self.names[id(self.root.get_submodule(path))]
            except (AttributeError, KeyError):
                continue
            for other in others:
                if other.startswith(f"{prefix}.") or (other == prefix and ending):
                    return f"{other}{ending}".removeprefix(f"{prefix}.")
        return None
