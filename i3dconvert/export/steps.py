"""The computations that layers on frames consist of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_of_frames(frames: Tensor, clips: int, length: int, fill: float | None) -> Tensor:
    """Map `(N·T, C, H, W)` to `(N, T, C, H, W)`, with one more frame of `fill` unless that is None."""
    clip = frames.reshape(clips, length, *frames.shape[1:])
    return clip if fill is None else torch.cat([clip, torch.full_like(clip[:, :1], fill)], dim=1)


def windows_of_clip(
    clip: Tensor, length: int, span: Sequence[int], first: Sequence[int], rows: Sequence[int], pace: Sequence[int],
    pads: bool,
) -> Tensor:  # fmt: skip
    """Map a clip `(N, T·each, C, H, W)` to what its windows see, `(N·count, taps, C, H, W)`.

    Args:
        clip: Each of its T frames has `each` rows. With `pads`, one more row is what lies outside the clip; otherwise,
            the border frames are replicated there.
        length: T.
        span: The first window to compute, and `count`.
        first: The frame that each tap of the clip's first window sees; negative ones precede the clip.
        rows: The row of the frame that each tap sees.
        pace: The temporal stride, and `each`.
        pads: Whether the clip has the additional row.
    """
    (begin, count), (stride, each) = span, pace
    starts = (torch.arange(count, device=clip.device) + begin) * stride
    seen = starts.unsqueeze(1) + torch.tensor(first, device=clip.device)
    index = seen.clamp(0, length - 1) * each + torch.tensor(rows, device=clip.device)
    if pads:
        index = torch.where((seen < 0) | (seen >= length), length * each, index)
    return clip.index_select(1, index.flatten()).reshape(clip.shape[0] * count, len(first), *clip.shape[2:])


def minimal_filtering(
    frames: Tensor, matrices: Sequence[Tensor], weight: Tensor, bias: Tensor | None, clips: int, groups: int,
    geometry: Sequence[int],
) -> Tensor:  # fmt: skip
    """Map `(N·T, C, H, W)` to `(N·T, C', H', W')` by minimal filtering along time, for N `clips`.

    Args:
        frames: The frames, padded in space.
        matrices: The result of `minimal_transforms` for T.
        weight, bias: Those of the convolutions of all transformed frames of a tile.
        clips: N.
        groups: The number of transformed frames of a tile.
        geometry: Stride, padding and dilation in space, two numbers each.
    """
    # Every size is written out, as torch's exporter takes minutes to divide symbolic ones.
    into, out = matrices
    (_, channels, height, width), (rows, length) = frames.shape, into.shape
    moved = torch.matmul(into, frames.reshape(clips, length, channels * height * width))
    stacked = moved.reshape(clips * rows // groups, groups * channels, height, width)
    products = F.conv2d(stacked, weight, bias, geometry[:2], geometry[2:4], geometry[4:], groups)
    channels, (height, width) = products.shape[1] // groups, products.shape[2:]
    found = torch.matmul(out, products.reshape(clips, rows, channels * height * width))
    return found.reshape(clips * length, channels, height, width)


class Steps(NamedTuple):
    """The functions that a layer calls; an export replaces them by operators."""

    clip: Callable[..., Tensor] = clip_of_frames
    windows: Callable[..., Tensor] = windows_of_clip
    filtering: Callable[..., Tensor] = minimal_filtering
