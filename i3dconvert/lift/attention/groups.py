"""Attention over the tokens of a group of frames.

Attention shares each weight out among equal keys: over the tokens of several equal frames it gives what it gives over
those of one. With class tokens, biases and masks repeated for each frame, joint space-time attention (Bertasius et al.,
TimeSformer, arXiv:2102.05095, section 3; Arnab et al., ViViT, arXiv:2103.15691, section 3.3, model 1) on a replicated
clip is therefore the 2D network's, for any number of frames.

Everything here works on frames `(N·T·W, …)`, T being outermost within a clip.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from i3dconvert.errors import FramesError

ALL = 0
"""The span of attention over all frames."""


class Groups(NamedTuple):
    """How the frames of a batch are told apart, `(N·T·W, …)`, and which attend to each other."""

    clips: int
    """N."""
    rows: int
    """W, whatever stands between frames and tokens in the batch axis (windows, heads)."""
    span: int
    """Frames in a group, `ALL` being all."""
    shift: int = 0
    """By how many frames the groups are shifted."""


def grouped(frames: Tensor, groups: Groups) -> Tensor:
    """`(N·T·W, …)` → `(N, G, S, W, …)`: G groups of S frames."""
    clips, rows, span, _ = groups
    length = frames.shape[0] // (clips * rows)
    size = length if span == ALL else torch.sym_min(length, span)
    if isinstance(length, int) and length % size:
        raise FramesError(f"attention over groups of {size} frames: of which {length} are no multiple")
    return frames.reshape(clips, length // size, size, rows, *frames.shape[1:])


def tokens(frames: Tensor, groups: Groups) -> Tensor:
    """`(N·T·W, …, L, D)` → `(N·G·W, …, S·L, D)`: the tokens of a group's frames side by side."""
    return grouped(frames, groups).movedim(2, -3).flatten(-3, -2).flatten(0, 2)


def frames_of(joint: Tensor, like: Tensor, groups: Groups) -> Tensor:
    """The inverse of `tokens`; `like` is what tells the number of frames and of their tokens, `(N·T·W, …, L, ·)`."""
    apart = grouped(like, groups)
    size, length = apart.shape[2], like.shape[-2]
    split = joint.reshape(*apart.shape[:2], groups.rows, *joint.shape[1:-2], size, length, joint.shape[-1])
    return split.movedim(-3, 2).flatten(0, 3)


def shifted(frames: Tensor, groups: Groups) -> Tensor:
    """`(N·T·W, …)` with the frames of each clip of more than `span` moved cyclically, forward by `-shift`."""
    clips, rows, span, shift = groups
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
    groups: Groups,
    bias: Tensor | None = None,
    options: dict[str, Any] | None = None,
) -> Tensor:
    """`scaled_dot_product_attention` of `(N·T·W, …, L, D)` over the tokens of a group's frames, each masked alike.

    `bias`, `(2·span − 1, heads, L, K)`, is added by the distance in time; `options` are torch's own.
    """
    asking, asked, given = (tokens(part, groups) for part in (query, key, value))
    if mask is not None:
        mask = _mask_of_groups(mask, query, key, groups)
    if groups.shift or bias is not None:
        mask = _mask_in_time(mask, query, key, groups, bias)
    attended = F.scaled_dot_product_attention(asking, asked, given, mask, **(options or {}))
    return frames_of(attended, query, groups)


def _mask_of_groups(mask: Tensor, query: Tensor, key: Tensor, groups: Groups) -> Tensor:
    """`(…, L, K)`, of every frame or of all alike, → `(…, S·L, S·K)`; between two frames it is that of the query's."""
    size = grouped(query, groups).shape[2]
    mask = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])
    own = mask.dim() == query.dim() and mask.shape[0] == query.shape[0] and groups.rows * groups.clips * size > 1
    apart = (
        grouped(mask, groups).movedim(2, -3)
        if own
        else mask.unsqueeze(-3).expand(*mask.shape[:-2], size, *mask.shape[-2:])
    )
    pairs = apart.unsqueeze(-2).expand(*apart.shape[:-1], size, apart.shape[-1])
    joint = pairs.flatten(-4, -3).flatten(-2, -1)
    return joint.flatten(0, 2) if own else joint


