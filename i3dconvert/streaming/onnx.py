"""Export a stream to ONNX: the state's tensors are inputs and outputs, and the file is checked step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from i3dconvert.comparison.forward import check_outputs, evaluating, outputs
from i3dconvert.comparison.report import Check
from i3dconvert.errors import CheckpointError, ExportError, first_line
from i3dconvert.export.deployed import BEST, SCORES, best_beside
from i3dconvert.export.onnx import (
    CHECKING,
    QUANTISING,
    STAGES,
    TRACING,
    WRITING,
    Exported,
    check_best,
    check_opset,
    in_dtype,
    preprocessing_of,
)
from i3dconvert.export.parts import stacks_in_parts
from i3dconvert.export.placing import describe, put_in_place, save_in
from i3dconvert.export.quantised import quantise
from i3dconvert.export.runtime import CLIP, FRAMES, TOLERANCES, as_input, quietly
from i3dconvert.export.tracing import trace
from i3dconvert.files import check_output, workshop
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.progress import Progress, silent, stages
from i3dconvert.streaming.layers import ConvOverTime
from i3dconvert.streaming.runtime import STREAM, Feed, Output, Spec, StateTensor, StreamRuntime, of_file, together
from i3dconvert.streaming.stream import Stream, stream
from i3dconvert.video.media import read_clips
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import digest

STEPS = 3
"""Steps in the videos that a file is checked on."""
VIDEOS = (3, 1)
"""Batch sizes in the checks."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an exported stream, by the names that `export_onnx` has for them."""

    opset: int | None = None
    int8: bool = False
    calibrate: Path | None = None
    uint8_input: bool = False
    top_k: int | None = None
    external_data: bool = False
    tolerance: float | None = None
    force: bool = False
    finetuned: bool = False


def export_stream(
    network: Network3d,
    path: str | Path,
    window: int | None = None,
    options: ExportOptions = ExportOptions(),
    progress: Progress = silent,
) -> Exported:
    """Write a network's stream as ONNX, in float32, for any number of videos of the network's own height and width.

    The first input is `clip` `(N, C, S, H, W)`, or with `uint8_input` `frames` `(N, S, H, W, C)`; the others are the
    state, `state_…`, zeros at first. The outputs are a step's, `logits` for class scores, and the next state, `next_…`.
    The metadata (`stream`) has the names and first shapes. Before the file replaces another, onnxruntime runs it on
    moving videos to their ends, against torch and the network on the whole video. `window` is that of `stream`.

    Raises `StreamError`, `ExportError`, `OutputError`, `MediaError`.
    """
    path = Path(path)
    check_output(path, options.force)
    check_opset(options.opset)
    network = in_dtype(network, torch.float32)
    preprocessing = preprocessing_of(network, options.uint8_input or options.calibrate is not None)
    best = None if options.top_k is None else check_best(network, options.top_k)
    with quietly():
        flow = stream(network, window)
    if not options.int8:
        stacks_in_parts(flow, ConvOverTime)
    step = _Step(flow, preprocessing if options.uint8_input else None, best)
    sha256 = digest({key: tensor.cpu() for key, tensor in network.state_dict().items()})
    tolerance = TOLERANCES["float32"] if options.tolerance is None else options.tolerance
    checking = Checking(network, flow, preprocessing, tolerance)
    begin = stages(progress, STAGES if options.int8 else STAGES[:-1])
    begin(TRACING)
    model, spec = _traced(step, window, options.opset)
    precision = "int8" if options.int8 else "float32"
    describe(model, network, sha256, precision, options.finetuned, path.parent)
    model.metadata_props[STREAM] = spec.dumps()
    share = None
    with workshop(path) as folder:
        begin(WRITING)
        written = save_in(folder, path.name, model, sha256, options.external_data)
        begin(CHECKING)
        check = checking.check(written)
        if not check.passed:
            raise ExportError(f"the exported stream differs from torch: {check.detail}")
        if options.int8:
            begin(QUANTISING)
            share = _quantised(written, _videos(flow, options.calibrate, preprocessing))
        files = put_in_place(folder, path, options.force)
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in model.graph.inputs[0].shape)
    checked_on = (VIDEOS[0], flow.channels, STEPS * flow.frames, *inflation_of(network).input[1:])
    on_noise = options.int8 and not options.calibrate
    notes = "calibrated on noise; your own frames (--calibrate) give better ranges" if on_noise else None
    name, written_opset = model.graph.inputs[0].name, model.opset_imports[""]
    return Exported(path, files, name, shape, written_opset, checked_on, check, share, notes, precision, spec.dumps())


