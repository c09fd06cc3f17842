"""Run an exported stream with onnxruntime."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i3dconvert.errors import CheckpointError, FramesError, StreamError, first_line
from i3dconvert.export.runtime import FRAMES, Runtime, element, read_metadata
from i3dconvert.streaming.layers import ENDED, STEPS
from i3dconvert.streaming.pace import Leaf, Pace

STREAM = "stream"
"""The metadata key of a stream's description, a JSON object with the fields of `Spec`."""

_MOST_FRAMES, _MOST_NUMBERS = 2**16, 2**27
"""The most frames in a step, in its delay or window, and the most numbers in the state of a video."""

Feed = dict[str, Any]


@dataclass(frozen=True)
class StateTensor:
    """A tensor of the state: the names of its input and of its output, and its shape after the batch axis.

    All are zeros before the first step.
    """

    input: str
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Output:
    """An output: its frames in a step, how many more a video has, and its time axis, or None."""

    name: str
    frames: int
    beyond: int
    axis: int | None


@dataclass(frozen=True)
class Spec:
    """The description of a stream."""

    frames: int
    delay: int
    window: int | None
    """Steps in the running mean; None for a mean over all outputs."""
    state: tuple[StateTensor, ...]
    """The state's tensors, the clock first."""
    outputs: tuple[Output, ...]

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The paces of the outputs."""
        return tuple(Leaf(Pace(o.frames, self.delay * o.frames, o.beyond), o.axis) for o in self.outputs)

    def dumps(self) -> str:
        """Return JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def loads(cls, text: str, path: Path) -> Spec:
        """Read the JSON of `dumps`; raises `CheckpointError`."""
        try:
            fields = dict(json.loads(text))
            state = tuple(
                StateTensor(k["input"], k["output"], tuple(map(int, k["shape"]))) for k in fields.pop("state")
            )
            given = tuple(Output(**one) for one in fields.pop("outputs"))
            spec = cls(**fields, state=state, outputs=given)
            counts = spec.frames, spec.delay, spec.window or 1, *(n for one in given for n in (one.frames, one.beyond))
            sizes = [size for kept in state for size in kept.shape]
            axes = (one.axis for one in given if one.axis is not None)
            if not all(isinstance(number, int) for number in (*counts, *axes)):
                raise ValueError("a number is not whole")
            if not state or min(spec.frames, *(o.frames for o in given)) < 1 or min(spec.delay, *sizes) < 0:
                raise ValueError("a step or a state has no numbers")
            if max(counts) > _MOST_FRAMES or sum(math.prod(kept.shape) for kept in state) > _MOST_NUMBERS:
                raise ValueError("its steps or its state are larger than any network's")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(f"{path} has a damaged description of its stream: {first_line(error)}") from None
        return spec


def is_stream(path: Path) -> bool:
    """Return whether an ONNX file is a stream; raises `CheckpointError` if it is not an ONNX file."""
    return STREAM in read_metadata(path)