def _mask_in_time(mask: Tensor | None, query: Tensor, key: Tensor, groups: Groups, bias: Tensor | None) -> Tensor:
    """The mask over a group's tokens, `(…, S·L, S·K)`, with what depends on the two frames' distance."""
    clips, rows, span, shift = groups
    count, size, pair = *grouped(query, groups).shape[1:3], (query.shape[-2], key.shape[-2])
    if mask is None:
        mask = query.new_zeros(*pair).repeat(size, size)
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    if bias is not None:
        mask = mask + _further(bias, size).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    if not shift:
        return mask
    barred = _apart(count, size, span, shift, query.device).reshape(count, size, 1, size, 1)
    barred = barred.expand(count, size, pair[0], size, pair[1]).flatten(3, 4).flatten(1, 2)
    barred = barred.reshape(1, count, 1, 1, *barred.shape[1:]).expand(clips, count, rows, 1, *barred.shape[1:])
    return mask.masked_fill(barred.flatten(0, 2), float("-inf"))


def score_pairs(query: Tensor, keys: Tensor, groups: Groups) -> Tensor:
    """`(N·T·W, …, L, D)` by `(N·T·W, …, D, K)` → `(N·P·W, …, L, K)`, P being the pairs of a group's frames."""
    asking, asked = (grouped(part, groups) for part in (query, keys))
    return torch.matmul(asking.unsqueeze(3), asked.unsqueeze(2)).flatten(0, 4)


def for_each_key(frames: Tensor, groups: Groups) -> Tensor:
    """`(N·T·W, …)` → `(N·P·W, …)`: what belongs to a query's frame, beside each frame that it attends to."""
    apart = grouped(frames, groups).unsqueeze(3)
    return apart.expand(*apart.shape[:3], apart.shape[2], *apart.shape[4:]).flatten(0, 4)


def _paired(pairs: Tensor, like: Tensor, groups: Groups, rows_like: int) -> Tensor:
    """`(N·P·W, …, L, K)` → `(N, G, S, W, …, L, S, K)`: query's frame first, key's frame beside the keys."""
    count, size = grouped(like, groups._replace(rows=rows_like)).shape[1:3]
    return pairs.reshape(groups.clips, count, size, size, groups.rows, *pairs.shape[1:]).movedim(3, -2)


def softmax_of_pairs(pairs: Tensor, like: Tensor, groups: Groups, rows_like: int, bias: Tensor | None = None) -> Tensor:
    """`(N·P·W, …, L, K)`: softmax over the keys of all the S frames that a query attends to; `like` is the query.

    Times S, so that the weights within each pair of frames are those within one frame where all are equal, whatever is
    computed of them on the way to the values (mixed heads with a bias, CaiT). `bias` as in `attend_jointly`.
    """
    apart = _paired(pairs, like, groups, rows_like)  # (N, G, S, W, …, L, S, K)
    count, size = apart.shape[1:3]
    if bias is not None:
        apart = apart + _further(bias, size).movedim(1, -2).unsqueeze(1)
    if groups.shift:
        barred = _apart(count, size, groups.span, groups.shift, pairs.device)
        barred = barred.reshape(count, size, *[1] * (apart.dim() - 5), size, 1)
        apart = apart.masked_fill(barred, float("-inf"))
    shared = apart.flatten(-2).softmax(-1).reshape(apart.shape) * apart.shape[-2]
    return shared.movedim(-2, 3).flatten(0, 4)


def attend_pairs(pairs: Tensor, value: Tensor, groups: Groups, rows_value: int) -> Tensor:
    """`(N·P·W, …, L, K)` by `(N·T·W, …, K, D)` → `(N·T·W, …, L, D)`, the mean over the frames attended to."""
    apart = _paired(pairs, value, groups, rows_value)
    values = grouped(value, groups._replace(rows=rows_value)).movedim(2, -3).flatten(-3, -2).unsqueeze(2)
    return torch.matmul(apart.flatten(-2), values).flatten(0, 3) / apart.shape[-2]
