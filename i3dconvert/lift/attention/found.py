"""Find the softmax attentions of a traced network: fused calls, modules, and softmaxes between two products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading import BATCH, Reading, rows, varies


@dataclass(frozen=True)
class Attention:
    """An attention of the 2D graph: a fused call, a module, or a softmax between two products."""

    name: str
    """The name of the module whose code contains it."""
    kind: str
    """`fused`, `module` or `explicit`."""
    last: fx.Node
    first: fx.Node | None = None
    softmax: fx.Node | None = None
    between: frozenset[fx.Node] = field(default=frozenset())
    """The nodes from the first product to the last, without these: the computation on the scores."""
    refusal: str = ""
    """The reason if it stays within a frame; else empty."""

    @property
    def inputs(self) -> tuple[Any, Any, Any]:
        """Its queries, keys and values; between two products, the keys are transposed."""
        if self.first is not None:
            return (*operands(self.first), operands(self.last)[1])
        query, key, value = (layout.argument(self.last, name, i) for i, name in enumerate(("query", "key", "value")))
        return query, key, value

    @property
    def scores(self) -> int:
        """The number of scores for a pair of frames; 0 if they are never in memory at once."""
        if self.first is not None:
            return int(facts_of(self.first)["value"].numel()) // BATCH
        if self.kind == "module" or layout.argument(self.last, "attn_mask", 3) is None:
            return 0
        query, key, _ = self.inputs
        return int(facts_of(query)["value"][..., 0].numel()) // BATCH * int(facts_of(key)["value"].shape[-2])


def attentions(traced: Reading) -> list[Attention]:
    """Return the softmax attentions of a traced network, in the order of computation."""
    found = []
    for node in traced.graph.nodes:
        if layout.operation(node) == "scaled_dot_product_attention":
            causal = layout.argument(node, "is_causal", 5, False) or not rows(node)
            found.append(Attention(_name(node), "fused", node, refusal="it is causal" if causal else ""))
        elif isinstance(module := traced.module(node), nn.MultiheadAttention):
            found.append(Attention(str(node.target), "module", node, refusal=_of_module(module, node)))
        elif _is_softmax(traced, node):
            found += _around(traced, node)
    counts: dict[str, int] = {}
    for index, attention in enumerate(found):
        counts[attention.name] = counts.get(attention.name, 0) + 1
        if (number := counts[attention.name]) > 1:
            found[index] = replace(attention, name=f"{attention.name}.{number}")
    return found


def _of_module(module: nn.MultiheadAttention, node: fx.Node) -> str:
    """Return why a module's attention stays within a frame."""
    if not module.batch_first:
        return "its tokens come before the images (batch_first=False)"
    if layout.argument(node, "attn_mask", 5) or layout.argument(node, "key_padding_mask", 3) is not None:
        return "it has a mask"
    more_keys = module.bias_k is not None or module.add_zero_attn
    return "it has additional keys (add_bias_kv, add_zero_attn)" if more_keys else ""


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Return the two factors of a product."""
    first, second = node.args
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    return first, second


def _name(node: fx.Node) -> str:
    """Return the module with the code; the softmax is often a module with a name of its own."""
    scope = str(facts_of(node)["scope"] or node.name)
    return scope.rpartition(".")[0] or scope if node.op == "call_module" else scope


def _is_softmax(traced: Reading, node: fx.Node) -> bool:
    """Return whether a node is a softmax over the last axis of a value with rows for images, and queries and keys."""
    module = traced.module(node)
    if isinstance(module, nn.Softmax):
        dim = module.dim
    elif layout.operation(node) == "softmax":
        dim = layout.argument(node, "dim", 1)
    else:
        return False
    value = facts_of(node)["value"]
    return rows(node) > 0 and value.dim() > 2 and dim in (-1, value.dim() - 1)


def _is_product(node: fx.Node) -> bool:
    """Return whether a node is a matrix product of two values that both vary with the image."""
    named = layout.operation(node) in ("matmul", "bmm") and len(node.args) == 2
    if not named or not all(isinstance(operand, fx.Node) for operand in node.args):
        return False
    first, second = operands(node)
    return rows(first) == rows(second) > 0 and facts_of(first)["value"].dim() == facts_of(second)["value"].dim() > 2


def _around(traced: Reading, softmax: fx.Node) -> Iterator[Attention]:
    """Yield the attention around a softmax, if it has products."""
    before, firsts = _walk(softmax, lambda node: node.all_input_nodes)
    after, lasts = _walk(softmax, lambda node: list(node.users))
    lasts = {node for node in lasts if node.args[0] in after or node.args[0] is softmax}
    if not lasts:
        return
    if len(firsts) != 1 or len(lasts) != 1:
        yield Attention(_name(softmax), "explicit", softmax, refusal="it is not between two products")
        return
    (first,), (last,) = firsts, lasts
    below = _walk(first, lambda node: list(node.users), until=softmax)[0]
    between = frozenset((before & below) | after | {softmax})
    refusal = ""
    if any(node.op == "output" or last.args[1] is node for node in between) or any(
        user not in between and user is not last for node in between for user in node.users if _is_tensor(user)
    ):
        refusal = "its weights are used elsewhere"
    elif any(isinstance(traced.module(node), nn.Conv2d) for node in between):
        refusal = "a convolution mixes its weights"
    elif _channels_axis(traced, last.args[1]) == -2:
        refusal = "it is over channels"
    yield Attention(_name(softmax), "explicit", last, first, softmax, between, refusal)


def _is_tensor(node: fx.Node) -> bool:
    return node.op == "output" or isinstance(facts_of(node).get("value"), Tensor)


def _walk(start: fx.Node, onward: Any, until: fx.Node | None = None) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return the nodes reached without passing a product, and the products that are reached."""
    passed: set[fx.Node] = set()
    products: set[fx.Node] = set()
    waiting = list(onward(start))
    while waiting:
        node = waiting.pop()
        if node in passed or node in products or node is until or node is start:
            continue
        if _is_product(node):
            products.add(node)
        elif _is_tensor(node) and (rows(node) or node.op == "output"):
            passed.add(node)
            waiting += onward(node)
    return passed, products


