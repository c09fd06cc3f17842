"""Build a `torch.fx` graph of the steps that the runs share; each node has its value on the meta device."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn

from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading.batch import PerSize
from i3dconvert.lift.reading.deciding import by_mode, decided, unchanged
from i3dconvert.lift.reading.merging import ByMode, Cast, OfDtype, OfImage
from i3dconvert.lift.reading.numbers import ARITHMETIC
from i3dconvert.lift.reading.records import Call, Decision, Ref, Row, leaves, mapped, value_at
from i3dconvert.lift.reading.surroundings import Held
from i3dconvert.lift.reading.unused import drop_unused

_OPERATORS = {f"__{name.rstrip('_')}__": getattr(operator, name) for name in """
    add sub mul truediv floordiv mod pow matmul and_ or_ xor neg pos invert eq ne lt le gt ge getitem lshift rshift
    iadd isub imul itruediv ifloordiv ipow iand ior ixor
""".split()}  # fmt: skip
_SWAPPED = {
    f"__r{name}__": _OPERATORS[f"__{name}__"]
    for name in "add sub mul truediv floordiv mod pow matmul and or xor".split()
}
_SWAPPED["__rdiv__"] = operator.truediv

_NUMPYS = {"axis": "dim", "keepdims": "keepdim"}
"""NumPy's names of arguments, which torch also accepts, and torch's own."""

_SIZES = ("size", "stride", "numel", "nelement", "__len__")


def _is_size(row: Row) -> bool:
    """Return whether a row reads a tensor's size; such rows are read where they are used."""
    return row.kind == "call" and getattr(row.target, "__name__", "") in _SIZES


@dataclass(frozen=True)
class CallOf:
    """A call of the module `name` inside the call `parent`; the fact `call` of its nodes is its index."""

    name: str
    parent: int
    inputs: tuple[tuple[str, Any], ...] = ()
    """Its inputs by the names of its forward's parameters: nodes, possibly nested; None for anything else."""
    output: Any = None
    last: fx.Node | None = None
    """Its last node."""


