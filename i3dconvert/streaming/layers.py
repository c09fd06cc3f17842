"""The layers of a stream: each maps the frames of a step and what it kept to new ones of both.

All work on frames `(N·P, …)`, P for each of N videos. What they keep is `(N, frames, …)`, zeros at the start, for which
None stands. A clock `(N, 4)` holds each video's steps so far, the steps since its end, and the height and width of its
frames, so that frames outside the video equal the padding of the whole clip.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert.export.framewise import ConvGeometry, Padding, conv_of_images
from i3dconvert.lift.modules import BlurPool3d, SpatialPad
from i3dconvert.streaming.pace import Pace, Window

STEPS, ENDED, SIZE = 0, 1, slice(2, 4)
"""The columns of a clock."""
COLUMNS = 4

Kept = Tensor | None


def tick(clock: Tensor) -> Tensor:
    """Advance the clock by a step."""
    ended = clock[:, ENDED : SIZE.start]
    return torch.cat([clock[:, STEPS:ENDED] + 1, ended + (ended > 0).to(clock.dtype), clock[:, SIZE]], 1)


def _like(mask: Tensor, frames: Tensor) -> Tensor:
    """Reshape `(N, P)` to `(N, P, 1, …)`, to broadcast with `(N, P, …)`."""
    return mask.reshape(*mask.shape, *[1] * (frames.dim() - 2))


def _own(kept: Tensor) -> Tensor:
    """Copy the frames to keep, since a view would keep those of the whole step in memory."""
    return kept.clone()


class Outside(nn.Module):
    """Which frames of a step, or of those kept before it, lie outside the video and its padding."""

    started: Tensor
    ended: Tensor

    def __init__(self, pace: Pace, places: Iterable[int], before: int = 0, after: int = 0) -> None:
        """`places` count from the step's first frame; `before` and `after` frames around the video count as inside."""
        super().__init__()
        places = list(places)
        started, ended = [pace.started(p, before) for p in places], [pace.ended(p, after) for p in places]
        self.register_buffer("started", torch.tensor(started, dtype=torch.float32), persistent=False)
        self.register_buffer("ended", torch.tensor(ended, dtype=torch.float32), persistent=False)

    def before(self, clock: Tensor) -> Tensor:
        """Map `(N, 4)` to `(N, places)`: whether each is before the start."""
        return clock[:, STEPS:ENDED] < self.started

    def behind(self, clock: Tensor) -> Tensor:
        """Map `(N, 4)` to `(N, places)`: whether each is after the end."""
        return clock[:, ENDED : SIZE.start] >= self.ended

    def forward(self, clock: Tensor) -> Tensor:
        """Map `(N, 4)` to `(N, places)`: whether each is either."""
        return self.before(clock) | self.behind(clock)


