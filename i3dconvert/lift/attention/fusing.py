"""Which attentions between two products can be one fused operation, and how their masks are computed.

Between the products, a network scales the scores and adds biases and masks. All of that is `scale · scores + mask`,
with a scale for each head. The query is scaled. The mask is what the network's own code computes from scores of zero,
`(P, …, L, K)`, which repeats after P rows: 1 if all rows share it, the windows of an image, or all.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from i3dconvert.lift import layout
from i3dconvert.lift.attention.found import Attention
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading import Reading, rows

_SUMS = {"add": operator.add, "iadd": operator.add, "sub": operator.sub, "isub": operator.sub}
_SCALES = {
    **dict.fromkeys(("mul", "imul", "multiply"), operator.mul),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv", "itruediv"), operator.truediv),
}
_SHAPES = frozenset(("reshape", "view", "unsqueeze", "squeeze", "flatten", "unflatten"))
_NOTHING = frozenset(("contiguous", "clone"))


LOWEST = -1e30
"""Adding another score to one below this does not change it, in float64 too."""


@dataclass(frozen=True)
class Step:
    """The effect of a node between the products on the scores, `of` another value."""

    kind: str
    """`sum`, `scale`, `fill`, `split`, `merge`, `same`, or `dropout`."""
    function: Any = None
    of: Any = None


class NotFusedError(Exception):
    """An attention that has to be computed as product, softmax, product."""


def steps_of(traced: Reading, attention: Attention) -> dict[fx.Node, Step]:
    """Return the effect of each node between the products; raises `NotFusedError`."""
    first, softmax, last = attention.first, attention.softmax, attention.last
    assert first is not None
    assert softmax is not None
    if len({(rows(part), facts_of(part)["value"].dim()) for part in attention.inputs}) > 1:
        raise NotFusedError("queries, keys and values have different layouts")
    if layout.argument(softmax, "dtype", 2) is not None:
        raise NotFusedError("its softmax uses another type")
    if last.target not in _PRODUCTS or first.target not in _PRODUCTS:
        raise NotFusedError(f"{last.target} is not a plain product")
    steps: dict[fx.Node, Step] = {}
    node, own = first, False
    while node is not last:
        if len(node.users) != 1:
            raise NotFusedError("its scores are used several times")
        node, before = next(iter(node.users)), node
        if node is softmax:
            steps[node] = Step("same")
        elif node is not last:
            step = _after(traced, node, before) if softmax in steps else _step(node, before)
            own = own or (step.kind in ("sum", "fill") and rows(step.of) > 0)
            if own and step.kind in ("split", "merge"):
                raise NotFusedError("its masks depend on the image")
            steps[node] = step
    return steps


_PRODUCTS = ("matmul", "bmm", "__matmul__", torch.matmul, torch.bmm, operator.matmul)


def _after(traced: Reading, node: fx.Node, before: fx.Node) -> Step:
    """Return the effect of a node after the softmax; raises `NotFusedError` if it is not dropout."""
    module = traced.module(node)
    if isinstance(module, nn.Identity) or layout.operation(node) in _NOTHING:
        return Step("same")
    if isinstance(module, nn.Dropout):
        return Step("dropout", of=str(node.target))
    if layout.operation(node) == "dropout" and node.args[0] is before:
        return Step("dropout", of=(layout.argument(node, "p", 1, 0.5), layout.argument(node, "training", 2, True)))
    raise NotFusedError(f"{_name(node)} of its weights")


def _step(node: fx.Node, before: fx.Node) -> Step:
    """Return the effect of a node before the softmax on the scores; raises `NotFusedError`."""
    name = layout.operation(node)
    others = [arg for arg in node.args if arg is not before]
    if name in _NOTHING:
        return Step("same")
    if name in _SHAPES:
        return Step(_leading(facts_of(before)["value"], facts_of(node)["value"], node))
    if name == "masked_fill" and len(others) == 2 and node.args[0] is before:
        if not isinstance(others[1], float) or others[1] > LOWEST:
            raise NotFusedError("its scores are filled with a value that is not negligible")
        return Step("fill", torch.masked_fill, others[0])
    if (
        len(node.args) != 2
        or len(others) != 1
        or node.kwargs
        or facts_of(node)["value"].shape != facts_of(before)["value"].shape
    ):
        raise NotFusedError(f"{_name(node)} of its scores")
    (of,) = others
    if name in _SUMS and not (_SUMS[name] is operator.sub and node.args[0] is not before):
        return Step("sum", _SUMS[name], of)
    if (
        name in _SCALES
        and not (_SCALES[name] is operator.truediv and node.args[0] is not before)
        and _of_heads(of, node)
    ):
        return Step("scale", _SCALES[name], of)
    raise NotFusedError(f"{_name(node)} of its scores")


def _of_heads(of: Any, node: fx.Node) -> bool:
    """Return whether a factor is a number, or one for each head, for all images alike."""
    value = facts_of(of)["value"] if isinstance(of, fx.Node) else of
    if not isinstance(value, Tensor):
        return True
    heads = value.shape[-3:-2] if value.dim() == facts_of(node)["value"].dim() == 4 or value.dim() == 3 else ()
    return (
        not rows(of) and value.numel() == math.prod(heads) and facts_of(node)["value"].dim() >= 4 - (value.numel() == 1)
    )


def _name(node: fx.Node) -> str:
    return str(layout.operation(node) or node.name)


def _leading(before: Tensor, after: Tensor, node: fx.Node) -> str:
    """Return the effect of a reshape on the rows, which must be its only effect."""
    if before.shape == after.shape:
        return "same"
    if before.dim() + 1 == after.dim() >= 4 and before.shape[1:] == after.shape[2:]:
        return "split"
    if before.dim() == after.dim() + 1 >= 4 and before.shape[2:] == after.shape[1:]:
        return "merge"
    raise NotFusedError(f"{_name(node)} of its scores")


def nothing(query: Tensor) -> Tensor:
    """Return scores of zero."""
    return query.new_zeros(())


def split(mask: Tensor, dims: int) -> Tensor:
    """Split a mask like scores of `dims` axes, `(N·T·W, …)` → `(N·T, W, …)`: `(P, …, L, K)` → `(1, P, …, L, K)`."""
    return mask.unsqueeze(0) if mask.dim() == dims else mask


def merge(mask: Tensor, dims: int) -> Tensor:
    """Map `(1, P, …, L, K)` to `(P, …, L, K)`, the inverse of `split`."""
    return mask.flatten(0, 1) if mask.dim() == dims else mask


def shared(mask: fx.Node) -> list[fx.Node] | None:
    """Return how a mask with rows for each image, none of which vary, is computed from values without rows.

    Returns its nodes with rows, in order; None if their rows do not simply repeat.
    """
    chain: list[fx.Node] = []
    waiting = [mask]
    while waiting:
        node = waiting.pop()
        if not rows(node) or node in chain:
            continue
        name, given = layout.operation(node), [n for n in node.args if isinstance(n, fx.Node)]
        tensors = [n for n in given if isinstance(facts_of(n)["value"], Tensor)]
        if name == "expand" and facts_of(tensors[0])["value"].dim() == facts_of(node)["value"].dim():
            known = not rows(tensors[0])
        elif name in ("reshape", "view"):
            known = rows(tensors[0]) > 0 and _reshapes(facts_of(tensors[0])["value"], node)
        else:
            known = name in ("add", "iadd") and len(node.args) == 2 and not node.kwargs
        if not known:
            return None
        chain.append(node)
        waiting += tensors
    order = {node: index for index, node in enumerate(mask.graph.nodes)}
    return sorted(chain, key=order.__getitem__)


def _reshapes(before: Tensor, node: fx.Node) -> bool:
    try:
        _leading(before, facts_of(node)["value"], node)
    except NotFusedError:
        return False
    return True


def chance(module: Any) -> float:
    """Return the probability with which a dropout layer, or its replacement, drops a value."""
    return float(getattr(module, "p", 0.0)) if module.training else 0.0


def chance_of(p: float, training: bool) -> float:
    """Return the probability with which dropout drops a value."""
    return p if training else 0.0