def _channels_axis(traced: Reading, node: Any) -> int | None:
    """Return the axis of a value, counted from the end, with the channels of the layer that it comes from."""
    carried = channels_carried(traced, node)
    if carried is None:
        return None
    varies = [axis for axis in range(carried.dim()) if bool((carried != carried.narrow(axis, 0, 1)).any())]
    return varies[-1] - carried.dim() if varies else None


def channels_carried(traced: Reading, node: Any) -> Tensor | None:
    """Return the channel index, in the layer that a value comes from, of each of its entries; None if unknown.

    The indices are carried through all operations that move axes.
    """
    chain: list[fx.Node] = []
    while isinstance(node, fx.Node):
        module = traced.module(node)
        if isinstance(module, nn.Linear | nn.Conv2d) or layout.operation(node) in ("linear", "conv2d"):
            break
        chain.append(node)
        inputs = [n for n in node.all_input_nodes if varies(n)]
        node = inputs[0] if inputs else None
    if not isinstance(node, fx.Node):
        return None
    value = facts_of(node)["value"]
    axis = 1 if value.dim() == 4 and _is_over_images(traced, node) else value.dim() - 1
    shape = [1] * value.dim()
    shape[axis] = value.shape[axis]
    carried: Any = torch.arange(value.shape[axis], dtype=torch.float32).reshape(shape).expand(value.shape)
    for step in reversed(chain):
        carried = _moved(step, carried)
        if carried is None:
            return None
    return carried if isinstance(carried, Tensor) else None


def _is_over_images(traced: Reading, node: fx.Node) -> bool:
    return isinstance(traced.module(node), nn.Conv2d) or layout.operation(node) == "conv2d"


def _moved(step: fx.Node, carried: Any) -> Any:
    """Return what a step does to the axes of a value; the value itself if it does not move them."""
    value = facts_of(step)["value"]
    moving = [n for n in step.all_input_nodes if varies(n)]

    def given(node: fx.Node) -> Any:
        return carried if node is moving[0] else facts_of(node)["value"]

    same = isinstance(value, Tensor) and isinstance(carried, Tensor) and value.shape == carried.shape
    if same and layout.operation(step) not in _MOVING:
        return carried
    if step.op == "call_module":
        return None
    try:
        args, kwargs = fx.node.map_arg((step.args, step.kwargs), given)
        if step.op == "call_method":
            return getattr(args[0], str(step.target))(*args[1:], **kwargs)
        assert callable(step.target)
        return step.target(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None


_MOVING = frozenset(("transpose", "permute", "movedim", "swapaxes", "swapdims", "reshape", "view", "getitem", "roll"))
