"""`i3dconvert.stream`: a network that processes a video step by step."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.errors import FramesError, StreamError
from i3dconvert.export.frames import channels_last
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.streaming.form import Flow, Flowing, Streaming
from i3dconvert.streaming.layers import COLUMNS, ENDED, SIZE, STEPS
from i3dconvert.streaming.pace import Leaf

State = tuple[Tensor, ...]


def stream(network: Network3d, window: int | None = None) -> Stream:
    """Return the network for a video that arrives step by step; for inference, with its current weights.

    Its outputs equal those of the network on the whole video, `delay` steps late. Class scores of a network that
    averages them over the clip are the mean over the video so far, or over the last `window` outputs.

    Raises `StreamError` for a layer that looks along all of time, with an alternative.
    """
    if window is not None and (_whole(window) or 0) < 1:
        raise StreamError(f"window is {window!r}; it must be a number from 1 on, or None for a mean over all outputs")
    channels, *size = inflation_of(network).input
    return Stream(Streaming(network, window).flowing(), channels, (size[0], size[1]), bool(inflation_of(network).fixed))


class Stream(nn.Module):
    """A network on a live video, after Continual 3D CNNs (arXiv:2106.00050), derived from a network on clips.

    It has no state of its own: `start` creates a state and `step` returns the next, so one stream serves any number of
    videos. A state is a tuple of tensors `(N, …)`, whose shapes stay the same from step to step, each of the type that
    the network has there; the clock (the first), running means, flags and indices are in float32 at least.
    """

    frames: int
    """Frames in a step: the product of the temporal strides."""
    delay: int
    """Steps until the first output belongs to the video; earlier outputs are zeros."""
    names: tuple[str, ...]
    """The names of the state's tensors."""

    def __init__(self, flowing: Flowing, channels: int, size: tuple[int, int], fixed: bool) -> None:
        super().__init__()
        self.flow: Flow = channels_last(copy.deepcopy(flowing.flow))  # it shares tensors with the network
        self.frames, self.delay, self.names = flowing.frames, flowing.delay, flowing.names
        self.leaves: tuple[Leaf | None, ...] = flowing.leaves
        self.channels, self.default_size, self.size = channels, size, size if fixed else None
        self._kept: dict[tuple[int, int, torch.dtype], list[tuple[tuple[int, ...], torch.dtype]]] = {}
        self.eval()

    def start(self, batch: int, height: int, width: int) -> State:
        """Return the state of `batch` videos of this size before their first step: zeros and the clock's size.

        Raises `StreamError`.
        """
        if any((_whole(number) or 0) < 1 for number in (batch, height, width)):
            raise StreamError(f"can't start {batch!r} videos of {height!r}×{width!r}; all three must be at least 1")
        weight = next(self.flow.parameters())
        kept = self._kept_at(height, width)
        state = tuple(torch.zeros((batch, *shape), dtype=dtype, device=weight.device) for shape, dtype in kept)
        state[0][:, SIZE] = torch.tensor([height, width], dtype=state[0].dtype, device=weight.device)
        return state

    def step(self, frames: Tensor, state: State) -> tuple[Any, State]:
        """Return the output for the next frames `(N, C, S, H, W)`, where S is `frames`, and the next state.

        The output has the network's own axes, including time: the step's output frames, `delay` steps late. Mean scores
        are `(N, K)`, the mean so far. Raises `FramesError` for other frames, `StreamError` for another state.
        """
        self._check_frames(frames)
        self._check(state, frames.shape[0], *frames.shape[3:])
        return self(frames, *state)  # type: ignore[no-any-return]

    def flush(self, state: State) -> list[Any]:
        """Return the outputs that remain when the video ends here; the last may have fewer frames than a step's.

        All videos of the batch must have started together. The state can't be used afterwards. Raises `StreamError`.
        """
        clock = next(iter(state or ()), None)
        if not isinstance(clock, Tensor) or clock.shape[1:] != (COLUMNS,) or not len(clock):
            raise StreamError("the state belongs to another network: its first tensor does not count steps")
        steps, (height, width) = int(clock[0, STEPS]), (int(size) for size in clock[0, SIZE])
        self._check(state, len(clock), height, width)
        if bool((clock != clock[:1]).any()):
            raise StreamError(
                "the videos of the state started at different times; flush the rows of each by themselves"
            )
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
        """Run `step` without its checks, with the state's tensors as arguments."""
        return self.flow(frames, *state)

    def _kept_at(self, height: int, width: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Return the shapes of the state's tensors after the batch axis, and their types, from a step without a state.

        They are cached.
        """
        weight = next(self.flow.parameters())
        key = height, width, weight.dtype
        if key not in self._kept:
            clock = weight.new_zeros((1, COLUMNS), dtype=torch.promote_types(weight.dtype, torch.float32))
            try:
                frames = weight.new_zeros((1, self.channels, self.frames, height, width))
                self._check_frames(frames)
                _, state = self(frames, clock, *[None] * (len(self.names) - 1))
            except RuntimeError as error:
                raise StreamError(f"the network can't take frames of {height}×{width}: {error}") from None
            self._kept[key] = [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in state]
        return self._kept[key]

    def _check_frames(self, frames: Tensor) -> None:
        wanted = f"(N, {self.channels}, {self.frames}, {', '.join(map(str, self.size or ('H', 'W')))})"
        if not isinstance(frames, Tensor):
            raise FramesError(f"a step takes a tensor of frames {wanted}, got {type(frames).__name__}")
        fits = frames.dim() == 5 and len(frames) and tuple(frames.shape[1:3]) == (self.channels, self.frames)
        if not fits or (self.size is not None and tuple(frames.shape[3:]) != tuple(self.size)):
            raise FramesError(f"a step takes frames {wanted}, got {tuple(frames.shape)}")
        weight = next(self.flow.parameters())
        if (frames.dtype, frames.device) != (weight.dtype, weight.device):
            wanted, found = (f"{tensor.dtype} on {tensor.device}" for tensor in (weight, frames))
            raise FramesError(f"a step takes frames in {wanted}, as the network's weights are, got {found}")

    def _check(self, state: State, batch: int, height: int, width: int) -> None:
        """Check that a state is one of this network, for these videos, and not at its end."""
        if not isinstance(state, tuple | list) or not all(isinstance(tensor, Tensor) for tensor in state):
            raise StreamError(f"a state is a tuple of tensors; start({batch}, {height}, {width}) returns one")
        if len(state) != len(self.names):
            raise StreamError(
                f"the state belongs to another network: it has {len(state)} tensors, this one's has {len(self.names)}"
            )
        here = f"these videos need {{}}; start({batch}, {height}, {width}) returns one"
        for name, tensor, (shape, dtype) in zip(self.names, state, self._kept_at(height, width), strict=True):
            found, wanted = tuple(tensor.shape), (batch, *shape)
            if found != wanted:
                what = "batch" if found[1:] == wanted[1:] else "size or network"
                raise StreamError(f"the state is for another {what}: {name} is {found}, and {here.format(wanted)}")
            if tensor.dtype != dtype:
                raise StreamError(f"the state is of another type: {name} is {tensor.dtype}, and {here.format(dtype)}")
            device = next(self.flow.parameters()).device
            if tensor.device != device:
                raise StreamError(f"the state is elsewhere: {name} is on {tensor.device}, and {here.format(device)}")
        if bool(state[0][:, ENDED].any()):
            raise StreamError("the state was flushed, so its video is over; call start(…) for another")


def _whole(number: Any) -> int | None:
    """Return a whole number, of any library's type; None for other values."""
    try:
        return operator.index(number)
    except TypeError:
        return None


def _cut(output: Any, cuts: Iterator[tuple[Leaf | None, slice | None]]) -> Any:
    """Return only those frames of the output."""

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            leaf, cut = next(cuts)
            return value if leaf is None or cut is None else leaf.part(value, cut)
        if isinstance(value, dict):
            return {key: part(item) for key, item in value.items()}
        if not isinstance(value, tuple | list):
            return value
        parts = map(part, value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)

    return part(output)
