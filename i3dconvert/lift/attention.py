"""Softmax attention over the tokens of several frames: where it is in a traced graph, and how it is computed.

Attention shares each weight out among equal keys: over the tokens of several equal frames it gives what it gives over
those of one. With class tokens, biases and masks repeated for each frame, joint space-time attention (Bertasius et al.,
TimeSformer, arXiv:2102.05095, section 3; Arnab et al., ViViT, arXiv:2103.15691, section 3.3, model 1) on a replicated
clip is therefore the 2D network's, for any number of frames.

Everything here works on frames `(N·T·W, …)`: T is outermost within a clip, W is whatever stands between frames and
tokens in the batch axis (windows, heads). A query attends to the `span` frames of its group, `0` being all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from i3dconvert.errors import FramesError
from i3dconvert.lift import layout
from i3dconvert.lift.trace import BATCH, Traced

ALL = 0
"""The span of attention over all frames."""


def grouped(frames: Tensor, clips: int, rows: int, span: int) -> Tensor:
    """`(N·T·W, …)` → `(N, G, S, W, …)`: G groups of S frames, N being `clips` and W `rows`."""
    length = frames.shape[0] // (clips * rows)
    size = length if span == ALL else torch.sym_min(length, span)
    if isinstance(length, int) and length % size:
        raise FramesError(f"attention over groups of {size} frames: of which {length} are no multiple")
    return frames.reshape(clips, length // size, size, rows, *frames.shape[1:])


def tokens(frames: Tensor, clips: int, rows: int, span: int) -> Tensor:
    """`(N·T·W, …, L, D)` → `(N·G·W, …, S·L, D)`: the tokens of a group's frames side by side."""
    return grouped(frames, clips, rows, span).movedim(2, -3).flatten(-3, -2).flatten(0, 2)


def frames_of(joint: Tensor, like: Tensor, clips: int, rows: int, span: int) -> Tensor:
    """The inverse of `tokens`; `like` is what tells the number of frames and of their tokens, `(N·T·W, …, L, ·)`."""
    apart = grouped(like, clips, rows, span)
    size, length = apart.shape[2], like.shape[-2]
    split = joint.reshape(*apart.shape[:2], rows, *joint.shape[1:-2], size, length, joint.shape[-1])
    return split.movedim(-3, 2).flatten(0, 3)


