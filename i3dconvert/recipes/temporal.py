"""The parameters of a layer along time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = int | Literal["spatial"]
Padding = Size | Literal["same"]


@dataclass(frozen=True)
class Geometry:
    """A 2D layer along one axis; `"spatial"` in a rule uses these numbers, from the height axis."""

    kind: str
    kernel: int
    stride: int
    padding: int | None
    """None if it follows from the size, as in 'same' padding."""
    dilation: int = 1
    output_padding: int = 0
    """For transposed convolutions only."""
    outside: tuple[int, int] = (0, 0)
    """Padding before and after by an operation in front of the layer."""


@dataclass(frozen=True)
class Temporal:
    """A lifted layer along time: `before` and `after` count the frames padded at either end.

    In a transposed convolution, `stride` multiplies, `before` is its padding and `after` its output padding.
    """

    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    ceil: bool = False
    transposed: bool = False

    @property
    def first_tap(self) -> int | None:
        """The first of the `stride` taps that a transposed kernel fills, as near the middle as every frame allows."""
        least, most = self.kernel + self.after - self.stride - self.before, min(self.before, self.kernel - self.stride)
        middle = (self.kernel - self.stride + 1) // 2
        return None if max(least, 0) > most else min(max(middle, least, 0), most)

    @property
    def span(self) -> int:
        """Frames from the first tap to the last."""
        return self.dilation * (self.kernel - 1) + 1

    def length(self, frames: int) -> int:
        """Return the number of output frames for `frames` input frames, as torch counts them (0 or less: too few)."""
        if self.transposed:
            return (frames - 1) * self.stride - 2 * self.before + self.kernel + self.after
        room = frames + self.before + self.after - self.span
        if not self.ceil:
            return room // self.stride + 1 if room >= 0 else 0
        count = -(-room // self.stride) + 1
        # A window may not start in the padding after the last frame.
        return count - 1 if (count - 1) * self.stride >= frames + self.before else count


@dataclass(frozen=True)
class Attending(Temporal):
    """An attention along time: a query attends to the frames of its `group`, or to all if that is 0."""

    group: int = 0
    shift: int = 0
    """Frames by which groups are shifted, in clips that have several."""
    relative: bool = False
    """Whether a table of relative positions is repeated for each distance in time."""
    divided: bool = False
    """Whether it attends over time at each place, before the attention within a frame."""
    pairs: bool = False
    """Whether the value has a row for each pair of frames in a group, as scores have."""

    def fits(self, frames: int) -> bool:
        """Return whether `frames` frames form whole groups; fewer than one group form one."""
        return not self.group or frames <= self.group or frames % self.group == 0

    def length(self, frames: int) -> int:
        """Return the number of rows, of frames or of their pairs."""
        return frames * (min(self.group, frames) if self.group else frames) if self.pairs else frames