class StreamRuntime:
    """A stream's ONNX file loaded by onnxruntime, used like `Stream`, with lists of outputs and a state by names."""

    def __init__(self, path: Path, sparing: bool = True, trusted: bool = True) -> None:
        """Load a file; see `Runtime`; raises `CheckpointError`."""
        metadata = read_metadata(path)
        if STREAM not in metadata:
            raise CheckpointError(f"{path} takes whole clips; write a stream with `i3dconvert export --onnx --stream`")
        self.spec = Spec.loads(metadata[STREAM], path)
        self.runtime = Runtime(path, sparing=sparing, trusted=trusted)
        self.frames, self.delay = self.spec.frames, self.spec.delay
        session = self.runtime.session
        names = [one.name for one in (*session.get_inputs(), *session.get_outputs())]
        described = [self.runtime.input, *self.names]
        described += [kept.input for kept in self.spec.state]
        if others := Counter(names) - Counter(described) or Counter(described) - Counter(names):
            raise CheckpointError(f"{path} and its description of a stream differ in {min(others)}; export it again")

    @property
    def names(self) -> list[str]:
        """The names of its outputs: a step's, and the next state."""
        return [*(one.name for one in self.spec.outputs), *(kept.output for kept in self.spec.state)]

    def start(self, batch: int) -> Feed:
        """Return the state of `batch` videos before their first step."""
        types = {given.name: element(given.type) for given in self.runtime.session.get_inputs()}
        return {
            kept.input: torch.zeros(batch, *kept.shape, dtype=types[kept.input]).numpy() for kept in self.spec.state
        }

    def step(self, frames: Tensor, state: Mapping[str, Any]) -> tuple[list[Tensor], Feed]:
        """Return the outputs for the next frames, in the form of the file's input, and the next state.

        Raises `FramesError` for other frames, `CheckpointError` if onnxruntime fails.
        """
        axis = 1 if self.runtime.input == FRAMES else 2
        if frames.dim() != 5 or frames.shape[axis] != self.frames:
            raise FramesError(
                f"a step takes {self.frames} frames {tuple(self.runtime.shape)}, got {tuple(frames.shape)}"
            )
        feed = {self.runtime.input: frames.to(self.runtime.dtype).numpy(), **state}
        found = self.runtime.run(self.names, feed)
        count = len(self.spec.outputs)
        following = {kept.input: value for kept, value in zip(self.spec.state, found[count:], strict=True)}
        return [torch.from_numpy(output) for output in found[:count]], following

    def flush(self, state: Feed) -> list[list[Tensor]]:
        """Return the outputs that remain when the videos end here; all must have started together."""
        clock = state[self.spec.state[0].input].copy()
        if clock[:, ENDED].any():
            raise StreamError("the state was flushed, so its video is over; call start(…) for another")
        steps = int(clock[0, STEPS])
        clock[:, ENDED] = 1
        state = {**state, self.spec.state[0].input: clock}
        shape = [len(clock) if not isinstance(size, int) else size for size in self.runtime.shape]
        nothing, leaves, found = torch.zeros(shape), self.spec.leaves, []
        for number in range(max((leaf.due for leaf in leaves), default=0)):
            outputs, state = self.step(nothing, state)
            cuts = [leaf.inside(steps, number) for leaf in leaves]
            if any(cut.stop > cut.start for cut in cuts):
                found.append([leaf.part(one, cut) for leaf, one, cut in zip(leaves, outputs, cuts, strict=True)])
        return found


def of_file(runtime: StreamRuntime, given: Tensor) -> Iterator[list[Tensor]]:
    """Yield the outputs of videos, in the form of the file's input, step by step and after their end."""
    state = runtime.start(len(given))
    for number, part in enumerate(torch.split(given, runtime.frames, 1 if runtime.runtime.input == FRAMES else 2)):
        output, state = runtime.step(part, state)
        if number >= runtime.delay:
            yield output
    yield from runtime.flush(state)


def whole(path: Path, runtime: Runtime, frames: int | None) -> tuple[Callable[[Tensor], list[Tensor]], int | None]:
    """Return a function that runs an ONNX file on whole videos, and the number of frames that it requires, if any.

    A stream runs the steps of `frames` frames, by default one more than its delay.
    """
    if not is_stream(path):
        return runtime, runtime.fixed("frames")
    flow = StreamRuntime(path, trusted=runtime.trusted)
    steps = -(-frames // flow.frames) if frames else flow.delay + 1
    return lambda given: together(list(of_file(flow, given)), flow.spec.leaves), steps * flow.frames


def together(steps: Sequence[Sequence[Tensor]], leaves: Sequence[Leaf | None]) -> list[Tensor]:
    """Join the outputs of a video's steps to those of the network on the whole video; take the last running mean."""
    return [
        steps[-1][place] if leaf is None or leaf.axis is None else torch.cat([one[place] for one in steps], leaf.axis)
        for place, leaf in enumerate(leaves)
    ]