class GraphOf:
    """Builds the graph; `columns` are the rows of each run.

    Runs with the first one's height and width show which axes follow the batch: windows grow with all three.
    """

    def __init__(self, rows: list[Row], columns: Sequence[list[Row]], root: nn.Module, calls: list[Call]) -> None:
        self.rows, self.columns, self.root, self._calls = rows, columns, root, calls
        images = [column[0].value for column in columns]
        alike = [image.shape[2:] == images[0].shape[2:] for image in images]
        self.batches = {i: len(image) for i, image in enumerate(images) if alike[i]}
        self.others = {i: len(image) for i, image in enumerate(images) if not alike[i]}
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.parts: dict[Any, fx.Node] = {}
        self.row = self.inside = 0

    def build(self, decisions: list[Decision], output: Any, held: Sequence[Held] = ()) -> fx.Graph:
        """Return the graph of all rows, with the decisions at their places."""
        waiting = list(decisions)
        borders = self.borders()
        for index, row in enumerate(self.rows):
            self.row = index
            for self.inside, value in borders.get(index, ()):
                self.cross(value)
            while waiting and waiting[0].row <= index:
                self.decide(waiting.pop(0))
            self.row, self.inside = index, row.call
            node = self.node(row, index)
            if node is not None:
                self.nodes[index] = node
            for one in held if index == 0 else ():
                self.call(unchanged, (self.of_image("device"), *one), None)
        for decision in waiting:
            self.decide(decision)
        self.row, self.inside = len(self.rows), 0
        self.finish(self.graph.output(mapped(output, self.value)), "")
        drop_unused(self.graph)
        return self.graph

    def borders(self) -> dict[int, list[tuple[int, Any]]]:
        """Return, for each row, the calls that end or begin before it, and the values that cross their borders."""
        found: dict[int, list[tuple[int, Any]]] = {}
        for number, call in reversed(list(enumerate(self._calls))):
            found.setdefault(call.end, []).append((number, call.output))
        for call in self._calls:
            found.setdefault(call.start, []).extend((call.parent, value) for _, value in call.inputs)
        return found

    def cross(self, value: Any) -> None:
        """Read sizes and parts of tuples where they cross a border, instead of where they are first used after it."""
        for ref in leaves(value):
            if isinstance(ref, Ref) and (ref.path or _is_size(self.rows[ref.row])):
                self.reference(ref)

    def calls(self) -> tuple[CallOf, ...]:
        """Return the calls of modules, with the nodes that remain in the graph."""
        kept = set(self.graph.nodes)
        last: dict[int, fx.Node] = {}
        for node in self.graph.nodes:
            number = facts_of(node)["call"]
            while number >= 0:
                last[number] = node
                number = self._calls[number].parent

        def found(value: Any) -> Any:
            node = self.found(value) if isinstance(value, Ref) else None
            return node if node in kept else None

        return tuple(
            CallOf(
                call.name,
                call.parent,
                tuple((name, mapped(value, found)) for name, value in call.inputs),
                mapped(call.output, found),
                last.get(number),
            )
            for number, call in enumerate(self._calls)
        )

    def found(self, ref: Ref) -> fx.Node | None:
        """Return the node of a value, if there is one."""
        row = self.rows[ref.row]
        if _is_size(row):
            source = self.found(row.args[0])
            name, rest = _query(ref, row)
            return self.parts.get((name, source, rest))
        node = self.nodes.get(ref.row)
        if node is None or not ref.path:
            return self.parts.get(("detached", ref), node)
        return self.parts.get((ref.row, ref.path))

    def decide(self, decision: Decision) -> None:
        """Add a node that checks a decision, unless it compares numbers of images, which agree for any batch."""
        self.inside = decision.call
        operands = mapped(decision.operands, self.value)
        nodes = [operand for operand in operands if isinstance(operand, fx.Node)]
        if not nodes or (all(facts_of(node).get("batch") for node in nodes) and decision.operation in ("eq", "ne")):
            return
        self.call(decided, (decision.result, decision.operation, operands, decision.line), None, decision.scope)

    # Values.

    def value(self, value: Any) -> Any:
        """Return a value of a row as it appears in the graph."""
        if isinstance(value, Ref):
            return self.reference(value)
        if isinstance(value, Cast):
            node = self.reference(value.ref)
            known, times = facts_of(node)["value"], value.times
            if type(known) is not value.kind:
                node = self.call(value.kind, (node,), value.kind(known), like=node)
            return node if times == 1 else self.multiple_of(node, times)
        if isinstance(value, ByMode):
            training = self.training(value.scope)
            if (value.training, value.evaluating) == (True, False):
                return training
            return self.call(by_mode, (training, value.training, value.evaluating), value.evaluating)
        if isinstance(value, OfImage):
            node = self.of_image(value.name)
            return self.method(node, value.method) if value.method else node
        if isinstance(value, OfDtype):
            limits = torch.finfo(facts_of(self.nodes[0])["value"].dtype)
            info = self.call(torch.finfo, (self.of_image("dtype"),), limits)
            limit = self.call(getattr, (info, value.name), getattr(limits, value.name))
            return (
                limit
                if value.times == 1
                else self.call(operator.mul, (limit, value.times), facts_of(limit)["value"] * value.times)
            )
        return value

    def of_image(self, name: str) -> fx.Node:
        image = self.nodes[0]
        return self.once(
            ("image", name), lambda: self.call(getattr, (image, name), getattr(facts_of(image)["value"], name))
        )

    def multiple_of(self, node: fx.Node, times: Fraction) -> fx.Node:
        """Return a node for the number `node`, multiplied by `times`."""
        value, more = facts_of(node)["value"], times.denominator == 1
        factor, operation = (times.numerator, operator.mul) if more else (times.denominator, operator.floordiv)
        new = self.call(operation, (node, factor), operation(value, factor), like=node)
        batch = facts_of(node)["batch"]
        facts_of(new)["batch"] = type(batch)(operation(batch, factor))
        return new

    def method(self, node: fx.Node, name: str) -> fx.Node:
        """Return a call of a method without arguments on a value that is not a tensor."""
        value = getattr(facts_of(node)["value"], name)()
        return self.once((node, name), lambda: self.finish(self.graph.call_method(name, (node,)), "", value))

    def once(self, key: Any, make: Any) -> fx.Node:
        if key not in self.parts:
            self.parts[key] = make()
        return self.parts[key]

    def training(self, scope: str) -> fx.Node:
        name = f"{scope}.training".lstrip(".")
        return self.once(("training", name), lambda: self.finish(self.graph.get_attr(name), scope, False))

    def reference(self, ref: Ref) -> fx.Node:
        row = self.rows[ref.row]
        if _is_size(row):
            return self.size(ref, row)
        node = self.nodes[ref.row]
        for index, part in enumerate(ref.path):
            path = ref.path[: index + 1]
            node = self.once((ref.row, path), lambda node=node, part=part: self.part(node, part))
        if row.kind != "get" and not row.graded and self.row < len(self.rows) and self.rows[self.row].graded:
            node = self.once(("detached", ref), lambda: self.detached(node))
        return node

    def part(self, node: fx.Node, part: Any) -> fx.Node:
        new = self.call(operator.getitem, (node, part), facts_of(node)["value"][part], facts_of(node)["scope"])
        batch = facts_of(node).get("batch")
        facts_of(new)["batch"] = batch[part] if isinstance(batch, tuple | dict) else 0
        return new

    def size(self, ref: Ref, row: Row) -> fx.Node:
        """Return a size of a tensor, read where it is first used."""
        source = self.value(row.args[0])
        values = [value_at(column, ref) for column in self.columns]
        name, rest = _query(ref, row)

        def read() -> fx.Node:
            node = self.finish(self.graph.call_method(name, (source, *rest)), row.scope, values[0])
            facts_of(node)["batch"] = self.multiple(values)
            return node

        return self.once((name, source, rest), read)

    # Nodes.

    def node(self, row: Row, index: int) -> fx.Node | None:
        values = [column[index].value for column in self.columns]
        node = self.of_kind(row, index)
        if node is not None:
            self.finish(node, row.scope, row.value)
            facts_of(node)["batch"] = self.of_batch(values)
        return node

    def of_kind(self, row: Row, index: int) -> fx.Node | None:
        if row.kind == "input":
            return self.graph.placeholder("clip")
        if row.kind == "get":
            return self.graph.get_attr(row.target)
        if row.kind == "constant":
            held = [key for key, _ in self.root.named_buffers(recurse=False) if key.startswith("_tensor_constant")]
            name = f"_tensor_constant{len(held)}"
            self.root.register_buffer(name, row.args[0], persistent=False)
            return self.graph.get_attr(name)
        if _is_size(row):
            return None
        args, kwargs = mapped(row.args, self.value), mapped(row.kwargs, self.value)
        if row.kind == "module":
            return self.graph.call_module(row.target, args, kwargs)
        if row.kind == "number":
            return self.graph.call_function(ARITHMETIC[row.target], args, kwargs)
        return self.function(row.target, args, kwargs)

    def function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """Add a call in torch.fx's form: operators by their functions, methods by name."""
        name = _name(function)
        kwargs = {_NUMPYS.get(key, key): value for key, value in kwargs.items()}
        if name == "__get__":
            return self.graph.call_function(getattr, (args[0], function.__self__.__name__))
        if name in _SWAPPED:
            return self.graph.call_function(_SWAPPED[name], (args[1], args[0]))
        if name in _OPERATORS:
            return self.graph.call_function(_OPERATORS[name], args, kwargs)
        if getattr(Tensor, name, None) is function and args:
            return self.graph.call_method(name, args, kwargs)
        return self.graph.call_function(function, args, kwargs)

    def call(self, function: Any, args: Any, value: Any, scope: str = "", like: fx.Node | None = None) -> fx.Node:
        node = self.finish(self.graph.call_function(function, args), scope, value)
        facts_of(node)["batch"] = facts_of(like).get("batch", 0) if like is not None else 0
        return node

    def detached(self, node: fx.Node) -> fx.Node:
        """Detach a value that was computed without gradients, for use with gradients."""
        new = self.finish(
            self.graph.call_method("detach", (node,)), facts_of(node)["scope"], facts_of(node)["value"].detach()
        )
        facts_of(new)["batch"] = facts_of(node)["batch"]
        return new

    def finish(self, node: fx.Node, scope: str, value: Any = None) -> fx.Node:
        call = self._calls[self.inside].parent if node.op == "call_module" else self.inside
        facts_of(node).update({"value": value, "scope": scope, "batch": 0, "call": call})
        return node

    # The batch.

    def of_batch(self, values: Sequence[Any]) -> Any:
        """Return the ratio of a value, or of each of its axes, to the batch; 0 if it does not follow the batch."""
        first = values[0]
        if isinstance(first, Tensor):
            return tuple(self.multiple(sizes) for sizes in zip(*(value.shape for value in values), strict=True))
        if isinstance(first, tuple | list):
            return tuple(self.of_batch(items) for items in zip(*values, strict=True))
        if isinstance(first, dict):
            return {key: self.of_batch([value[key] for value in values]) for key in first}
        return self.multiple(values) if isinstance(first, int) else 0

    def multiple(self, sizes: Sequence[int]) -> int:
        times = sizes[0] // self.batches[0]
        if any(times * batch != sizes[run] for run, batch in self.batches.items()):
            return 0
        return times if all(times * batch == sizes[run] for run, batch in self.others.items()) else PerSize(times)


def _name(function: Any) -> str:
    """Return a function's name; for an operator, its own, even if torch reports the method that it wraps (`pow`)."""
    bare = function.__name__.rstrip("_")
    operators = (f"__{kind}{bare}__" for kind in ("", "i", "r"))
    name: str = next((one for one in operators if getattr(Tensor, one, None) is function), function.__name__)
    return name


def _query(ref: Ref, row: Row) -> tuple[str, tuple[Any, ...]]:
    """Return the method that reads a size of a tensor, and its arguments."""
    name, axis = row.target.__name__, ref.path[0] if ref.path else None
    if name == "__len__":
        return "size", (0,)
    if axis is not None:
        return name, (axis,)
    return name.replace("nelement", "numel"), tuple(row.kwargs.values()) if row.kwargs else row.args[1:]
