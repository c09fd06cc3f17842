"""The computation of one module of the tree: a graph of its own operations and of the calls of its children."""

from __future__ import annotations

import importlib
import keyword
import linecache
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from i3dconvert.lift.facts import facts_of, kept_facts
from i3dconvert.lift.forms import Form, enter, is_frames, leave, parts
from i3dconvert.lift.reading.records import leaves, mapped
from i3dconvert.lift.tree.calling import call

_NUMBERS = count()


def clips_of(value: Any) -> Any:
    """Represents N in a module's graph; the code reads it from its inputs."""
    raise NotImplementedError("it has no value of its own")


@dataclass(frozen=True)
class Name:
    """A node in the pickled form of a graph."""

    name: str


@dataclass(frozen=True)
class OfTorch:
    """An object that pickle can't find by name: `nn.functional.max_pool2d`, `channels_last`, `ops.torchvision.nms`."""

    name: str

    def found(self) -> Any:
        """Return the object; a package's operators exist once the package is imported."""
        find = operator.attrgetter(self.name)
        try:
            return find(torch)
        except AttributeError:
            importlib.import_module(self.name.split(".")[1])
            return find(torch)


class Code:
    """A module's graph on inner values, and the forms in which values cross its border.

    Its placeholders are the module's inputs, with their forms as facts; the first `positional` are the 2D
    module's own (`takes`), the others are values that its code uses besides them (`beside`).
    """

    def __init__(self, graph: fx.Graph, positional: int, gives: Form) -> None:
        self.graph, self.positional, self.gives = graph, positional, gives
        self.inputs = {str(node.target): self.form(node) for node in graph.nodes if node.op == "placeholder"}
        self.takes = list(self.inputs.values())[:positional]
        self.beside = dict(list(self.inputs.items())[positional:])
        self._function: Callable[..., Any] | None = None

    @staticmethod
    def form(node: fx.Node) -> Form:
        """Return the form of an input."""
        return facts_of(node)["form"]

    @property
    def text(self) -> str:
        """The code as Python."""
        return _source(self._crossing())[0]

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run `module` on values that cross its border."""
        assert self._function is not None
        if kwargs:
            names = list(self.inputs)[len(args) :]
            if unknown := set(kwargs) - set(names):
                raise TypeError(f"unexpected keyword arguments {', '.join(sorted(unknown))}; it takes {names}")
            if missing := [name for name in names if name not in kwargs]:
                raise TypeError(f"missing {', '.join(missing)}; it takes {list(self.inputs)}")
            args = (*args, *(kwargs[name] for name in names))
        if any(isinstance(one, fx.Proxy) for one in args):
            return self._compiled(_recorded)(module, *args)
        return self._function(module, *args)

    def compiled(self) -> Code:
        """Compile the code and return itself."""
        self._function = self._function or self._compiled()
        return self

    def changed(self) -> Code:
        """Recompile after changes to the graph and return itself."""
        self._function = None
        return self.compiled()

    def _compiled(self, of_ours: Callable[[Any], Any] = lambda one: one) -> Callable[..., Any]:
        source, space = _source(self._crossing())
        space = {name: of_ours(one) if _is_step(one) else one for name, one in space.items()}
        file = f"<i3dconvert {next(_NUMBERS)}>"
        exec(compile(source, file, "exec"), space)
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        function: Callable[..., Any] = space["forward"]
        return function

    def _crossing(self) -> fx.Graph:
        """Return the graph with the conversions at the border: of the inputs, of N, and of the result."""
        graph = fx.Graph()
        env: dict[fx.Node, Any] = {}
        clips: fx.Node | None = None
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node in inputs:
            env[node] = graph.placeholder(str(node.target))
        for node in inputs:
            form, given = self.form(node), env[node]
            if clips is None and node.target == "clips":
                clips = given
            if clips is None and (place := _says_clips(form)) is not None:
                path, axis = place
                value = given
                for part in path:
                    value = graph.call_function(operator.getitem, (value, part))
                clips = graph.create_node("call_method", "size", (value, axis), {}, "clips")
            if any(map(is_frames, parts(form))):
                env[node] = graph.call_function(enter, (given, form))
        for node in self.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.target is clips_of:
                env[node] = clips
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            if node.op == "output":
                crosses = any(map(is_frames, parts(self.gives)))
                value = _with_named_tuples_as_steps(graph, args[0])
                graph.output(graph.call_function(leave, (value, self.gives, clips)) if crosses else value)
            elif node.op == "call_module":
                env[node] = self._call(graph, node, clips, args, kwargs)
            else:
                target = spelt(node.target) if node.op == "get_attr" else node.target
                env[node] = graph.create_node(node.op, target, args, kwargs, variable(node.name))
        return graph

    def _call(self, graph: fx.Graph, node: fx.Node, clips: Any, args: Any, kwargs: Any) -> fx.Node:
        child = _child(graph, str(node.target))
        takes, gives, options = facts_of(node)["takes"], facts_of(node)["gives"], {}
        if kwargs:
            options["beside" if facts_of(node).get("block") else "named"] = kwargs
        if takes != ["clip"] * len(args):
            options["takes"] = takes
        if gives != "clip":
            options["gives"] = gives
        if "given" in facts_of(node):
            options["as_it_is"] = facts_of(node)["given"]
        return graph.create_node("call_function", call, (child, clips, *args), options, variable(node.name))

    # A graph is pickled as rows, without torch.fx's own data.

    def __getstate__(self) -> dict[str, Any]:
        rows = [
            (node.name, node.op, _named(node.target), *mapped((node.args, node.kwargs), _named), kept_facts(node))
            for node in self.graph.nodes
        ]
        return {"rows": rows, "positional": self.positional, "gives": self.gives}

    def __setstate__(self, state: dict[str, Any]) -> None:
        graph = fx.Graph()
        nodes: dict[str, fx.Node] = {}
        for name, op, target, args, kwargs, meta in state["rows"]:
            given, named = mapped((args, kwargs), lambda one: _found(one, nodes))
            nodes[name] = graph.create_node(op, _found(target, nodes), given, named, name)
            facts_of(nodes[name]).update(meta)
        self.__init__(graph, state["positional"], state["gives"])  # type: ignore[misc]
        self.compiled()

    def __deepcopy__(self, memo: Any) -> Code:
        return self  # it is immutable

    def same(self, other: Code) -> bool:
        """Return whether both codes compute the same."""
        return self._spoken() == other._spoken()

    def _spoken(self) -> str:
        """Return the graph as text that does not depend on the names of its nodes."""
        places = {node: index for index, node in enumerate(self.graph.nodes)}

        def placed(one: Any) -> Any:
            return f"%{places[one]}" if isinstance(one, fx.Node) else one

        rows = [
            (
                node.op,
                node.op != "placeholder" and str(node.target),
                mapped((node.args, node.kwargs), placed),
                kept_facts(node),
            )
            for node in self.graph.nodes
        ]
        return repr((rows, self.positional, self.gives))


def _is_step(one: Any) -> bool:
    """Return whether a global of the code is a function of ours that neither calls a module nor maps nested values."""
    home = str(getattr(one, "__module__", ""))
    return home.startswith("i3dconvert.") and isinstance(one, FunctionType) and one not in (call, enter, leave)


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that torch.fx's tracers record as one node, since its code depends on shapes."""

    def step(*args: Any, **kwargs: Any) -> Any:
        proxy = next((one for one in leaves((args, kwargs)) if isinstance(one, fx.Proxy)), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return step


def _with_named_tuples_as_steps(graph: fx.Graph, value: Any) -> Any:
    """Let steps build named tuples, whose classes torch.fx's code of nested values does not import."""
    if isinstance(value, dict):
        return {key: _with_named_tuples_as_steps(graph, one) for key, one in value.items()}
    if not isinstance(value, tuple | list):
        return value
    items = [_with_named_tuples_as_steps(graph, one) for one in value]
    return graph.call_function(type(value), tuple(items)) if hasattr(value, "_fields") else type(value)(items)


def variable(name: str) -> str:
    return f"{name}_" if name == "self" else name


def _child(graph: fx.Graph, target: str) -> fx.Node:
    name = target.replace(".", "_")
    return graph.create_node("get_attr", spelt(target), (), {}, variable(name))


_WORD = "__is_a_word_of_python"


def spelt(target: Any) -> Any:
    """Return a dotted name, with Python's keywords in it marked for `_source`."""
    return ".".join(part + _WORD * keyword.iskeyword(part) for part in target.split("."))


def _source(graph: fx.Graph) -> tuple[str, dict[str, Any]]:
    """Return a graph as Python code, and its globals; keywords such as `self.class` become `getattr(self, "class")`."""
    python = graph.python_code("self")
    source, marked = str(python.src), re.compile(rf"= (.+?)\.(\w+?){_WORD}\b")
    while marked.search(source):
        source = marked.sub(r'= getattr(\1, "\2")', source)
    return source, dict(python.globals)


def _named(one: Any) -> Any:
    if isinstance(one, fx.Node):
        return Name(one.name)
    if isinstance(one, torch.memory_format | torch.layout):
        return OfTorch(str(one).removeprefix("torch."))
    if str(getattr(one, "__module__", "")).startswith("torch._ops"):
        return OfTorch(f"ops.{one}")
    if "<locals>" in getattr(one, "__qualname__", ""):
        return next((OfTorch(f"nn.functional.{name}") for name, its in vars(F).items() if its is one), one)
    return one


def _found(one: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(one, OfTorch):
        return one.found()
    return nodes[one.name] if isinstance(one, Name) else one


def _says_clips(form: Form, path: tuple[Any, ...] = ()) -> tuple[tuple[Any, ...], int] | None:
    """Return the part of a value from which N can be read, and its axis."""
    if isinstance(form, list | dict):
        items = enumerate(form) if isinstance(form, list) else form.items()
        return next((found for key, one in items if (found := _says_clips(one, (*path, key)))), None)
    if form == "clip":
        return path, 0
    return (path, form[0]) if is_frames(form) else None