class Seen(nn.Module):
    """The kept frames and the new ones, with `fill` or the border frame (None) outside the video."""

    def __init__(self, window: Window, fill: float | None) -> None:
        super().__init__()
        self.window, self.fill = window, fill
        pace = window.pace
        self.first = pace.late % pace.frames
        """The place of the video's first frame in its step."""
        self.start = pace.late // pace.frames
        needed = (window.looks_before and pace.late > 0) or window.looks_behind
        self.outside = Outside(pace, range(pace.frames)) if needed or fill is None else None

    def forward(self, frames: Tensor, clips: int, kept: Kept, clock: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(N·P, …)` to `(N, kept + P, …)`, and the part to keep, `(N, kept, …)`."""
        new = torch.unflatten(frames, 0, (clips, self.window.pace.frames))
        if kept is None:
            kept = new.new_zeros(new.shape[0], self.window.kept, *new.shape[2:])
        if self.fill is None:
            seen = self.replicated(kept, new, clock)
        else:
            if self.outside is not None:
                new = new.masked_fill(_like(self.outside(clock), new), self.fill)
            if self.fill and self.window.looks_before:
                kept = kept.masked_fill(_like(clock[:, STEPS:ENDED] < 1, kept), self.fill)
            seen = torch.cat([kept, new], 1)
        return seen, _own(seen[:, self.window.pace.frames :])

    def replicated(self, kept: Tensor, new: Tensor, clock: Tensor) -> Tensor:
        """Replace frames before the first by it, once it has arrived, and frames after the last by that."""
        assert self.outside is not None
        if self.window.looks_behind:
            behind, last, frames = self.outside.behind(clock), kept[:, -1], []
            for place, frame in enumerate(new.unbind(1)):
                last = torch.where(_like(behind[:, place : place + 1], new)[:, 0], last, frame)
                frames.append(last)
            new = torch.stack(frames, 1)
        seen = torch.cat([kept, new], 1)
        place = self.window.kept + self.first
        if not self.window.looks_before or not place:
            return seen
        now = _like(clock[:, STEPS:ENDED] == self.start, seen)
        early = torch.where(now, seen[:, place : place + 1], seen[:, :place])
        return torch.cat([early, seen[:, place:]], 1)


class ConvOverTime(nn.Module):
    """A convolution over time: the frames of a window stacked on the channels, in one 2D convolution.

    With groups, each tap is convolved separately and the results are summed.
    """

    def __init__(
        self, kernel: Tensor, bias: Tensor | None, window: Window, replicate: bool, geometry: ConvGeometry
    ) -> None:
        """`kernel` `(O, I/groups, taps, kH, kW)`, `(I, O/groups, …)` if transposed, has the window's taps."""
        super().__init__()
        self.window, self.space, self.taps = window, geometry.space, kernel.shape[2]
        self.summed = geometry.groups > 1 and self.taps > 1
        self.seen = Seen(window, None if replicate else 0.0)
        groups = geometry.groups * (self.taps if self.summed else 1)
        in_rows = self.summed or geometry.beyond is not None
        weight = kernel.movedim(2, 0).flatten(0, 1) if in_rows else kernel.transpose(1, 2).flatten(1, 2)
        if bias is not None and self.summed:
            bias = F.pad(bias, (0, len(bias) * (self.taps - 1)))
        self.conv = conv_of_images(weight, bias, geometry, groups)

    def forward(self, frames: Tensor, clips: int, kept: Kept, clock: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(N·P, C, H, W)` to `(N·P', C', H', W')`."""
        seen, kept = self.seen(frames, clips, kept, clock)
        stacked = self.stacked(seen)
        found = self.conv(self.space(stacked) if self.space else stacked)
        return (found.unflatten(1, (self.taps, -1)).sum(1) if self.summed else found), kept

    def alone(self) -> nn.Module:
        """Return its form for a single frame that sees no others."""
        return self.conv if self.space is None else nn.Sequential(Padding(self.space), self.conv)

    def stacked(self, seen: Tensor) -> Tensor:
        """Map `(N, frames, C, H, W)` to `(N·P', taps·C, H, W)`."""
        first, out = self.window.first, self.window.out.frames
        if out == 1:
            step = first[1] - first[0] if self.taps > 1 else 1
            if first == tuple(range(first[0], first[-1] + 1, step)):
                return seen[:, first[0] : first[-1] + 1 : step].flatten(1, 2)
        parts = [seen[:, self.window.frames(tap)] for tap in range(self.taps)]
        return torch.cat(parts, 2).flatten(0, 1) if len(parts) > 1 else parts[0].flatten(0, 1)


class OfEachImage(nn.Module):
    """A layer over time for each of several images (windows, heads) of a video; what they keep is `(N, R, …)`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, frames: Tensor, clips: int, kept: Kept, clock: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """Map `(N·R·P, …)`, where N is `clips` and N·R is `images`, to the layer's frames."""
        kept = None if kept is None else kept.flatten(0, 1)
        value, kept = self.layer(frames, images, kept, clock.repeat_interleave(images // clips, 0))
        return value, torch.unflatten(kept, 0, (clips, images // clips))


class PoolOverTime(nn.Module):
    """A pooling of each frame, and the maximum or weighted mean of the frames in each window.

    If windows may be cut off, only `padding` frames at either end also count in their mean.
    """

    def __init__(
        self, pool: nn.Module, window: Window, fill: float | None, space: SpatialPad | None,
        weights: tuple[float, ...] | None, padding: tuple[int, int] | None,
    ) -> None:  # fmt: skip
        """Without `weights`, take the maximum."""
        super().__init__()
        self.pool, self.window, self.space, self.weights = pool, window, space, weights
        self.seen = Seen(window, fill)
        places = range(-window.kept, window.pace.frames)
        self.uncounted = Outside(window.pace, places, *padding) if padding is not None else None

    def forward(self, frames: Tensor, clips: int, kept: Kept, clock: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(N·P, C, H, W)` to `(N·P', C', H', W')`."""
        pooled = self.pool(self.space(frames) if self.space else frames)
        seen, kept = self.seen(pooled, clips, kept, clock)
        return self.mixed(seen, clock).flatten(0, 1), kept

    def alone(self) -> nn.Module:
        """Return its form for a single frame that sees no others."""
        return self.pool if self.space is None else nn.Sequential(Padding(self.space), self.pool)

    def mixed(self, seen: Tensor, clock: Tensor) -> Tensor:
        """Map `(N, frames, C, H', W')` to `(N, P', C, H', W')`."""
        out: Any = None
        if self.uncounted is not None:
            uncounted = self.uncounted(clock)
            seen = seen.masked_fill(_like(uncounted, seen), float("-inf") if self.weights is None else 0.0)
        parts = [seen[:, self.window.frames(tap)] for tap in range(len(self.window.first))]
        if self.weights is None:
            for part in parts:
                out = part if out is None else torch.maximum(out, part)
            return out  # type: ignore[no-any-return]
        for part, weight in zip(parts, self.weights, strict=True):
            out = part * weight if out is None else out + part * weight
        if self.uncounted is None:
            return out  # type: ignore[no-any-return]
        counted = (~uncounted).to(seen.dtype)
        total: Any = sum(counted[:, self.window.frames(tap)] * weight for tap, weight in enumerate(self.weights))
        return out / _like(total.clamp(min=min(self.weights)), out)  # type: ignore[no-any-return]


class BlurOfImages(nn.Module):
    """A `BlurPool3d` on each frame."""

    def __init__(self, blur: BlurPool3d) -> None:
        super().__init__()
        self.blur = blur

    def forward(self, frames: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C, H', W')`."""
        padded, channels = self.blur.space(frames), frames.shape[1]
        kernel = self.blur.filt.expand(channels, *self.blur.filt.shape[1:])
        return F.conv2d(padded, kernel, stride=self.blur.stride[1:], groups=channels)


class Delay(nn.Module):
    """Delays frames by a number of them."""

    def __init__(self, pace: Pace, by: int) -> None:
        super().__init__()
        self.pace, self.by = pace, by

    def forward(self, frames: Tensor, clips: int, kept: Kept, clock: Tensor) -> tuple[Tensor, Tensor]:
        """Delay `(N·R, …)`; a step has R rows, several for each frame, or one for the frames of a group.

        Flags and indices are kept as numbers of the clock's type.
        """
        new = torch.unflatten(frames, 0, (clips, -1))
        rows = new.shape[1]
        if kept is None:
            dtype = new.dtype if new.is_floating_point() or new.is_complex() else clock.dtype
            kept = new.new_zeros(new.shape[0], self.by * rows // self.pace.frames, *new.shape[2:], dtype=dtype)
        seen = torch.cat([kept, new.to(kept.dtype)], 1)
        return seen[:, :rows].flatten(0, 1).to(frames.dtype), _own(seen[:, rows:])


class Given(nn.Module):
    """The part of an output that a step returns; frames before the video's start are zeros."""

    def __init__(self, pace: Pace, swap: bool) -> None:
        """With `swap`, time comes after the channels."""
        super().__init__()
        self.outside, self.swap = Outside(pace, range(pace.frames)) if pace.late else None, swap

    def forward(self, frames: Tensor, clips: int, clock: Tensor) -> Tensor:
        """Map `(N·P, …)` to `(N, P, …)`, or `(N, C, P, …)`."""
        given = torch.unflatten(frames, 0, (clips, -1))
        if self.outside is not None:
            early = _like(self.outside.before(clock), given)
            # onnxruntime can't fill flags
            given = given & ~early if given.dtype == torch.bool else given.masked_fill(early, 0)
        return given.transpose(1, 2) if self.swap else given


class RunningMean(nn.Module):
    """The mean of a video's outputs so far, without those before its start and after its end."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.outside = Outside(pace, range(pace.frames))

    def forward(self, frames: Tensor, clips: int, kept: Kept, clock: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(N·P, K)` to `(N, K)`, and keep `(N, K + 1)`: the mean and its number of outputs."""
        scores = torch.unflatten(frames, 0, (clips, -1)).to(clock.dtype)
        if kept is None:
            kept = scores.new_zeros(scores.shape[0], scores.shape[2] + 1)
        mean, count = kept[:, :-1], kept[:, -1:]
        outside = self.outside(clock).unsqueeze(2)
        count = count + (~outside).to(scores.dtype).sum(1)
        change = (scores - mean.unsqueeze(1)).masked_fill(outside, 0).sum(1)
        mean = mean + change / count.clamp(min=1)
        return mean.to(frames.dtype), torch.cat([mean, count], 1)


class WindowMean(nn.Module):
    """The mean of a video's last `size` outputs, without those before its start and after its end."""

    places: Tensor

    def __init__(self, pace: Pace, size: int) -> None:
        super().__init__()
        self.outside = Outside(pace, range(pace.frames))
        self.register_buffer("places", torch.arange(size) + pace.frames, persistent=False)

    def forward(self, frames: Tensor, clips: int, kept: Kept, clock: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(N·P, K)` to `(N, K)`, and keep `(N, size, K + 1)`: the outputs, each followed by a 1."""
        scores = torch.unflatten(frames, 0, (clips, -1)).to(clock.dtype)
        before, behind = self.outside.before(clock), self.outside.behind(clock)
        counted = torch.cat([scores, torch.ones_like(scores[:, :, :1])], 2)
        counted = counted.masked_fill((before | behind).unsqueeze(2), 0)
        if kept is None:
            kept = counted.new_zeros(counted.shape[0], len(self.places), counted.shape[2])
        seen = torch.cat([kept, counted], 1)
        last = self.places - behind.sum(1, keepdim=True)  # outputs after the end replace none
        kept = seen.gather(1, last.unsqueeze(2).expand(-1, -1, seen.shape[2]))
        total = kept.sum(1)
        mean = total[:, :-1] / total[:, -1:].clamp(min=1)
        return mean.to(frames.dtype), kept
