"""3D layers on frames: 2D convolutions and poolings, with a mixing of frames between them.

All take frames `(N·T, C, H, W)` and the numbers of clips N and frames T, and return `(N·T', C', H', W')`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert.export.steps import Steps
from i3dconvert.lift.modules import SpatialPad
from i3dconvert.recipes import Temporal

Combine = Callable[[Tensor, Tensor], Tensor]


class Mixing(nn.Module):
    """Gathers what each of T' temporal windows sees of the clip, tap by tap: a frame, or a row of its own in it.

    `first` holds the frame of each tap of the first window; negative ones precede the clip. Outside the clip, values
    are `fill`, or the border frame is replicated.
    """

    def __init__(
        self, temporal: Temporal, taps: tuple[int, ...], replicate: bool, rows: bool = False, fill: float = 0.0
    ) -> None:
        super().__init__()
        self.steps = Steps()
        self.stride, self.each = temporal.stride, len(taps) if rows else 1
        self.rows = tuple(range(len(taps))) if rows else (0,) * len(taps)
        self.first = tuple(tap * temporal.dilation - temporal.before for tap in taps)
        keeps_length = temporal.stride == 1 and temporal.before + temporal.after == temporal.span - 1
        self.trivial = self.first == (0,) and keeps_length
        beyond = max(self.first) + temporal.before + temporal.after - temporal.span + 1 > 0
        self.fill = fill if not replicate and (min(self.first) < 0 or beyond) else None

    def forward(self, frames: Tensor, clips: int, length: int, after: int) -> Tensor:
        """Gather `(N·T·rows, C, H, W)` to `(N·T', taps, C, H, W)`, where T is `length` and T' is `after`."""
        return self.windows(self.clip(frames, clips, length), length, 0, after)

    def reduced(self, frames: Tensor, clips: int, length: int, after: int, operation: Combine) -> Tensor:
        """Reduce `(N·T·rows, C, H, W)` to `(N·T', C, H, W)` one tap at a time, to hold two in memory instead of all."""
        clip = self.clip(frames, clips, length)
        out, *others = (self.windows(clip, length, 0, after, slice(tap, tap + 1)) for tap in range(len(self.first)))
        for other in others:
            out = operation(out, other)
        return out.flatten(0, 1)

    def clip(self, frames: Tensor, clips: int, length: int) -> Tensor:
        """Map `(N·T·rows, C, H, W)` to `(N, T·rows, C, H, W)`, with the frame that taps outside the clip see."""
        return self.steps.clip(frames, clips, length * self.each, self.fill)

    def windows(self, clip: Tensor, length: int, begin: int, count: int, taps: slice = slice(None)) -> Tensor:
        """Return `(N·count, taps, C, H, W)` for `count` windows from `begin` on."""
        pace, pads = (self.stride, self.each), self.fill is not None
        return self.steps.windows(clip, length, (begin, count), self.first[taps], self.rows[taps], pace, pads)


