"""Divided space-time attention: attention over time at each place, before a block's attention over space.

Bertasius et al., TimeSformer, arXiv:2102.05095, sections 3 and 4.1: the projections over time start as copies of those
over space and are followed by a linear layer that starts as zeros; the class token is averaged over the frames. For
every image, the block then starts equal to the 2D network's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from i3dconvert.errors import RecipeError
from i3dconvert.lift import layout
from i3dconvert.lift.attention.found import Attention, channels_carried
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.fillings import Copy, Filling, Zeros
from i3dconvert.lift.lengths import above_of
from i3dconvert.lift.reading import BATCH, Reading, rows

Names = dict[str, tuple[str, ...]]

TIME = "_time"
"""The suffix of the names of modules that are added for time."""


class TimeAttention(nn.Module):
    """Attention over the frames of a clip, separately at each place, added to its tokens except the leading ones."""

    def __init__(
        self, channels: int, heads: int, leading: int, eps: float, biases: tuple[bool, bool], **options: Any
    ) -> None:
        super().__init__()
        self.heads, self.leading = heads, leading
        self.norm = nn.LayerNorm(channels, eps, **options)
        self.qkv = nn.Linear(channels, 3 * channels, biases[0], **options)
        self.proj = nn.Linear(channels, channels, biases[1], **options)
        self.dense = nn.Linear(channels, channels, **options)

    def forward(self, frames: Tensor, clips: int) -> Tensor:
        """Map `(N·T, L, D)` to `(N·T, L, D)`."""
        places = frames[:, self.leading :]
        over_time = layout.over_time(places, clips).transpose(1, 2)  # (N, P, T, D)
        by_head = self.qkv(self.norm(over_time)).unflatten(-1, (3, self.heads, -1)).flatten(0, 1)
        query, key, value = by_head.permute(2, 0, 3, 1, 4)  # each (N·P, heads, T, d)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        moved = self.dense(self.proj(attended)).reshape(over_time.shape).transpose(1, 2).flatten(0, 1)
        return torch.cat((frames[:, : self.leading], places + moved), 1)


def leading_alike(frames: Tensor, clips: int, leading: int) -> Tensor:
    """Average the `leading` tokens of `(N·T, L, D)` over the frames of each clip."""
    apart = layout.over_time(frames, clips)
    alike = apart[:, :, :leading].mean(1, keepdim=True).expand_as(apart[:, :, :leading])
    return torch.cat((alike, apart[:, :, leading:]), 2).flatten(0, 1)


@dataclass(frozen=True)
class AttentionBlock:
    """`tokens + branch(norm(tokens))`, with the attention in the branch."""

    attention: Attention
    tokens: fx.Node
    """`(N, L, D)`."""
    norm: fx.Node
    branch: fx.Node
    sum: fx.Node
    heads: int
    leading: int
    """Class tokens and registers, before the tokens of the image's places."""
    eps: float
    fillings: dict[str, Filling]
    """Fillings by the keys of `TimeAttention`."""

    @property
    def name(self) -> str:
        """The name of the module that is added."""
        return f"{self.attention.name}{TIME}"

    def module(self, dtype: torch.dtype) -> TimeAttention:
        """Return the module that is added, without its weights."""
        channels = facts_of(self.tokens)["value"].shape[-1]
        biases = ("qkv.bias" in self.fillings, "proj.bias" in self.fillings)
        return TimeAttention(channels, self.heads, self.leading, self.eps, biases, device="meta", dtype=dtype)


class NoBlockError(RecipeError):
    """An attention that is not in a block like TimeSformer's."""


def block_of(traced: Reading, attention: Attention) -> AttentionBlock:
    """Return the block of an attention; raises `NoBlockError` if it is not like TimeSformer's."""
    above = above_of(attention.last)
    branch, tokens, total = _sum_behind(attention, above)
    inside = above - above_of(tokens)
    channels = facts_of(tokens)["value"].shape[-1]
    norms = [user for user in tokens.users if user in inside and isinstance(facts_of(user)["value"], Tensor)]
    norm = _norm(traced, norms[0]) if len(norms) == 1 else None
    if norm is None:
        raise NoBlockError("there is no LayerNorm with weights before it")
    scale, shift, eps = norm
    if attention.kind == "module":
        heads, given, taken = _of_module(traced, attention)
    else:
        heads, given = _projections(traced, attention, inside - {norms[0]}, channels)
        behind = _with_weights(traced, above_of(branch) - above - above_of(tokens))
        if len(behind) != 1 or not isinstance(linear := traced.root.get_submodule(behind[0]), nn.Linear):
            raise NoBlockError("it is not followed by a single linear layer")
        taken = {key: f"{behind[0]}.{key}" for key, _ in linear.named_parameters()}
    like = (taken["weight"],)
    fillings: dict[str, Filling] = {
        "norm.weight": Copy(like=(scale,)),
        "norm.bias": Copy(like=(shift,)),
        **{f"qkv.{key}": Copy(like=names) for key, names in given.items()},
        **{f"proj.{key}": Copy(like=(name,)) for key, name in taken.items()},
        "dense.weight": Zeros((channels, channels), like=like),
        "dense.bias": Zeros((channels,), like=like),
    }
    leading = _leading(traced, tokens)
    return AttentionBlock(attention, tokens, norms[0], branch, total, heads, leading, eps, fillings)


