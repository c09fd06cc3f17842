"""The flat graph of the current tree: the codes of its modules inlined, including replaced ones."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn

from i3dconvert.errors import LiftError
from i3dconvert.lift import layout
from i3dconvert.lift.facts import Facts, facts_of, kept_facts, without
from i3dconvert.lift.forms import FRAMES, Form, is_frames
from i3dconvert.lift.tree.blocks import Block, Chain
from i3dconvert.lift.tree.calling import forms, kind, tree_in
from i3dconvert.lift.tree.code import clips_of
from i3dconvert.recipes import Temporal


def graph_of(network: Block) -> fx.Graph:
    """Return the graph of a network over its layers and parameters by their full names. Do not modify it.

    Raises `LiftError` for a network that was not inflated.
    """
    if not isinstance(network, Block):
        raise LiftError(not_inflated(network))
    modules = list(network.modules())[1:]  # without the network itself, which would be kept alive
    known, graph = _KNOWN.get(network, ((), None))
    if graph is None or len(known) != len(modules) or any(a is not b for a, b in zip(known, modules, strict=True)):
        graph = _Flat(network).run()
        _KNOWN[network] = (modules, graph)
    return graph


def not_inflated(network: object) -> str:
    """Return the message about what is given in the place of an inflated network."""
    return f"{type(network).__name__} is not an inflated network: pass the network that inflate or load returned"


_KNOWN: WeakKeyDictionary[Block, tuple[Sequence[nn.Module], fx.Graph]] = WeakKeyDictionary()
"""The graphs of networks, valid as long as their modules are the same."""


@dataclass(frozen=True)
class Site:
    """The place of a child's call: the node's name and facts about it."""

    name: str
    facts: Facts


class _Flat:
    def __init__(self, network: Block) -> None:
        self.network, self.graph = network, fx.Graph()
        self.clips: Any = None
        self.converted: dict[tuple[Any, ...], fx.Node] = {}

    def run(self) -> fx.Graph:
        code = self.network._i3d_code
        assert code is not None
        given = next(node for node in code.graph.nodes if node.op == "placeholder")
        clip = self.graph.placeholder(str(given.target))
        facts_of(clip).update(kept_facts(given))
        self.graph.output(self.inline(self.network, "", [clip], {}))
        return self.graph

    def inline(self, block: Block, prefix: str, args: list[Any], beside: dict[str, Any]) -> Any:
        """Inline the operations of a block, for inner values."""
        code = block._i3d_code
        if code is None:
            raise LiftError(f"{prefix.rstrip('.')} is called as a module, but has no code of its own")
        block._i3d_check()
        env: dict[fx.Node, Any] = {}
        result: Any = None
        for node in code.graph.nodes:
            if node.op == "placeholder":
                env[node] = args.pop(0) if args else beside[str(node.target)]
            elif node.op == "output":
                result = fx.node.map_arg(node.args[0], env.__getitem__)
            elif node.target is clips_of:
                env[node] = self.clips
            else:
                given = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
                env[node] = self.node(node, block, prefix, *given)
                if node.name == "clips" and self.clips is None:
                    self.clips = env[node]
        return result

    def node(self, node: fx.Node, block: Block, prefix: str, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            name = f"{prefix}{node.target}"
            module = submodule(block, str(node.target), name)
            return self.call(Site(node.name, kept_facts(node)), module, name, list(args), kwargs)
        if node.target is operator.getitem and isinstance(args[0], tuple | list | dict):
            return args[0][args[1]]
        target = f"{prefix}{node.target}" if node.op == "get_attr" else node.target
        key = (node.op, target, *args) if node.op == "get_attr" or target in (layout.fold, layout.unfold) else None
        if key is not None and key in self.converted:
            return self.converted[key]
        new = self.graph.create_node(node.op, target, args, kwargs, node.name)
        facts_of(new).update(kept_facts(node))
        if key is not None:
            self.converted[key] = new
        return new

    def call(self, node: Site, module: nn.Module, name: str, args: list[Any], kwargs: Any) -> Any:
        """Inline or add a call of a child, like `calling.call`."""
        takes, gives = node.facts["takes"], node.facts["gives"]
        if node.facts.get("given") == type(module).__qualname__:
            return self.layer(node, node.facts, name, args, kwargs, gives)
        wanted, given = forms(module, takes, gives)
        args = [self.as_form(*each) for each in zip(args, takes, wanted, strict=True)]
        if kind(module) == "tree":
            tree = tree_in(module)
            path = next(path for path, inner in module.named_modules() if inner is tree)
            name = f"{name}.{path}".rstrip(".")
            if isinstance(tree, Chain):
                result, given = self.chain(tree, name, args[0], wanted[0])
            else:
                assert isinstance(tree, Block)
                result = self.inline(tree, f"{name}.", args, dict(kwargs))
        else:
            result = self.layer(node, _facts_now(module, node.facts), name, args, kwargs, given)
        return self.as_form(result, given, gives)

    def chain(self, chain: Chain, name: str, value: Any, form: Form) -> tuple[Any, Form]:
        for key, child in chain.named_children():
            _, given = forms(child, [form])
            known: Facts = {**chain._i3d_facts.get(key, {}), "takes": [form], "gives": given}
            value, form = self.call(Site(f"{name}.{key}", known), child, f"{name}.{key}", [value], {}), given
        wanted = form if chain._i3d_gives is None else chain._i3d_gives
        return self.as_form(value, form, wanted), wanted

    def layer(self, node: Site, facts: Facts, name: str, args: Any, kwargs: Any, gives: Form) -> fx.Node:
        new = self.graph.create_node("call_module", name, tuple(args), kwargs, node.name)
        facts_of(new).update({**facts, "form": gives})
        return new

    def as_form(self, value: Any, is_in: Form, wanted: Form) -> Any:
        """Apply `forms.converted` to one or several nodes."""
        if is_in == wanted:
            return value
        if isinstance(is_in, list) and isinstance(wanted, list) and len(is_in) == len(wanted):
            items = value if isinstance(value, tuple | list) else [self.item(value, i) for i in range(len(is_in))]
            return [self.as_form(*each) for each in zip(items, is_in, wanted, strict=True)]
        if is_in == "clip" and is_frames(wanted):
            return self.convert(layout.fold, value, FRAMES)
        if is_frames(is_in) and wanted == "clip":
            return self.convert(layout.unfold, value, "clip")
        return value

    def item(self, value: fx.Node, index: int) -> fx.Node:
        return self.graph.call_function(operator.getitem, (value, index))

    def convert(self, function: Any, value: fx.Node, form: Form) -> fx.Node:
        args = (value,) if function is layout.fold else (value, self.clips)
        key = ("call_function", function, *args)
        if key not in self.converted:
            self.converted[key] = self.graph.call_function(function, args)
            facts_of(self.converted[key])["form"] = form
        return self.converted[key]


def submodule(block: nn.Module, path: str, name: str) -> nn.Module:
    """Return a module that the code of `block` calls; raises `LiftError` if it was removed."""
    found: Any = block
    for part in path.split("."):
        found = found._modules.get(part, vars(found).get(part)) if isinstance(found, nn.Module) else None
    if not isinstance(found, nn.Module):
        raise LiftError(f"{name} was removed from the network, which calls it: put nn.Identity() in its place")
    return found


def _facts_now(module: nn.Module, known: Facts) -> Facts:
    """Return the facts about a call; for a replaced layer, those of the new one along time."""
    modules = list(module.modules())
    if any(cls.__qualname__ == known.get("kind") for inner in modules for cls in type(inner).__mro__):
        if type(module) not in _OVER_TIME:
            return known
    else:
        known = without(known, "temporal", "layer", "scores", "like")
    layer: Any = next((inner for inner in modules if isinstance(inner, _OVER_TIME)), None)
    if layer is None:
        return known
    kernel, stride, padding, dilation = (
        _first(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    transposed = isinstance(layer, nn.ConvTranspose3d)
    after = _first(layer.output_padding) if transposed else padding
    ceil = bool(getattr(layer, "ceil_mode", False))
    return known | {"temporal": Temporal(kernel, stride, padding, after, dilation, ceil, transposed)}


_OVER_TIME = (nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d, nn.AvgPool3d)


def _first(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])
