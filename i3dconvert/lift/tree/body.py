"""The code of one call of a module, taken from the lifted graph."""

from __future__ import annotations

import keyword
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from i3dconvert.lift import layout
from i3dconvert.lift.facts import Facts, facts_of, kept_facts
from i3dconvert.lift.forms import Form, can_cross
from i3dconvert.lift.reading.records import leaves
from i3dconvert.lift.tree.calling import forms, varies
from i3dconvert.lift.tree.code import Code, clips_of

if TYPE_CHECKING:
    from i3dconvert.lift.tree.cutting import Cutting


_MADE_AGAIN = {layout.fold, layout.unfold, layout.together, operator.getitem, getattr}
"""Functions, besides arithmetic on sizes, that are cheap to repeat in several modules."""
_SIZES = ("size", "dim", "numel")


@dataclass(frozen=True)
class ChainOf:
    """The forms of a chain's input and output, and facts about the call of each child."""

    takes: Form
    gives: Form
    facts: dict[str, Facts]


class Inline(Exception):
    """A call that can't be a separate module."""

    def __init__(self, call: int, reason: str) -> None:
        super().__init__(reason)
        self.call, self.reason = call, reason


class Body:
    """The code of one call under construction."""

    def __init__(self, of: Cutting, number: int) -> None:
        self.of, self.number, self.call = of, number, of.calls[number]
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.given: dict[fx.Node, tuple[fx.Node, tuple[Any, ...]]] = {}
        """Values that are items of others: the node, and the path in its value."""
        self.inputs: list[tuple[str, Any]] = []
        self.beside: dict[str, fx.Node] = {}
        self.constants: list[str] = []
        self.start = self.graph.call_function(clips_of)  # inputs precede it; it is removed if unused
        self.gives: Form = None
        if number:
            for name, value in self.call.inputs:
                self._take(name, value)
        for item in list(of.items[number]):
            if isinstance(item, fx.Node):
                self._node(item)
            else:
                self._child(item)
        if number:
            self._finish()
        if not self.start.users:
            self.graph.erase_node(self.start)
        elif not any(varies(facts_of(node)["form"]) for node in self.placeholders()):
            self._say_clips()

    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def code(self) -> Code:
        return Code(self.graph, len(self.inputs), self.gives)

    # The border.

    def _take(self, name: str, value: Any) -> None:
        """Add an input of the 2D module if it contains nodes of the graph."""
        if not _holds_nodes(value):
            return
        form = _form(value)
        if not can_cross(form):
            raise Inline(self.number, f"its input {name} does not determine N and T")
        placeholder = self._placeholder(name, form)
        self.inputs.append((name, value))
        self._know(value, placeholder, ())

    def _placeholder(self, name: str, form: Form) -> fx.Node:
        taken = {str(node.target) for node in self.placeholders()}
        name = name if name.isidentifier() and not keyword.iskeyword(name) else f"input_{len(taken)}"
        name = name if name != "clips" and name not in taken else f"{name}_{len(taken)}"
        with self.graph.inserting_before(self.start):
            placeholder = self.graph.placeholder(name)
        facts_of(placeholder)["form"] = form
        return placeholder

    def _know(self, value: Any, node: fx.Node, path: tuple[Any, ...]) -> None:
        if isinstance(value, fx.Node):
            if path:
                self.given.setdefault(value, (node, path))
            else:
                self.env.setdefault(value, node)
        elif isinstance(value, tuple | list):
            for index, item in enumerate(value):
                self._know(item, node, (*path, index))
        elif isinstance(value, dict):
            for key, item in value.items():
                self._know(item, node, (*path, key))

    def _say_clips(self) -> None:
        """Add N as an input if no other input determines it."""
        with self.graph.inserting_before(self.start):
            clips = self.graph.placeholder("clips")
        facts_of(clips)["form"] = "plain"
        assert self.of.clips is not None
        self.beside["clips"] = self.of.clips
        self.start.replace_all_uses_with(clips)
        self.graph.erase_node(self.start)

    def _finish(self) -> None:
        output = self.call.output
        if not _holds_nodes(output):
            raise Inline(self.number, "its output is unknown")
        self.gives = _form(output)
        if not can_cross(self.gives):
            raise Inline(self.number, "its output does not determine N and T")
        self.graph.output(fx.node.map_arg(output, self.local))

    # The contents.

    def _node(self, node: fx.Node) -> None:
        if node is self.of.clips and self.number:
            return
        target: Any = self._target(node) if node.op in ("call_module", "get_attr") else node.target
        if node.op == "get_attr" and target is None:
            return  # another module's tensor becomes an input where it is used
        if node.op == "output":
            self.gives = "plain"
            self.graph.output(fx.node.map_arg(node.args[0], self.local))
            return
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.local)
        if node.op == "placeholder":
            with self.graph.inserting_before(self.start):
                new = self.graph.placeholder(str(node.target))
            self.inputs.append((str(node.target), node))
        else:
            new = self.graph.create_node(node.op, target, args, kwargs, node.name)
        facts_of(new).update(kept_facts(node))
        if node.op == "call_module":
            facts_of(new)["takes"] = [_form(arg) for arg in node.args]
            facts_of(new)["gives"] = facts_of(node).get("form")
            facts_of(new)["kind"] = type(self.of.layers[str(node.target)]).__qualname__
        self.env[node] = new

    def _target(self, node: fx.Node) -> str | None:
        target = str(node.target)
        if node.op == "get_attr" and target.startswith("_tensor_constant"):
            self.constants.append(target)
            return target
        found = self.of.relative(target, self.number)
        if found is None and node.op == "call_module":
            raise Inline(self.number, f"it calls {target}, which is not part of it")
        return found

    def _child(self, number: int) -> None:
        name = self.of.relative(self.of.calls[number].name, self.number)
        if name is None:
            raise Inline(self.number, f"it calls {self.of.calls[number].name}, which is not part of it")
        child = self.of.body(number)
        args = tuple(fx.node.map_arg(value, self.local) for _, value in child.inputs)
        beside: dict[str, Any] = {key: self.local(node) for key, node in child.beside.items()}
        new = self.graph.create_node("call_module", name, args, beside, name.replace(".", "_"))
        takes = [_form(value) for _, value in child.inputs]
        facts_of(new).update({"takes": takes, "gives": child.gives, "block": True, "form": child.gives})
        self._know(child.call.output, new, ())

    # Values.

    def local(self, node: fx.Node) -> fx.Node:
        """Return a value of the flat graph as a node of this code."""
        if node in self.env:
            return self.env[node]
        if node is self.of.clips:
            return self.start
        if self.available(node):
            self.env[node] = self._made_here(node)
            return self.env[node]
        if node.op != "get_attr" and self.of.inside(node, self.number):
            inner = self.of.around[facts_of(node).get("call", 0)]
            child = inner[inner.index(self.number) + 1] if inner[-1] != self.number else self.number
            raise Inline(child, f"{node.name} is used outside of it but is not its output")
        form = facts_of(node).get("form", "plain" if facts_of(node).get("plain") or node.op == "get_attr" else None)
        if not can_cross(form):
            raise Inline(self.number, f"it uses {node.name}, which does not determine N and T")
        placeholder = self._placeholder(node.name, form)
        self.beside[str(placeholder.target)] = node
        self.env[node] = placeholder
        return placeholder

    def available(self, node: fx.Node) -> bool:
        """Return whether a value can be computed cheaply from the code's values."""
        if node in self.env or node in self.given or node is self.of.clips:
            return True
        if node.op == "get_attr":
            target = str(node.target)
            return target.startswith("_tensor_constant") or self.of.relative(target, self.number) is not None
        return _is_made_again(node) and bool(node.all_input_nodes) and all(map(self.available, node.all_input_nodes))

    def _made_here(self, node: fx.Node) -> fx.Node:
        if node in self.given:
            new, path = self.given[node]
            for part in path:
                new = self._once(new, part)
            return new
        if node.op == "get_attr":
            target = self._target(node)
            assert target is not None
            new = self.graph.create_node("get_attr", target, (), {}, node.name)
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.local)
            new = self.graph.create_node(node.op, node.target, args, kwargs, node.name)
        facts_of(new).update(kept_facts(node))
        return new

    def _once(self, node: fx.Node, part: Any) -> fx.Node:
        for user in node.users:
            if user.target is operator.getitem and user.args[1] == part:
                return user
        new = self.graph.call_function(operator.getitem, (node, part))
        form = facts_of(node).get("form")
        facts_of(new)["form"] = form[part] if isinstance(form, list | dict) else form
        if facts_of(new)["form"] == "plain":
            facts_of(new)["plain"] = True
        return new

    # Sequential.

    def chain(self) -> ChainOf | None:
        """Return the chain if the code is that of a `Sequential` of its children."""
        module = self.of.root.get_submodule(self.call.name)
        if type(module).forward is not nn.Sequential.forward or len(self.inputs) != 1 or self.beside:
            return None
        (value,) = self.placeholders()
        takes = form = facts_of(value)["form"]
        known: dict[str, Facts] = {}
        names = [name for name, _ in module.named_children()]
        for node in self.graph.nodes:
            if node.op == "placeholder" or node.target in (layout.fold, layout.unfold, clips_of):
                continue
            given = node.args[0] if node.args else None
            if isinstance(given, fx.Node) and given.target in (layout.fold, layout.unfold):
                given = given.args[0]
            if node.op == "output":
                return ChainOf(takes, self.gives, known) if given is value and not names else None
            ours = node.op == "call_module" and names and node.target == names.pop(0)
            if not ours or given is not value or len(node.args) != 1 or node.kwargs:
                return None
            if not facts_of(node).get("block"):
                layer = self.of.layers.get(f"{self.call.name}.{node.target}".lstrip("."))
                if layer is None or forms(layer, [form], facts_of(node)["gives"])[1] != facts_of(node)["gives"]:
                    return None
            known[str(node.target)] = kept_facts(node)
            value, form = node, facts_of(node)["gives"]
        return None


def _is_made_again(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZES
    home = getattr(node.target, "__module__", "")
    return node.op == "call_function" and (
        node.target in _MADE_AGAIN or (home == "_operator" and facts_of(node).get("form") == "plain")
    )


def _holds_nodes(value: Any) -> bool:
    return any(isinstance(one, fx.Node) for one in leaves(value))


def _form(value: Any) -> Form:
    """Return the form of a value of the flat graph."""
    if isinstance(value, fx.Node):
        return facts_of(value).get("form", "plain" if facts_of(value).get("plain") else None)
    if isinstance(value, tuple | list):
        return [_form(item) for item in value]
    if isinstance(value, dict):
        return {key: _form(item) for key, item in value.items()}
    return "plain"
