"""Classify a live video, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i3dconvert import checkpoint
from i3dconvert.classification.clips import FRAMES, Moment, class_names_in, network_of
from i3dconvert.comparison.forward import outputs
from i3dconvert.errors import CheckpointError, MediaError, StreamError
from i3dconvert.export.runtime import as_input, read_document
from i3dconvert.lift.network import gives_scores
from i3dconvert.progress import Progress, silent
from i3dconvert.streaming import stream as stream_of
from i3dconvert.streaming.runtime import StreamRuntime
from i3dconvert.video.labels import Given, class_name, names_of
from i3dconvert.video.media import Frame, duration, stream
from i3dconvert.video.preprocessing import Preprocessing


@dataclass(frozen=True)
class Live:
    """A classifier of live video, step by step."""

    begin: Callable[[], Any]
    """Return the state before the first step."""
    step: Callable[[Tensor, Any], tuple[list[Tensor], Any]]
    """Return the outputs for frames `(1, C, S, H, W)`: logits, or probabilities and classes, the best first."""
    flush: Callable[[Any], list[list[Tensor]]]
    frames: int
    delay: int
    preprocessing: Preprocessing
    names: tuple[str, ...]

    def best(self, outputs: list[Tensor], top: int) -> tuple[tuple[str, float], ...]:
        """Return the best classes and their probabilities."""
        if len(outputs) == 1:
            found = outputs[0].float().softmax(-1).sort(descending=True)
            outputs = [found.values, found.indices]
        pairs = zip(outputs[1][0, :top].tolist(), outputs[0][0, :top].tolist(), strict=True)
        return tuple((class_name(self.names, index), score) for index, score in pairs)


def load_live(
    network: str, weights: str = "default", window: int | None = None, classes: Given = None, built_by: str = ""
) -> Live:
    """Load the stream of a checkpoint or of a backbone by name, or an `.onnx` file of `export --stream`.

    `classes` are the class names, or a file with them; by default the network's own. `built_by` names the 2D network
    (`PATH.py:NAME`) of a checkpoint that can't. Raises `StreamError`, `CheckpointError`, `BackboneError`,
    `WeightsError`, `ClassesError`.
    """
    path, names = Path(network), names_of(classes)
    if path.suffix == ".onnx":
        document, flow = read_document(path), StreamRuntime(path, trusted=False)
        if document.origin is None or [one.axis for one in flow.spec.outputs] not in ([None], [None, None]):
            raise CheckpointError(f"{path} returns no class scores for a video")
        if window not in (None, flow.spec.window):
            raise StreamError(f"{path} averages {flow.spec.window or 'all'} outputs; export it with --window {window}")
        preprocessing = document.preprocessing.at(min(document.inflation.input[1:]))  # a stream has one size

        def run(clip: Tensor, state: Any) -> tuple[list[Tensor], Any]:
            return flow.step(as_input(clip, flow.runtime.dtype, preprocessing)[0], state)

        return Live(
            partial(flow.start, 1),
            run,
            flow.flush,
            flow.frames,
            flow.delay,
            preprocessing,
            names or class_names_in(path),
        )
    model = network_of(network, weights, built_by)
    document = checkpoint.document_of(model)
    if not gives_scores(model) or not document.gives_classes:
        raise CheckpointError(f"{network} returns no class scores for a video")
    live = stream_of(model, window)

    def step(clip: Tensor, state: Any) -> tuple[list[Tensor], Any]:
        output, state = live.step(clip, state)
        return outputs(output), state

    def flush(state: Any) -> list[list[Tensor]]:
        return [outputs(output) for output in live.flush(state)]

    preprocessing = document.preprocessing
    begin = partial(live.start, 1, preprocessing.size, preprocessing.size)
    return Live(begin, step, flush, live.frames, live.delay, preprocessing, names or document.class_names)


def classify_live(
    live: Live,
    path: Path,
    every: int | None = None,
    fps: float | None = None,
    top: int = 5,
    progress: Progress = silent,
) -> Iterator[Moment]:
    """Yield the classes of `path` so far, every `every` frames (16 by default) and at its end.

    At most one step of frames is in memory; the last step is filled with the last frame. Raises `MediaError`.
    """
    length, state, times = duration(path), live.begin(), [0.0]
    every = max(-(-(every or FRAMES) // live.frames), 1)
    latest: list[Tensor] | None = None
    for count, images in enumerate(_steps(stream(path, live.preprocessing, fps), live.frames), 1):
        clip = torch.stack([frame.image for frame in images], 1).unsqueeze(0)
        times.append(images[-1].time)
        progress(f"{times[-1]:.1f} s", times[-1] / length if length else None)
        latest, state = live.step(clip, state)
        if count > live.delay and (count - live.delay) % every == 0:
            yield Moment(0.0, times[count - live.delay], live.best(latest, top))
    if latest is None:
        raise MediaError(f"there are no frames in {path}")
    due = live.flush(state)
    yield Moment(0.0, times[-1], live.best(due[-1] if due else latest, top))


def _steps(given: Iterable[Frame], frames: int) -> Iterator[list[Frame]]:
    """Yield `frames` frames at a time; the last frame fills the rest of its step."""
    step: list[Frame] = []
    for frame in given:
        step.append(frame)
        if len(step) == frames:
            yield step
            step = []
    if step:
        yield [*step, *[step[-1]] * (frames - len(step))]
