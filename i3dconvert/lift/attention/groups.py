"""Attention over the tokens of a group of frames.

Attention divides each weight among equal keys: over the tokens of several equal frames, its output equals that over one
frame's tokens. With class tokens, biases and masks repeated for each frame, joint space-time attention (Bertasius et
al., TimeSformer, arXiv:2102.05095, section 3; Arnab et al., ViViT, arXiv:2103.15691, section 3.3, model 1) on a
replicated clip therefore equals the 2D network's, for any number of frames.

Everything here works on frames `(N·T·W, …)`, with T outermost within a clip.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from i3dconvert.errors import FramesError

ALL = 0
"""The span of attention over all frames."""


class Groups(NamedTuple):
    """How the frames of a batch, `(N·T·W, …)`, are grouped for attention."""

    clips: int
    """N."""
    rows: int
    """W, the rows between frames and tokens in the batch axis (windows, heads)."""
    span: int
    """Frames in a group; `ALL` for all."""
    shift: int = 0
    """Frames by which the groups are shifted."""


def grouped(frames: Tensor, groups: Groups) -> Tensor:
    """Map `(N·T·W, …)` to `(N, G, S, W, …)`: G groups of S frames."""
    clips, rows, span, _ = groups
    length = frames.shape[0] // (clips * rows)
    size = length if span == ALL else torch.sym_min(length, span)
    if isinstance(length, int) and length % size:
        raise FramesError(f"attention over groups of {size} frames: {length} is not a multiple of that")
    return frames.reshape(clips, length // size, size, rows, *frames.shape[1:])


def tokens(frames: Tensor, groups: Groups) -> Tensor:
    """Concatenate the tokens of a group's frames, `(N·T·W, …, L, D)` → `(N·G·W, …, S·L, D)`."""
    return grouped(frames, groups).movedim(2, -3).flatten(-3, -2).flatten(0, 2)


def another(query: Tensor) -> Tensor:
    """Return a view: for one object as all its inputs, torch's `MultiheadAttention` computes all scores at once."""
    return query.view_as(query)


def frames_of(joint: Tensor, like: Tensor, groups: Groups) -> Tensor:
    """Invert `tokens`; `like`, `(N·T·W, …, L, ·)`, tells the numbers of frames and of their tokens."""
    apart = grouped(like, groups)
    size, length = apart.shape[2], like.shape[-2]
    split = joint.reshape(*apart.shape[:2], groups.rows, *joint.shape[1:-2], size, length, joint.shape[-1])
    return split.movedim(-3, 2).flatten(0, 3)