def shifted(frames: Tensor, clips: int, rows: int, span: int, shift: int) -> Tensor:
    """`(N·T·W, …)` with the frames of each clip of more than `span` moved cyclically, forward by `-shift`."""
    apart = frames.reshape(clips, frames.shape[0] // (clips * rows), rows, *frames.shape[1:])
    places = torch.arange(apart.shape[1], device=frames.device)
    moved = shift * (places >= span).any()
    return apart.index_select(1, (places + moved) % (places[-1] + 1)).flatten(0, 2)


def _apart(groups: int, size: int, span: int, shift: int, device: torch.device) -> Tensor:
    """`(G, S, S)`: which frames of the last of several shifted groups were not side by side before, query and key."""
    late = torch.arange(size, device=device) >= size - shift
    group = torch.arange(groups, device=device)
    return (late.unsqueeze(1) != late) & ((group == group[-1]) & group.any()).reshape(-1, 1, 1)


def _further(bias: Tensor, size: int) -> Tensor:
    """`(2·span − 1, heads, L, K)` → `(S, S, heads, L, K)`: what each pair of frames has by its distance in time."""
    frames = torch.arange(size, device=bias.device)
    return bias[frames.unsqueeze(1) - frames + bias.shape[0] // 2]


def middle(table: Tensor, distances: int) -> Tensor:
    """`(distances · entries, heads)` → `(entries, heads)`: the relative positions within one frame."""
    within: Tensor = torch.unflatten(table, 0, (distances, -1))[distances // 2]
    return within


def beyond(table: Tensor, distances: int) -> Tensor:
    """`(distances · entries, heads)` → `(entries, heads · distances)`: what each distance adds to the middle one."""
    apart = torch.unflatten(table, 0, (distances, -1))
    return (apart - apart[distances // 2]).movedim(0, -1).flatten(1)


def by_distance(bias: Tensor, distances: int) -> Tensor:
    """`(1, heads · distances, L, K)` → `(distances, heads, L, K)`."""
    return bias.reshape(-1, distances, *bias.shape[-2:]).movedim(1, 0)


def attend_jointly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    clips: int,
    rows: int,
    span: int,
    dropout: float = 0.0,
    options: dict[str, Any] | None = None,
    shift: int = 0,
    bias: Tensor | None = None,
) -> Tensor:
    """`scaled_dot_product_attention` of `(N·T·W, …, L, D)` over the tokens of a group's frames, each masked alike.

    `bias`, `(2·span − 1, heads, L, K)`, is added by the distance in time.
    """
    asking, asked, given = (tokens(part, clips, rows, span) for part in (query, key, value))
    if mask is not None:
        mask = _mask_of_groups(mask, query, key, clips, rows, span)
    if shift or bias is not None:
        mask = _mask_in_time(mask, query, key, clips, rows, span, shift, bias)
    attended = F.scaled_dot_product_attention(asking, asked, given, mask, dropout, **(options or {}))
    return frames_of(attended, query, clips, rows, span)


def _mask_of_groups(mask: Tensor, query: Tensor, key: Tensor, clips: int, rows: int, span: int) -> Tensor:
    """`(…, L, K)`, of every frame or of all alike, → `(…, S·L, S·K)`; between two frames it is that of the query's."""
    size = grouped(query, clips, rows, span).shape[2]
    mask = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])
    own = mask.dim() == query.dim() and mask.shape[0] == query.shape[0] and rows * clips * size > 1
    apart = (
        grouped(mask, clips, rows, span).movedim(2, -3)
        if own
        else mask.unsqueeze(-3).expand(*mask.shape[:-2], size, *mask.shape[-2:])
    )
    pairs = apart.unsqueeze(-2).expand(*apart.shape[:-1], size, apart.shape[-1])
    joint = pairs.flatten(-4, -3).flatten(-2, -1)
    return joint.flatten(0, 2) if own else joint


def _mask_in_time(
    mask: Tensor | None, query: Tensor, key: Tensor, clips: int, rows: int, span: int, shift: int, bias: Tensor | None
) -> Tensor:
    """The mask over a group's tokens, `(…, S·L, S·K)`, with what depends on the two frames' distance."""
    apart = grouped(query, clips, rows, span)
    groups, size, pair = apart.shape[1], apart.shape[2], (query.shape[-2], key.shape[-2])
    if mask is None:
        mask = query.new_zeros(*pair).repeat(size, size)
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    if bias is not None:
        mask = mask + _further(bias, size).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    if not shift:
        return mask
    barred = _apart(groups, size, span, shift, query.device).reshape(groups, size, 1, size, 1)
    barred = barred.expand(groups, size, pair[0], size, pair[1]).flatten(3, 4).flatten(1, 2)
    barred = barred.reshape(1, groups, 1, 1, *barred.shape[1:]).expand(clips, groups, rows, 1, *barred.shape[1:])
    return mask.masked_fill(barred.flatten(0, 2), float("-inf"))


def score_pairs(query: Tensor, keys: Tensor, clips: int, rows: int, span: int) -> Tensor:
    """`(N·T·W, …, L, D)` by `(N·T·W, …, D, K)` → `(N·P·W, …, L, K)`, P being the pairs of a group's frames."""
    asking, asked = (grouped(part, clips, rows, span) for part in (query, keys))
    return torch.matmul(asking.unsqueeze(3), asked.unsqueeze(2)).flatten(0, 4)


def for_each_key(frames: Tensor, clips: int, rows: int, span: int) -> Tensor:
    """`(N·T·W, …)` → `(N·P·W, …)`: what belongs to a query's frame, beside each frame that it attends to."""
    apart = grouped(frames, clips, rows, span).unsqueeze(3)
    return apart.expand(*apart.shape[:3], apart.shape[2], *apart.shape[4:]).flatten(0, 4)


def _paired(pairs: Tensor, like: Tensor, clips: int, rows: int, rows_like: int, span: int) -> Tensor:
    """`(N·P·W, …, L, K)` → `(N, G, S, W, …, L, S, K)`: query's frame first, key's frame beside the keys."""
    size, groups = grouped(like, clips, rows_like, span).shape[2], grouped(like, clips, rows_like, span).shape[1]
    return pairs.reshape(clips, groups, size, size, rows, *pairs.shape[1:]).movedim(3, -2)


def softmax_of_pairs(
    pairs: Tensor,
    like: Tensor,
    clips: int,
    rows: int,
    rows_like: int,
    span: int,
    shift: int = 0,
    bias: Tensor | None = None,
) -> Tensor:
    """`(N·P·W, …, L, K)`: softmax over the keys of all the S frames that a query attends to; `like` is the query.

    Times S, so that the weights within each pair of frames are those within one frame where all are equal, whatever is
    computed of them on the way to the values (mixed heads with a bias, CaiT). `bias` as in `attend_jointly`.
    """
    apart = _paired(pairs, like, clips, rows, rows_like, span)  # (N, G, S, W, …, L, S, K)
    groups, size = apart.shape[1], apart.shape[2]
    if bias is not None:
        apart = apart + _further(bias, size).movedim(1, -2).unsqueeze(1)
    if shift:
        barred = _apart(groups, size, span, shift, pairs.device)
        barred = barred.reshape(groups, size, *[1] * (apart.dim() - 5), size, 1)
        apart = apart.masked_fill(barred, float("-inf"))
    shared = apart.flatten(-2).softmax(-1).reshape(apart.shape) * apart.shape[-2]
    return shared.movedim(-2, 3).flatten(0, 4)


def attend_pairs(pairs: Tensor, value: Tensor, clips: int, rows: int, rows_value: int, span: int) -> Tensor:
    """`(N·P·W, …, L, K)` by `(N·T·W, …, K, D)` → `(N·T·W, …, L, D)`, the mean over the frames attended to."""
    apart = _paired(pairs, value, clips, rows, rows_value, span)
    values = grouped(value, clips, rows_value, span).movedim(2, -3).flatten(-3, -2).unsqueeze(2)
    return torch.matmul(apart.flatten(-2), values).flatten(0, 3) / apart.shape[-2]


@dataclass(frozen=True)
class Attention:
    """One attention of the 2D graph: a fused call, a module, or what lies between two products around a softmax."""

    name: str
    """That of the module whose code it is in."""
    kind: str
    """`fused`, `module` or `explicit`."""
    last: fx.Node
    first: fx.Node | None = None
    softmax: fx.Node | None = None
    between: frozenset[fx.Node] = field(default=frozenset())
    """From the first product to the last, without them: what is computed of the scores."""
    refusal: str = ""
    """Why it stays within a frame; empty where it can be lifted."""

    @property
    def scores(self) -> int:
        """How many there are for a pair of frames; 0 where they are never held all at once."""
        if self.first is not None:
            return int(self.first.meta["value"].numel()) // BATCH
        if self.kind == "module" or layout.argument(self.last, "attn_mask", 3) is None:
            return 0
        query, key = (layout.argument(self.last, name, i) for i, name in enumerate(("query", "key")))
        return int(query.meta["value"][..., 0].numel()) // BATCH * int(key.meta["value"].shape[-2])


def attentions(traced: Traced) -> list[Attention]:
    """The softmax attentions of a traced network, in the order of computation."""
    found = []
    for node in traced.graph.nodes:
        if layout.operation(node) == "scaled_dot_product_attention":
            causal = layout.argument(node, "is_causal", 5, False) or not _rows(node)
            found.append(Attention(_name(node), "fused", node, refusal="it is causal" if causal else ""))
        elif isinstance(module := module_of(traced, node), nn.MultiheadAttention):
            plain = module.batch_first and not layout.argument(node, "attn_mask", 5)
            found.append(Attention(str(node.target), "module", node, refusal="" if plain else "it has a mask"))
        elif _is_softmax(traced, node):
            found += _around(traced, node)
    counts: dict[str, int] = {}
    for index, attention in enumerate(found):
        counts[attention.name] = counts.get(attention.name, 0) + 1
        if (number := counts[attention.name]) > 1:
            found[index] = Attention(**{**vars(attention), "name": f"{attention.name}.{number}"})
    return found


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two values that a product is of."""
    first, second = node.args
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    return first, second


def module_of(traced: Traced, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    return traced.root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _name(node: fx.Node) -> str:
    """The module that has the code; the softmax is often a module of its own, called after itself."""
    scope = str(node.meta["scope"] or node.name)
    return scope.rpartition(".")[0] or scope if node.op == "call_module" else scope


def _rows(node: Any) -> int:
    """How many rows a value has for each image of the batch; 0 where its first axis is not of the batch."""
    value = node.meta.get("value") if isinstance(node, fx.Node) else None
    return len(value) // BATCH if isinstance(value, Tensor) and value.dim() and len(value) % BATCH == 0 else 0


def _is_softmax(traced: Traced, node: fx.Node) -> bool:
    """Whether it is a softmax over the last axis of something with a row for each image, queries and keys."""
    module = module_of(traced, node)
    if isinstance(module, nn.Softmax):
        dim = module.dim
    elif layout.operation(node) == "softmax":
        dim = layout.argument(node, "dim", 1)
    else:
        return False
    value = node.meta["value"]
    return _rows(node) > 0 and value.dim() > 2 and dim in (-1, value.dim() - 1)


def _is_product(node: fx.Node) -> bool:
    """Whether two values that both vary with the image are multiplied as matrices."""
    named = layout.operation(node) in ("matmul", "bmm") and len(node.args) == 2
    if not named or not all(isinstance(operand, fx.Node) for operand in node.args):
        return False
    first, second = operands(node)
    return _rows(first) == _rows(second) > 0 and first.meta["value"].dim() == second.meta["value"].dim() > 2


def _around(traced: Traced, softmax: fx.Node) -> Iterator[Attention]:
    """The two products around a softmax, if there are two."""
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
    elif any(isinstance(module_of(traced, node), nn.Conv2d) for node in between):
        refusal = "a convolution mixes its weights"
    elif _channels_axis(traced, last.args[1]) == -2:
        refusal = "it is over channels"
    yield Attention(_name(softmax), "explicit", last, first, softmax, between, refusal)


def _is_tensor(node: fx.Node) -> bool:
    return node.op == "output" or isinstance(node.meta.get("value"), Tensor)


def _walk(start: fx.Node, onward: Any, until: fx.Node | None = None) -> tuple[set[fx.Node], set[fx.Node]]:
    """What is reached from a node without passing a product, and the products that are reached."""
    passed: set[fx.Node] = set()
    products: set[fx.Node] = set()
    waiting = list(onward(start))
    while waiting:
        node = waiting.pop()
        if node in passed or node in products or node is until or node is start:
            continue
        if _is_product(node):
            products.add(node)
        elif _is_tensor(node) and (_rows(node) or node.op == "output"):
            passed.add(node)
            waiting += onward(node)
    return passed, products


def _channels_axis(traced: Traced, node: Any) -> int | None:
    """The axis of a value, counted from behind, along which the channels of the layer that it comes from lie."""
    carried = channels_carried(traced, node)
    if carried is None:
        return None
    varies = [axis for axis in range(carried.dim()) if bool((carried != carried.narrow(axis, 0, 1)).any())]
    return varies[-1] - carried.dim() if varies else None


def channels_carried(traced: Traced, node: Any) -> Tensor | None:
    """At each place of a value, the number of the channel of the layer that it comes from; None where not known.

    Found by carrying the channels' numbers through whatever moves axes.
    """
    chain: list[fx.Node] = []
    while isinstance(node, fx.Node):
        module = module_of(traced, node)
        if isinstance(module, nn.Linear | nn.Conv2d) or layout.operation(node) in ("linear", "conv2d"):
            break
        chain.append(node)
        inputs = [n for n in node.all_input_nodes if _holds_rows(n)]
        node = inputs[0] if inputs else None
    if not isinstance(node, fx.Node):
        return None
    value = node.meta["value"]
    axis = 1 if value.dim() == 4 and _is_over_images(traced, node) else value.dim() - 1
    shape = [1] * value.dim()
    shape[axis] = value.shape[axis]
    carried: Any = torch.arange(value.shape[axis], dtype=torch.float32).reshape(shape).expand(value.shape)
    for step in reversed(chain):
        carried = _moved(step, carried)
        if carried is None:
            return None
    return carried if isinstance(carried, Tensor) else None


def _holds_rows(node: fx.Node) -> bool:
    """Whether a value, or one of several, has an axis that the batch can be part of."""
    value = node.meta["value"]
    values = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(v, Tensor) and any(size % BATCH == 0 for size in v.shape) for v in values)


def _is_over_images(traced: Traced, node: fx.Node) -> bool:
    return isinstance(module_of(traced, node), nn.Conv2d) or layout.operation(node) == "conv2d"


def _moved(step: fx.Node, carried: Any) -> Any:
    """What a step does to the axes of a value; the value itself where it does nothing to them."""
    value = step.meta["value"]
    known = [n for n in step.all_input_nodes if _holds_rows(n)]

    def given(node: fx.Node) -> Any:
        return carried if node is known[0] else node.meta["value"]

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
