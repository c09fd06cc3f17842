"""When the frames of each value arrive, step by step, and what a layer over time has to keep of earlier steps.

A value of a network on a live video arrives in steps of some frames. A layer that looks ahead is late: its first frames
are from before the video's start. What such a layer needs of the past is kept from step to step, as in Continual 3D
CNNs (Hedegaard & Iosifidis, arXiv:2106.00050) and MoViNets (Kondratyuk et al., arXiv:2103.11511, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from i3dconvert.recipes import Temporal

_LONG = 4096
"""Steps of a video that is long enough for any window."""


@dataclass(frozen=True)
class Pace:
    """When a value's frames arrive: in step `k`, frame `t` is the clip's frame `k · frames − late + t`. A video of n
    steps has `n · frames + beyond` of them."""

    frames: int
    """Frames in each step."""
    late: int = 0
    """Frames before the clip's first one."""
    beyond: int = 0
    """Frames that a clip has beyond those of its steps; may be negative."""

    def started(self, place: int, before: int = 0) -> int:
        """Return the first step in which the frame at this place is at most `before` frames before the clip."""
        return -(-(self.late - place - before) // self.frames)

    def ended(self, place: int, after: int = 0) -> int:
        """Return the first step after the video's end, from 1, in which the frame is over `after` frames after it."""
        return 1 - (-(self.beyond + self.late - place + after) // self.frames)

    @property
    def steps(self) -> int:
        """The delay in whole steps."""
        return -(-self.late // self.frames)


@dataclass(frozen=True)
class Leaf:
    """A tensor of the network's output."""

    pace: Pace
    axis: int | None
    """The axis of time; None for a running mean, which has none."""

    @property
    def due(self) -> int:
        """Steps from the video's end to its last output."""
        return -(-(self.pace.late + self.pace.beyond) // self.pace.frames)

    def inside(self, steps: int, number: int) -> slice:
        """Return which frames of a step are the video's, `number` steps after the end of a video of `steps` steps."""
        pace = self.pace
        first, last = (steps + number) * pace.frames - pace.late, steps * pace.frames + pace.beyond
        start = min(max(-first, 0), pace.frames)
        return slice(start, max(start, min(last - first, pace.frames)))

    def part(self, output: Tensor, inside: slice) -> Tensor:
        """Return only those frames of the output; a running mean is unchanged."""
        return output if self.axis is None else output.narrow(self.axis, inside.start, inside.stop - inside.start)


@dataclass(frozen=True)
class Window:
    """The input of a layer over time in a step: frames that it keeps, followed by the new ones."""

    pace: Pace
    """The pace of the input."""
    out: Pace
    kept: int
    first: tuple[int, ...]
    """For each tap, the place of its frame in the first window, among the kept and new frames."""
    stride: int
    looks_before: bool
    """Whether windows of the clip reach frames before its start."""
    looks_behind: bool
    overflows: bool
    """Whether a window also reaches beyond the padding at the end, as with `ceil_mode`."""

    @property
    def trivial(self) -> bool:
        """Whether each frame is seen alone."""
        return self.first == (0,) and self.stride == 1 and not self.kept

    def frames(self, tap: int) -> slice:
        """Return the places of the frames that a tap reads, window by window."""
        start = self.first[tap]
        return slice(start, start + (self.out.frames - 1) * self.stride + 1, self.stride)


def window(pace: Pace, temporal: Temporal, taps: tuple[int, ...], replicate: bool) -> Window:
    """Return the window of a layer with this `temporal` and these taps; with `replicate`, it pads with border frames.

    The output is as late as the last tap requires, and late enough to have no frames that the clip, if it ended now,
    would not have.
    """
    stride, frames = temporal.stride, pace.frames // temporal.stride
    low, high = (temporal.dilation * tap - temporal.before for tap in (taps[0], taps[-1]))
    beyond = temporal.length(_LONG * pace.frames + pace.beyond) - _LONG * frames
    ahead = max(high, 0) if replicate else high
    late = max(-(-(pace.late + 1 - stride + ahead) // stride), -beyond, 0)
    last = (beyond - 1) * stride + high - pace.beyond  # for the last window, counted from the clip's end
    looks_behind = last >= 0
    kept = max(late * stride - pace.late - low, int(replicate and looks_behind))
    shift = kept + pace.late - late * stride - temporal.before
    first = tuple(temporal.dilation * tap + shift for tap in taps)
    out = Pace(frames, late, beyond)
    return Window(pace, out, kept, first, stride, low < 0, looks_behind, last >= temporal.after)