def shifted(frames: Tensor, groups: Groups) -> Tensor:
    """Shift the frames of each clip longer than `span` in `(N·T·W, …)` cyclically, forward by `-shift`."""
    clips, rows, span, shift = groups
    apart = frames.reshape(clips, frames.shape[0] // (clips * rows), rows, *frames.shape[1:])
    places = torch.arange(apart.shape[1], device=frames.device)
    moved = shift * (places >= span).any()
    return apart.index_select(1, (places + moved) % (places[-1] + 1)).flatten(0, 2)


def _apart(groups: int, size: int, span: int, shift: int, device: torch.device) -> Tensor:
    """Return `(G, S, S)`: which query and key frames of the last shifted group were not neighbours before."""
    late = torch.arange(size, device=device) >= size - shift
    group = torch.arange(groups, device=device)
    return (late.unsqueeze(1) != late) & ((group == group[-1]) & group.any()).reshape(-1, 1, 1)


def _further(bias: Tensor, size: int) -> Tensor:
    """Select the bias of each pair of frames by their distance: `(2·span − 1, heads, L, K)` → `(S, S, heads, L, K)`."""
    frames = torch.arange(size, device=bias.device)
    return bias[frames.unsqueeze(1) - frames + bias.shape[0] // 2]


def middle(table: Tensor, distances: int) -> Tensor:
    """Return the relative positions within one frame, `(distances · entries, heads)` → `(entries, heads)`."""
    within: Tensor = torch.unflatten(table, 0, (distances, -1))[distances // 2]
    return within


def beyond(table: Tensor, distances: int) -> Tensor:
    """Subtract the middle distance: `(distances · entries, heads)` → `(entries, heads · distances)`."""
    apart = torch.unflatten(table, 0, (distances, -1))
    return (apart - apart[distances // 2]).movedim(0, -1).flatten(1)


def by_distance(bias: Tensor, distances: int) -> Tensor:
    """Map `(1, heads · distances, L, K)` to `(distances, heads, L, K)`."""
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
    """Apply `scaled_dot_product_attention` to `(N·T·W, …, L, D)` over the tokens of a group's frames.

    `mask` is `(P, …, L, K)` and repeats after P rows: 1, W, or all; between two frames, the query's applies. `bias`,
    `(2·span − 1, heads, L, K)`, is added by the distance in time; `options` are torch's.
    """
    asking, asked, given = (tokens(part, groups) for part in (query, key, value))
    size, length = grouped(query, groups).shape[2], query.shape[-2]
    added = _added(mask, query, key, groups, bias)
    together = size if torch.compiler.is_compiling() else _together(added, size, length * key.shape[-2])
    parts, at_once = [], None
    for start in (0,) if together is size else range(0, size, together):
        count = together if together is size else min(together, size - start)
        part = asking if together is size else asking.narrow(-2, start * length, count * length)
        if at_once is None or any(one.shape[-4] != 1 for one in added):
            at_once = _mask(added, query, key, groups, start, count)
        parts.append(
            _attend(part, asked, given, at_once if at_once is None else at_once[..., : count * length, :], options)
        )
    return frames_of(parts[0] if len(parts) == 1 else torch.cat(parts, -2), query, groups)


_MASKED_AT_ONCE = 2**24
"""Entries of a mask that are in memory at once, 64 MiB in float32: that of as many of the queries' frames as fit."""


def _together(added: list[Tensor], size: int, pair: int) -> int:
    """Return how many of the queries' frames are masked at once."""
    if not added:
        return size
    lead = math.prod(map(max, zip(*(one.shape[:-4] for one in added), strict=True)))
    fitting = max(1, _MASKED_AT_ONCE // max(lead * pair * size, 1))
    return size if fitting >= size else fitting


def _added(mask: Tensor | None, query: Tensor, key: Tensor, groups: Groups, bias: Tensor | None) -> list[Tensor]:
    """Return the terms added to the scores of a group's tokens, each `(N, G, W, …, S, L, S, K)` or 1 on equal axes."""
    _, rows, span, shift = groups
    count, size, middle = *grouped(query, groups).shape[1:3], query.dim() - 3
    added = []
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
        mask = mask.to(query.dtype)  # torch's fused forms read the memory of another dtype as if it were their own
        mask = mask[(None,) * (query.dim() - mask.dim())]
        if isinstance(mask.shape[0], int | Tensor) and rows % mask.shape[0] == 0:
            period = mask.shape[0]
            repeated = mask if period in (1, rows) else mask.repeat(rows // period, *[1] * (mask.dim() - 1))
            added.append(repeated[None, None].unsqueeze(-3).unsqueeze(-2))
        else:
            added.append(grouped(mask, groups).movedim(2, -3).unsqueeze(-2))
    if bias is not None:
        added.append(_further(bias, size).permute(2, 0, 3, 1, 4)[(None,) * (2 + middle)])
    if shift:
        barred = _apart(count, size, span, shift, query.device).reshape(1, count, 1, *[1] * middle, size, 1, size, 1)
        added.append(torch.zeros_like(barred, dtype=query.dtype).masked_fill(barred, float("-inf")))
    return added


def _mask(added: list[Tensor], query: Tensor, key: Tensor, groups: Groups, start: int, count: int) -> Tensor | None:
    """Return the sum `(P, …, F·L, S·K)` of what is `added` for F = `count` of the queries' frames."""
    if not added:
        return None
    size = grouped(query, groups).shape[2]
    first, *others = (one if one.shape[-4] == 1 else one.narrow(-4, start, count) for one in added)
    total = sum(others, first)
    total = total.expand(*total.shape[:-4], count, query.shape[-2], size, key.shape[-2])
    total = total.flatten(-4, -3).flatten(-2, -1)
    if any(one.shape[:2] != (1, 1) for one in added):
        total = total.expand(*total.shape[:2], groups.rows, *total.shape[3:])
    return total.flatten(0, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any] | None) -> Tensor:
    """Attend with `(R, …, L, D)` on four axes, for which torch has fused forms, and a mask that repeats after P rows.

    The P rows become heads, so that the mask is one view for all rows.
    """
    shape, period = query.shape, 1 if mask is None else mask.shape[0]
    rows = (shape[0], 1) if isinstance(period, int) and period == 1 else (-1, period)
    asking, asked, given = (part.reshape(*rows, *part.shape[1:]).flatten(1, -3) for part in (query, key, value))
    if mask is not None:
        if mask.dim() > 4 or rows[0] == -1:
            mask = mask.expand(period, *shape[1:-2], *mask.shape[-2:])
        mask = mask.reshape(1, -1, *mask.shape[-2:])
    attended = F.scaled_dot_product_attention(asking, asked, given, mask, **(options or {}))
    return attended.reshape(*shape[:-1], value.shape[-1])


def score_pairs(query: Tensor, keys: Tensor, groups: Groups) -> Tensor:
    """Multiply `(N·T·W, …, L, D)` and `(N·T·W, …, D, K)` to `(N·P·W, …, L, K)`, for P pairs of frames."""
    asking, asked = (grouped(part, groups) for part in (query, keys))
    return torch.matmul(asking.unsqueeze(3), asked.unsqueeze(2)).flatten(0, 4)


def for_each_key(frames: Tensor, groups: Groups) -> Tensor:
    """Repeat a query frame's values for each frame that it attends to, `(N·T·W, …)` → `(N·P·W, …)`."""
    apart = grouped(frames, groups).unsqueeze(3)
    return apart.expand(*apart.shape[:3], apart.shape[2], *apart.shape[4:]).flatten(0, 4)


def _paired(pairs: Tensor, like: Tensor, groups: Groups, rows_like: int) -> Tensor:
    """Map `(N·P·W, …, L, K)` to `(N, G, S, W, …, L, S, K)`: the query's frame first, the key's before the keys."""
    count, size = grouped(like, groups._replace(rows=rows_like)).shape[1:3]
    return pairs.reshape(groups.clips, count, size, size, groups.rows, *pairs.shape[1:]).movedim(3, -2)


def softmax_of_pairs(pairs: Tensor, like: Tensor, groups: Groups, rows_like: int, bias: Tensor | None = None) -> Tensor:
    """Apply softmax over the keys of all S frames that a query attends to; `like` is the query.

    The result `(N·P·W, …, L, K)` is multiplied by S, so that for equal frames the weights within each pair are those
    within one frame, for whatever is computed from them (CaiT mixes heads with a bias). `bias` as in `attend_jointly`.
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
    """Average `(N·P·W, …, L, K)` times `(N·T·W, …, K, D)` over the frames attended to, `(N·T·W, …, L, D)`."""
    apart = _paired(pairs, value, groups, rows_value)
    values = grouped(value, groups._replace(rows=rows_value)).movedim(2, -3).flatten(-3, -2).unsqueeze(2)
    return torch.matmul(apart.flatten(-2), values).flatten(0, 3) / apart.shape[-2]
