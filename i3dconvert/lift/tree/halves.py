"""Split a module's code in two: up to the output of one of its children, and after it."""

from __future__ import annotations

from torch import fx

from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.forms import can_cross
from i3dconvert.lift.tree.code import Code, clips_of


def halves(code: Code, children: set[str]) -> tuple[Code, Code] | None:
    """Split `code` at the output of the last call of one of `children`; None if more values cross."""
    nodes = list(code.graph.nodes)
    calls = [node for node in nodes if node.op == "call_module" and node.target in children]
    if not calls or not can_cross(facts_of(calls[-1])["gives"]):
        return None
    border, place = calls[-1], nodes.index(calls[-1]) + 1
    first, second = _copied(nodes[:place], None), _copied(nodes[place:], border)
    if first is None or second is None:
        return None
    return Code(first, code.positional, facts_of(border)["gives"]), Code(second, 1, code.gives)


def _copied(nodes: list[fx.Node], given: fx.Node | None) -> fx.Graph | None:
    """Return a graph of these nodes, with one input value; None if they use others."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    if given is not None:
        env[given] = graph.placeholder("features")
        facts_of(env[given])["form"] = facts_of(given)["gives"]
    for node in nodes:
        for used in node.all_input_nodes:
            if used not in env:
                if used.op == "get_attr":
                    env[used] = graph.node_copy(used)
                elif used.target is clips_of or (layout.is_size(used) and used.name == "clips"):
                    env[used] = graph.call_function(clips_of)
                else:
                    return None
        env[node] = graph.node_copy(node, env.__getitem__)
    if given is None:
        graph.output(env[nodes[-1]])
    return graph