def _norm(traced: Reading, node: fx.Node) -> tuple[str, str, float] | None:
    """Return the weight, the bias and the epsilon of a LayerNorm over the channels, a module or a function."""
    module = traced.module(node)
    if isinstance(module, nn.LayerNorm) and module.weight is not None and module.bias is not None:
        return f"{node.target}.weight", f"{node.target}.bias", module.eps
    if layout.operation(node) == "layer_norm":
        weight, bias = layout.argument(node, "weight", 2), layout.argument(node, "bias", 3)
        if all(isinstance(n, fx.Node) and n.op == "get_attr" for n in (weight, bias)):
            return str(weight.target), str(bias.target), float(layout.argument(node, "eps", 4, 1e-5))
    return None


def _sum_behind(attention: Attention, above: set[fx.Node]) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Return the branch with the attention, what it is added to, and the sum."""
    reached = [attention.last]
    for node in reached:
        for user in node.users:
            terms = [n for n in user.all_input_nodes if n not in reached] if layout.operation(user) in _SUMS else []
            if len(terms) == 1 and terms[0] in above and _is_sequence(terms[0]) and _is_sequence(node):
                return node, terms[0], user
            if user not in reached:
                reached.append(user)
    raise NoBlockError("its output is not added to its input tokens (images, tokens, channels)")


_SUMS = ("add", "iadd")


def _is_sequence(node: fx.Node) -> bool:
    value = facts_of(node).get("value")
    return isinstance(value, Tensor) and value.dim() == 3 and rows(node) == 1


def _with_weights(traced: Reading, nodes: set[fx.Node]) -> list[str]:
    """Return the names of the layers among the nodes whose weights have several dimensions."""
    modules = {str(node.target): traced.module(node) for node in nodes if node.op == "call_module"}
    return [n for n, module in modules.items() if module and any(p.dim() > 1 for p in module.parameters())]


def _of_module(traced: Reading, attention: Attention) -> tuple[int, Names, dict[str, str]]:
    """Return the heads and the parameters of the input and output projections of torch's `MultiheadAttention`."""
    name = str(attention.last.target)
    module = traced.root.get_submodule(name)
    assert isinstance(module, nn.MultiheadAttention)
    if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        raise NoBlockError("its queries, keys and values are not from the same tokens")
    given: Names = {"weight": (f"{name}.in_proj_weight",)}
    if module.in_proj_bias is not None:
        given["bias"] = (f"{name}.in_proj_bias",)
    return module.num_heads, given, {key: f"{name}.out_proj.{key}" for key, _ in module.out_proj.named_parameters()}


def _projections(traced: Reading, attention: Attention, inside: set[fx.Node], channels: int) -> tuple[int, Names]:
    """Return the heads and the parameters of the linear layers to queries, keys and values: one, or one for each."""
    names = [_with_weights(traced, above_of(part) & inside) for part in attention.inputs]
    if any(len(found) != 1 for found in names):
        raise NoBlockError("queries, keys and values do not come from one linear layer, or one for each")
    layers = list(dict.fromkeys(found[0] for found in names))
    linears = [traced.root.get_submodule(name) for name in layers]
    heads = 0
    for index, part in enumerate(attention.inputs):
        first = channels * index if len(layers) == 1 else 0
        heads = _heads(traced, part, channels, first, swapped=index == 1 and attention.first is not None)
        if not heads or not all(isinstance(linear, nn.Linear) for linear in linears) or len(layers) == 2:
            raise NoBlockError("queries, keys and values are not concatenated, head by head")
    keys = [{key for key, _ in linear.named_parameters()} for linear in linears]
    if any(found != keys[0] for found in keys):
        raise NoBlockError("only some of its projections have a bias")
    return heads, {key: tuple(f"{name}.{key}" for name in layers) for key in sorted(keys[0])}


def _heads(traced: Reading, part: fx.Node, channels: int, first: int, swapped: bool) -> int:
    """Return the number of heads if the channels from `first` are in the order `(heads, tokens, depth)`; else 0."""
    carried = channels_carried(traced, part)
    if carried is None or carried.dim() not in (3, 4):
        return 0
    apart = carried[: len(carried) // BATCH].flatten(0, -3)
    apart = (apart.mT if swapped else apart)[:, 0]
    expected = first + torch.arange(channels, dtype=apart.dtype)
    return len(apart) if torch.equal(apart.flatten(), expected) else 0


def _leading(traced: Reading, tokens: fx.Node) -> int:
    """Return how many more tokens there are than places in their image."""
    above = above_of(tokens)
    images = [n for n in tokens.graph.nodes if n in above and isinstance(traced.module(n), nn.Conv2d)]
    if not images:
        raise NoBlockError("its tokens do not come from an image")
    leading = facts_of(tokens)["value"].shape[1] - facts_of(images[-1])["value"].shape[2:].numel()
    if leading < 0:
        raise NoBlockError("there are fewer tokens than places in the image")
    return int(leading)