class ConvGeometry(NamedTuple):
    """The spatial geometry of a 2D convolution."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    space: SpatialPad | None
    beyond: tuple[int, int] | None = None
    """The output padding of a transposed convolution; None for others."""


def frames_conv(
    kernel: Tensor, bias: Tensor | None, temporal: Temporal, replicate: bool, geometry: ConvGeometry, length: int
) -> nn.Module:
    """Return the cheapest 2D form on frames of a `Conv3d` with the kernel `(O, I/groups, T, kH, kW)`.

    Taps that are exactly zero are left out. `length` is the usual number of frames at the layer.
    """
    taps = used_taps(kernel)
    kernel = kernel[:, :, list(taps)]
    centred = Temporal(3, 1, 1, 1)
    if temporal == centred and len(taps) == 3 and geometry.groups == 1 and length > 1 and kernel.shape[1] >= 16:
        return MinimalConv(kernel, bias, replicate, geometry, 4 if length > 2 else 2)
    fewer = len(taps) > 1 and temporal.stride == 1 and (geometry.groups > 1 or kernel.shape[0] < kernel.shape[1])
    mixing = Mixing(temporal, taps, replicate, rows=fewer)
    if fewer:
        return SummedConv(kernel, bias, mixing, geometry)
    return StackedConv(kernel, bias, mixing, geometry, halved=len(taps) > 1 and temporal.length(length) >= HALVED)


def used_taps(kernel: Tensor) -> tuple[int, ...]:
    """Return the taps of a kernel `(O, I, T, kH, kW)` that are not exactly zero, at least one."""
    return tuple(tap for tap in range(kernel.shape[2]) if bool(kernel[:, :, tap].any())) or (0,)


def conv_of_images(weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, groups: int) -> nn.Module:
    """Return a constant 2D convolution, which follows its own padding."""
    first, second, kernel = weight.shape[0], weight.shape[1], (weight.shape[2], weight.shape[3])
    options: dict[str, Any] = {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation}
    options |= {"groups": groups, "bias": bias is not None, "device": "meta"}
    conv: nn.Conv2d | nn.ConvTranspose2d
    if geometry.beyond is None:
        conv = nn.Conv2d(second * groups, first, kernel, **options)
    else:
        conv = nn.ConvTranspose2d(first, second * groups, kernel, output_padding=geometry.beyond, **options)
    conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv


HALVED = 4
"""Output frames, for the usual clip, from which a layer is computed for half of them at a time."""


class StackedConv(nn.Module):
    """Stacks the frames of a window on the channels: one convolution from taps·I channels.

    With `halved`, half of the windows run at a time, as the stack takes the most memory of a long clip.
    """

    def __init__(
        self, kernel: Tensor, bias: Tensor | None, mixing: Mixing, geometry: ConvGeometry, halved: bool
    ) -> None:
        super().__init__()
        self.mixing, self.groups, self.space = mixing, geometry.groups, geometry.space
        self.halved = halved
        weight = (kernel if self.groups > 1 else kernel.transpose(1, 2)).flatten(1, 2)
        self.conv = conv_of_images(weight, bias, geometry, self.groups)

    def forward(self, frames: Tensor, clips: int, length: int, after: int) -> Tensor:
        """`(N·T, C, H, W)` → `(N·T', C', H', W')`."""
        if self.mixing.trivial:
            return self.convolved(frames)
        if self.halved:
            return self.in_halves(frames, clips, length, after, nn.Identity())
        return self.convolved(self.stacked(self.mixing(frames, clips, length, after)))

    def in_halves(self, frames: Tensor, clips: int, length: int, after: int, behind: nn.Module) -> Tensor:
        """Map `(N·T, C, H, W)` to `(N·T', C'', H'', W'')`, including `behind`, which follows frame by frame."""
        clip, first = self.mixing.clip(frames, clips, length), after // 2
        parts = ((0, first), (first, after - first))
        whole = torch.cat([self.part(clip, clips, length, *part, behind) for part in parts], 1)
        return whole.reshape(clips * after, *whole.shape[2:])

    def part(self, clip: Tensor, clips: int, length: int, begin: int, count: int, behind: nn.Module) -> Tensor:
        """Return `(N, count, C'', H'', W'')` for `count` windows from `begin` on."""
        out: Tensor = behind(self.convolved(self.stacked(self.mixing.windows(clip, length, begin, count))))
        return out.reshape(clips, count, *out.shape[1:])

    def stacked(self, windows: Tensor) -> Tensor:
        """Map `(N·T', taps, C, H, W)` to the channels that the convolution takes, `(N·T', taps·C, H, W)`."""
        return (windows.transpose(1, 2) if self.groups > 1 else windows).flatten(1, 2)

    def convolved(self, frames: Tensor) -> Tensor:
        """Convolve in space."""
        out: Tensor = self.conv(self.space(frames) if self.space else frames)
        return out


class Padding(nn.Module):
    """Pads height and width."""

    def __init__(self, space: SpatialPad) -> None:
        super().__init__()
        self.space = space

    def forward(self, frames: Tensor) -> Tensor:
        """`(N·T, C, H, W)` → `(N·T, C, H', W')`."""
        return self.space(frames)


class StemInHalves(nn.Module):
    """Runs the first convolution, what follows it frame by frame, and the pooling, for half of the frames at a time.

    At full size, the convolution's output takes the most memory of a long clip.
    """

    def __init__(self, conv: StackedConv, act: nn.Module, pool: FramesPool) -> None:
        super().__init__()
        self.conv, self.pool = conv, pool
        self.behind = nn.Sequential(act, *([Padding(pool.space)] if pool.space is not None else []), pool.pool)

    def forward(self, frames: Tensor, clips: int, length: int, after: int, pooled: int) -> Tensor:
        """Map `(N·T, C, H, W)` to `(N·T'', C', H'', W'')`; T' after the convolution is `after`, T'' is `pooled`."""
        return self.pool.mixed(self.conv.in_halves(frames, clips, length, after, self.behind), clips, after, pooled)


class SummedConv(nn.Module):
    """Sums the shares of each frame in every window that contains it, from one convolution to taps·O channels."""

    def __init__(self, kernel: Tensor, bias: Tensor | None, mixing: Mixing, geometry: ConvGeometry) -> None:
        super().__init__()
        self.mixing, self.taps, self.groups, self.space = mixing, kernel.shape[2], geometry.groups, geometry.space
        weight = kernel.reshape(self.groups, -1, *kernel.shape[1:]).movedim(3, 1).flatten(0, 2)
        self.conv = conv_of_images(weight, None, geometry, self.groups)
        self.bias = None if bias is None else nn.Parameter(bias.reshape(-1, 1, 1), requires_grad=False)

    def forward(self, frames: Tensor, clips: int, length: int, after: int) -> Tensor:
        """`(N·T, C, H, W)` → `(N·T', C', H', W')`."""
        shares = self.conv(self.space(frames) if self.space else frames)
        if self.groups > 1:
            shares = shares.reshape(frames.shape[0], self.groups, self.taps, -1, *shares.shape[2:]).transpose(1, 2)
        shares = shares.reshape(clips * length * self.taps, -1, *shares.shape[-2:])
        out = self.mixing.reduced(shares, clips, length, after, torch.add)
        return out if self.bias is None else out + self.bias


