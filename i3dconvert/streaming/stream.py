"""`i3dconvert.stream`: a network that takes a video step by step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.errors import FramesError, StreamError
from i3dconvert.export.frames import channels_last
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.streaming.form import Flow, Flowing, flowing
from i3dconvert.streaming.layers import COLUMNS, ENDED, SIZE, STEPS
from i3dconvert.streaming.pace import Leaf

State = tuple[Tensor, ...]


def stream(network: Network3d, window: int | None = None) -> Stream:
    """The network for a video that comes step by step; for inference, its weights as they are now.

    Its outputs are those of the network on the whole video, `delay` steps late. Class scores of a network that averages
    them over the clip are the mean over the video so far, or over the last `window` outputs.

    Raises `StreamError` for a layer that looks at all of time, with what to choose in its place.
    """
    if window is not None and window < 1:
        raise StreamError(f"a running mean over {window} outputs is none: window is 1 or more, or None for all")
    channels, *size = inflation_of(network).input
    return Stream(flowing(network, window), channels, (size[0], size[1]), bool(inflation_of(network).fixed))


class Stream(nn.Module):
    """A network on a live video, after Continual 3D CNNs (arXiv:2106.00050), derived from a network on clips.

    It keeps nothing itself: what it needs of earlier steps is in the state, which `start` makes and `step` gives anew.
    One stream serves any number of videos. A state is a tuple of tensors `(N, …)`, each of one shape from step to step,
    in the network's dtype; the clock (the first) and running means are in float32 at least.
    """

    frames: int
    """Frames in a step: the product of the temporal strides."""
    delay: int
    """Steps until the first output is the video's; until then outputs are zeros."""
    names: tuple[str, ...]
    """The names of the state's tensors."""

    def __init__(self, flowing: Flowing, channels: int, size: tuple[int, int], fixed: bool) -> None:
        super().__init__()
        self.flow: Flow = channels_last(copy.deepcopy(flowing.flow))  # it shares tensors with the network
        self.frames, self.delay, self.names = flowing.frames, flowing.delay, flowing.names
        self.leaves: tuple[Leaf | None, ...] = flowing.leaves
        self.channels, self.default_size, self.size = channels, size, size if fixed else None
        self._shapes: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        self.eval()

    def start(self, batch: int, height: int, width: int) -> State:
        """The state of `batch` videos of this size before their first step: zeros, but for the size in the clock.

        Raises `StreamError`.
        """
        if min(batch, height, width) < 1:
            raise StreamError(f"no state for {batch} videos of {height}×{width}: all three are 1 or more")
        weight = next(self.flow.parameters())
        shapes = self._shapes_at(height, width)
        dtypes = [_wide(weight.dtype) if name in _WIDE else weight.dtype for name in self.names]
        state = tuple(
            torch.zeros((batch, *shape), dtype=dtype, device=weight.device)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        )
        state[0][:, SIZE] = torch.tensor([height, width], dtype=state[0].dtype, device=weight.device)
        return state

    def step(self, frames: Tensor, state: State) -> tuple[Any, State]:
        """The output for the next frames `(N, C, S, H, W)`, S being `frames`, and the state behind them.

        The output has the network's own axes, time included: the frames of the step's outputs, `delay` steps late. Mean
        scores are `(N, K)`: the mean so far. Raises `FramesError` for other frames, `StreamError` for another state.
        """
        self._check(frames, state)
        return self(frames, *state)  # type: ignore[no-any-return]

    def flush(self, state: State) -> list[Any]:
        """The outputs that are due when the video ends here, as `step` gives them; the last may have fewer frames.

        All videos of the batch were started together. The state is over then. Raises `StreamError`.
        """
        self._check_open(state)
        steps, (height, width) = int(state[0][0, STEPS]), (int(size) for size in state[0][0, SIZE])
        with torch.inference_mode():
            state[0][:, ENDED] = 1
        frames = state[0].new_zeros((len(state[0]), self.channels, self.frames, height, width))
        frames = frames.to(next(self.flow.parameters()).dtype)
        found = []
        for number in range(max((leaf.due for leaf in self.leaves if leaf), default=0)):
            output, state = self(frames, *state)
            cuts = [None if leaf is None else leaf.inside(steps, number) for leaf in self.leaves]
            if any(cut and cut.stop > cut.start for cut in cuts):
                found.append(_cut(output, iter(zip(self.leaves, cuts, strict=True))))
        return found

    @torch.no_grad()
    def forward(self, frames: Tensor, *state: Tensor) -> Any:
        """`step`, without its checks, the state's tensors one by one."""
        return self.flow(frames, *state)

    def _shapes_at(self, height: int, width: int) -> list[tuple[int, ...]]:
        """The shapes of the state's tensors behind the batch, found by a step without a state; a memo."""
        if (height, width) not in self._shapes:
            weight = next(self.flow.parameters())
            frames = weight.new_zeros((1, self.channels, self.frames, height, width))
            self._check_frames(frames)
            clock = torch.zeros((1, COLUMNS), dtype=_wide(weight.dtype), device=weight.device)
            try:
                _, state = self(frames, clock, *[None] * (len(self.names) - 1))
            except RuntimeError as error:
                raise StreamError(f"the network can't take frames of {height}×{width}: {error}") from None
            self._shapes[height, width] = [tuple(tensor.shape[1:]) for tensor in state]
        return self._shapes[height, width]

    def _check_frames(self, frames: Tensor) -> None:
        wanted = f"(N, {self.channels}, {self.frames}, {', '.join(map(str, self.size or ('H', 'W')))})"
        fits = frames.dim() == 5 and tuple(frames.shape[1:3]) == (self.channels, self.frames)
        if not fits or (self.size is not None and tuple(frames.shape[3:]) != tuple(self.size)):
            raise FramesError(f"a step takes frames {wanted}, got {tuple(frames.shape)}")

    def _check(self, frames: Tensor, state: State) -> None:
        self._check_frames(frames)
        batch, _, _, height, width = frames.shape
        shapes = [(batch, *shape) for shape in self._shapes_at(height, width)]
        given = [tuple(tensor.shape) for tensor in state]
        if len(given) != len(shapes):
            raise StreamError(
                f"the state is of another network: it has {len(given)} tensors, this one's has {len(shapes)}"
            )
        for name, found, wanted in zip(self.names, given, shapes, strict=True):
            if found != wanted:
                what = "batch" if found[1:] == wanted[1:] else "size or network"
                raise StreamError(
                    f"the state is of another {what}: {name} is {found}, and for these frames it is {wanted}; "
                    f"start({batch}, {height}, {width}) makes one"
                )
        self._check_open(state)

    def _check_open(self, state: State) -> None:
        if state[0].shape[1:] != (COLUMNS,):
            raise StreamError(f"the state is of another network: its clock is {tuple(state[0].shape)}")
        if bool(state[0][:, ENDED].any()):
            raise StreamError("the state was flushed: its video is over, and start(…) begins another")


_WIDE = ("clock", "mean")
"""What counts and sums over a whole video."""


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _cut(output: Any, cuts: Iterator[tuple[Leaf | None, slice | None]]) -> Any:
    """The output with those frames alone."""

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            leaf, cut = next(cuts)
            if leaf is None or leaf.axis is None or cut is None:
                return value
            return value.narrow(leaf.axis, cut.start, max(cut.stop - cut.start, 0))
        if isinstance(value, dict):
            return {key: part(item) for key, item in value.items()}
        return type(value)(map(part, value)) if isinstance(value, tuple | list) else value

    return part(output)