class _Step(nn.Module):
    """A step with its outputs and its state side by side, and what deployment adds."""

    def __init__(self, flow: Stream, preprocessing: Preprocessing | None, best: int | None) -> None:
        super().__init__()
        self.flow, self.preprocessing, self.best = flow, preprocessing, best

    def forward(self, frames: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, then the next state."""
        frames = frames if self.preprocessing is None else self.preprocessing.encode(frames)
        output, state = self.flow(frames, *state)
        found = outputs(output)
        if self.best is not None:
            found = list(found[0].softmax(-1).topk(self.best))
        return (*found, *state)


def _traced(step: _Step, window: int | None, opset: int | None) -> tuple[Any, Spec]:
    """Return the graph and the file's description."""
    flow, size = step.flow, step.flow.default_size
    example = torch.zeros(2, flow.channels, flow.frames, *size)
    state = flow.start(2, *size)
    name = CLIP if step.preprocessing is None else FRAMES
    given = example if step.preprocessing is None else step.preprocessing.decode(example)
    leaves = [leaf for leaf in flow.leaves if leaf is not None]
    if len(leaves) != len(flow.leaves):
        raise ExportError("the network has an output that does not vary with the video; remove it from the outputs")
    names = [f"output_{place}" for place in range(len(leaves))]
    names = [SCORES, BEST] if step.best is not None else ["logits"] if len(leaves) == 1 else names
    described = leaves * 2 if step.best is not None else leaves
    shapes = zip(flow.names, (tuple(tensor.shape[1:]) for tensor in state), strict=True)
    kept = [StateTensor(f"state_{one}", f"next_{one}", shape) for one, shape in shapes]
    shown = [Output(one, o.pace.frames, o.pace.beyond, o.axis) for one, o in zip(names, described, strict=True)]
    spec = Spec(flow.frames, flow.delay, window, tuple(kept), tuple(shown))
    batch = {0: torch.export.Dim("batch")}
    inputs = [name, *(kept.input for kept in spec.state)]
    results = [*names, *(kept.output for kept in spec.state)]
    model = trace(step, inputs, results, (given, *state), (batch, tuple(batch for _ in state)), opset)
    return model, spec


@dataclass(frozen=True)
class Checking:
    """A network in torch, its stream, and the tolerance of files against both."""

    network: Network3d
    flow: Stream
    preprocessing: Preprocessing
    tolerance: float

    def check(self, path: Path) -> Check:
        """Return the worst comparison: of a file at each step and after the end, and of the stream with the network.

        Raises `ExportError` if the file does not load.
        """
        try:
            onnx.checker.check_model(str(path), full_check=False)
            runtime = StreamRuntime(path)
        except (onnx.checker.ValidationError, CheckpointError) as error:
            raise ExportError(f"the exported file is invalid: {first_line(error)}") from None
        found = [check for videos in VIDEOS for check in self._on(runtime, videos)]
        return max(found, key=lambda check: (not check.passed, check.error or 0.0))

    def _on(self, runtime: StreamRuntime, videos: int) -> Iterator[Check]:
        channels, (height, width) = self.flow.channels, self.flow.default_size
        shape = (videos, channels, STEPS * self.flow.frames, height, width)
        clip = torch.randn(shape, generator=torch.Generator().manual_seed(videos))
        given, meant = as_input(clip, runtime.runtime.dtype, self.preprocessing)
        reference, value = self._steps(meant), list(of_file(runtime, given))
        pairs: list[tuple[list[Tensor], list[Tensor]]]
        if runtime.runtime.names_best:
            pairs = [best_beside(theirs[0], *ours) for theirs, ours in zip(reference, value, strict=True)]
        else:
            pairs = list(zip(reference, value, strict=True))
        for theirs, ours in pairs:
            yield check_outputs(_NAME, theirs, ours, self.tolerance)
        with evaluating(self.network, torch.float32):
            whole = outputs(self.network(meant))
        yield check_outputs(
            "the stream against the network", whole, together(reference, self.flow.leaves), self.tolerance
        )

    def _steps(self, clip: Tensor) -> list[list[Tensor]]:
        state = self.flow.start(len(clip), *clip.shape[3:])
        found = []
        for frames in torch.split(clip, self.flow.frames, 2):
            output, state = self.flow.step(frames, state)
            found.append(outputs(output))
        return [*found[self.flow.delay :], *map(outputs, self.flow.flush(state))]


_NAME = "onnxruntime against torch, step by step"


def _videos(flow: Stream, source: Path | None, preprocessing: Preprocessing) -> Tensor:
    """Return the videos that calibrate int8, `(N, C, T, H, W)`."""
    length = (flow.delay + STEPS) * flow.frames
    if source is not None:
        return read_clips(source, preprocessing, length, 2)
    return torch.randn(1, flow.channels, length, *flow.default_size, generator=torch.Generator().manual_seed(0))


def _quantised(path: Path, videos: Tensor) -> float:
    """Replace the exact stream by the quantised one; returns how often their top classes are equal."""
    exact = StreamRuntime(path)
    given, _ = as_input(videos, exact.runtime.dtype, Preprocessing())
    written = quantise(path, _feeds(exact, given))
    pairs = zip(*(list(of_file(one, given)) for one in (exact, StreamRuntime(written))), strict=True)
    same = [(_top(a) == _top(b)).float().mean() for a, b in pairs]
    written.replace(path)
    return float(torch.stack(same).mean())


def _top(found: list[Tensor]) -> Tensor:
    return found[1][:, 0] if len(found) == 2 and not found[1].is_floating_point() else found[0].argmax(1)


def _feeds(runtime: StreamRuntime, given: Tensor) -> Iterator[Feed]:
    """Yield the file's inputs in each step of these videos."""
    for video in torch.split(given, 1):
        state = runtime.start(1)
        for part in torch.split(video, runtime.frames, 1 if runtime.runtime.input == FRAMES else 2):
            yield {runtime.runtime.input: part.numpy(), **state}
            _, state = runtime.step(part, state)