_INPUT = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
_KERNEL = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
_OUTPUT = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}


def minimal_transforms(like: Tensor, length: int, m: int, replicate: bool) -> tuple[Tensor, Tensor]:
    """Return the matrices along time of `MinimalConv`, in the dtype of `like`, for tiles of `m` frames.

    They map the frames of a clip to the transformed frames of each tile, temporal padding included, `(tiles·(m + 2),
    T)`, and the products of the tiles to output frames, `(T, tiles·(m + 2))`.
    """
    into, out = (torch.tensor(matrix, dtype=like.dtype, device=like.device) for matrix in (_INPUT[m], _OUTPUT[m]))
    first = torch.arange((length + m - 1) // m, device=like.device).unsqueeze(1) * m
    seen = first - 1 + torch.arange(m + 2, device=like.device)
    outputs = first + torch.arange(m, device=like.device)
    frames = torch.arange(length, device=like.device)
    if replicate:
        seen = seen.clamp(0, length - 1)
    from_frames = torch.matmul(into, (seen.unsqueeze(2) == frames).to(like.dtype)).flatten(0, 1)
    to_frames = torch.matmul((frames.reshape(-1, 1, 1) == outputs).to(like.dtype), out).flatten(1, 2)
    return from_frames, to_frames


class MinimalConv(nn.Module):
    """Computes three taps along time by minimal filtering: m + 2 convolutions for `m` frames instead of 3·m.

    This is Winograd's F(m, 3) along one axis (Lavin & Gray, arXiv:1509.09308, section 4.1), which multiplies images and
    kernels instead of numbers. The transforms along time are products with small matrices.
    """

    def __init__(self, kernel: Tensor, bias: Tensor | None, replicate: bool, geometry: ConvGeometry, m: int) -> None:
        super().__init__()
        self.m, self.replicate, self.space = m, replicate, geometry.space
        self.geometry = (*geometry.stride, *geometry.padding, *geometry.dilation)
        self.steps = Steps()
        transform = torch.tensor(_KERNEL[m], dtype=torch.float64)
        weight = torch.einsum("nt,oithw->noihw", transform, kernel.double()).to(kernel.dtype)
        if bias is not None:  # the second product occurs once in every frame
            bias = F.pad(bias, (len(bias), m * len(bias)))
        self.conv = conv_of_images(weight.flatten(0, 1), bias, geometry, m + 2)

    def forward(self, frames: Tensor, clips: int, transforms: tuple[Tensor, Tensor]) -> Tensor:
        """Map `(N·T, C, H, W)` to `(N·T, C', H', W')`, with the `minimal_transforms` of T."""
        conv, padded = self.conv, self.space(frames) if self.space else frames
        return self.steps.filtering(padded, transforms, conv.weight, conv.bias, clips, self.m + 2, self.geometry)


class FramesPool(nn.Module):
    """Runs a 3D pooling as a 2D one, and the maximum or mean of the frames in each temporal window.

    Outside the clip the border frame is replicated; for a window with `gaps`, which may miss it, −∞ is used.
    """

    def __init__(
        self, pool: nn.Module, temporal: Temporal, largest: bool, space: SpatialPad | None, gaps: bool = False
    ) -> None:
        super().__init__()
        self.pool, self.largest, self.space = pool, largest, space
        self.mixing = Mixing(temporal, tuple(range(temporal.kernel)), replicate=not gaps, fill=float("-inf"))

    def forward(self, frames: Tensor, clips: int, length: int, after: int) -> Tensor:
        """`(N·T, C, H, W)` → `(N·T', C, H', W')`."""
        return self.mixed(self.pool(self.space(frames) if self.space else frames), clips, length, after)

    def mixed(self, pooled: Tensor, clips: int, length: int, after: int) -> Tensor:
        """`(N·T, C, H', W')` → `(N·T', C, H', W')`."""
        if self.mixing.trivial:
            return pooled
        mixed = self.mixing.reduced(pooled, clips, length, after, torch.maximum if self.largest else torch.add)
        return mixed if self.largest else mixed / len(self.mixing.first)


class LayerNormOverChannels(nn.LayerNorm):
    """LayerNorm over the channels of every position of an image."""

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, H, W)` → `(N, C, H, W)`."""
        normed: Tensor = F.layer_norm(
            input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed.permute(0, 3, 1, 2)
