"""Classify a video moment by moment: a window of frames slides over it, through a network in any form."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i3dconvert import checkpoint
from i3dconvert.checkpoint import PICKLED
from i3dconvert.errors import BackboneError, CheckpointError, FramesError, MediaError, OutputError, first_line
from i3dconvert.export.runtime import CLASSES, Runtime, as_input, read_document, read_metadata
from i3dconvert.inflation import inflate
from i3dconvert.lift.network import gives_scores, inflation_of
from i3dconvert.progress import Progress, silent
from i3dconvert.streaming import stream as stream_of
from i3dconvert.streaming.runtime import StreamRuntime, is_stream
from i3dconvert.video.labels import Given, check_count, names_of
from i3dconvert.video.media import PICTURES, Frame, duration, is_picture, stream
from i3dconvert.video.preprocessing import Preprocessing

FRAMES = 16


@dataclass(frozen=True)
class Moment:
    """The classes in one window; `start` and `end` are the times of its first and last frame, in seconds."""

    start: float
    end: float
    best: tuple[tuple[str, float], ...]
    """Classes and their probabilities, the best first."""
    every: tuple[tuple[str, float], ...] = ()
    """The same for all classes of the network."""


@dataclass(frozen=True)
class Classifier:
    """A classifier, with its class names."""

    probabilities: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Map a clip `(1, C, T, H, W)` to probabilities, the highest first, and the indices of their classes."""
    preprocessing: Preprocessing
    names: tuple[str, ...]
    frames: int = FRAMES
    """Frames in a window; files exported with `--static` accept one length only."""

    def name(self, index: int) -> str:
        """Return the name of a class."""
        return self.names[index] if index < len(self.names) else f"class {index}"


def load_classifier(network: str, weights: str = "default", classes: Given = None) -> Classifier:
    """Load a checkpoint, an exported `.onnx` file, or a backbone by name, inflated like `inflate` does by default.

    `classes` are the class names, or a file with them; by default the network's own. Raises `CheckpointError`,
    `BackboneError`, `WeightsError`, `ClassesError`.
    """
    path, names = Path(network), names_of(classes)
    if path.suffix == ".onnx":
        found = _exported(path)
        return replace(found, names=names or found.names)
    if path.suffix in (".safetensors", *PICKLED) or path.exists():
        model = checkpoint.load(path)
    else:
        model = inflate(network, weights=weights)
    document = checkpoint.document_of(model)
    if not document.gives_classes:
        raise CheckpointError(f"{network} returns features instead of class scores")
    model.eval().float()

    def probabilities(clip: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            scores = model(clip)
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            raise BackboneError(f"{network} returns maps or several outputs instead of class scores")
        check_count(names, scores.shape[1])
        best = scores.softmax(-1).sort(descending=True)
        return best.values[0], best.indices[0]

    least = inflation_of(model).minimum_frames
    return Classifier(probabilities, document.preprocessing, names or document.class_names, max(FRAMES, least))


def _exported(path: Path) -> Classifier:
    document, runtime = read_document(path), Runtime(path)  # it folds constants while loading
    if is_stream(path):
        raise CheckpointError(f"{path} is a stream; use classify --stream")
    if not document.gives_classes:
        raise CheckpointError(f"{path} returns features instead of class scores")
    preprocessing = document.preprocessing

    def probabilities(clip: Tensor) -> tuple[Tensor, Tensor]:
        found = runtime(as_input(clip, runtime.dtype, preprocessing)[0])
        if runtime.names_best:
            return found[0][0], found[1][0]
        if len(found) != 1 or found[0].dim() != 2:
            raise CheckpointError(f"{path} returns maps or several outputs instead of class scores")
        best = found[0].float().softmax(-1).sort(descending=True)
        return best.values[0], best.indices[0]

    names = _names(path)
    frames = runtime.fixed("frames") or max(FRAMES, document.inflation.minimum_frames)
    return Classifier(probabilities, preprocessing, names, frames)


def _names(path: Path) -> tuple[str, ...]:
    """Return the class names of an exported file."""
    try:
        return tuple(str(name) for name in json.loads(read_metadata(path).get(CLASSES, "[]")))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has damaged class names ({first_line(error)})") from None


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
        return tuple((self.names[index] if self.names else f"class {index}", score) for index, score in pairs)


def load_live(network: str, weights: str = "default", window: int | None = None, classes: Given = None) -> Live:
    """Load the stream of a checkpoint or of a backbone by name, or an `.onnx` file of `export --stream`.

    `classes` are the class names, or a file with them; by default the network's own. Raises `StreamError`,
    `CheckpointError`, `BackboneError`, `WeightsError`, `ClassesError`.
    """
    path, names = Path(network), names_of(classes)
    if path.suffix == ".onnx":
        document, flow = read_document(path), StreamRuntime(path)
        if document.origin is None or [one.axis for one in flow.spec.outputs] not in ([None], [None, None]):
            raise CheckpointError(f"{path} returns no class scores for a video")
        preprocessing = document.origin.preprocessing

        def run(clip: Tensor, state: Any) -> tuple[list[Tensor], Any]:
            return flow.step(as_input(clip, flow.runtime.dtype, preprocessing)[0], state)

        return Live(
            partial(flow.start, 1), run, flow.flush, flow.frames, flow.delay, preprocessing, names or _names(path)
        )
    is_file = path.suffix in (".safetensors", *PICKLED) or path.exists()
    model = checkpoint.load(path) if is_file else inflate(network, weights=weights)
    document = checkpoint.document_of(model)
    if not gives_scores(model) or not document.gives_classes:
        raise CheckpointError(f"{network} returns no class scores for a video")
    live = stream_of(model.eval().float(), window)

    def step(clip: Tensor, state: Any) -> tuple[list[Tensor], Any]:
        output, state = live.step(clip, state)
        return [output], state

    def flush(state: Any) -> list[list[Tensor]]:
        return [[output] for output in live.flush(state)]

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
    outputs: list[Tensor] | None = None
    for count, images in enumerate(_steps(stream(path, live.preprocessing, fps), live.frames), 1):
        clip = torch.stack([frame.image for frame in images], 1).unsqueeze(0)
        times.append(images[-1].time)
        progress(f"{times[-1]:.1f} s", times[-1] / length if length else None)
        outputs, state = live.step(clip, state)
        if count > live.delay and (count - live.delay) % every == 0:
            yield Moment(0.0, times[count - live.delay], live.best(outputs, top))
    if outputs is None:
        raise MediaError(f"there are no frames in {path}")
    due = live.flush(state)
    yield Moment(0.0, times[-1], live.best(due[-1] if due else outputs, top))


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


def classify(
    classifier: Classifier,
    path: Path,
    frames: int | None = None,
    stride: int | None = None,
    fps: float | None = None,
    top: int = 5,
    progress: Progress = silent,
) -> Iterator[Moment]:
    """Yield the classes of `path`: a video, a directory of pictures in the order of their names, or a still picture.

    Windows of `frames` (by default the network's own number) start every `stride` frames, by default half a window; the
    last one ends with the video. A video with fewer frames is one window, filled with its last frame. `fps` takes that
    many frames per second, at any constant or variable rate of the video. At most one window of frames is in memory.
    Raises `MediaError`, `FramesError`.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise MediaError(f"--fps is {fps}; it must be above 0")
    frames = frames or classifier.frames
    stride = stride or max(frames // 2, 1)
    length = duration(path)
    given = stream(path, classifier.preprocessing, fps)
    if is_picture(path):
        given = (frame for frame in list(given) * frames)
    seen = False
    for window in windows(given, frames, stride):
        seen = True
        start, end = window[0].time, window[-1].time
        progress(f"{start:.1f} s", end / length if length else None)
        clip = torch.stack([frame.image for frame in window], 1).unsqueeze(0)
        scores, classes = _scored(classifier, clip)
        pairs = zip(classes.tolist(), scores.tolist(), strict=True)
        every = tuple((classifier.name(index), score) for index, score in pairs)
        yield Moment(start, end, every[:top], every)
    if not seen:
        raise MediaError(f"there are no frames in {path}")


@dataclass(frozen=True)
class Done:
    """The result of a run over a folder."""

    output: Path
    classified: int
    failed: int
    passed_over: int
    """Videos that an earlier run had already classified."""
    seconds: float


def classify_folder(
    classifier: Classifier,
    folder: Path,
    output: Path,
    progress: Progress = silent,
    *,
    force: bool = False,
    top: int = 5,
    **options: Any,
) -> Done:
    """Classify every video and picture below a folder, and append a JSON line for each to `output`.

    A line has `source`, and either the `best` classes and `moments` or the `error` of a file that can't be read. Files
    whose line has classes are skipped, so that an interrupted run resumes; `force` starts again. `options` are those of
    `classify`. Raises `MediaError`, `OutputError`.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (*VIDEOS, *PICTURES))
    if not files:
        raise MediaError(f"there are no videos or pictures in {folder}")
    known = set() if force else _known(output)
    counts, started = {True: 0, False: 0}, time.perf_counter()
    try:
        with output.open("w" if force else "a", encoding="utf-8") as lines:
            for index, path in enumerate(files):
                source = path.relative_to(folder).as_posix()
                if source in known:
                    continue
                progress(f"{source}, {index + 1} of {len(files)}", index / len(files))
                line = _line(classifier, path, top, options)
                counts["error" not in line] += 1
                lines.write(json.dumps({"source": source, **line}) + "\n")
                lines.flush()
    except OSError as error:
        raise OutputError(f"can't write {output}: {error.strerror or error}") from None
    return Done(output, counts[True], counts[False], len(known), time.perf_counter() - started)


VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def _line(classifier: Classifier, path: Path, top: int, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        moments = list(classify(classifier, path, top=top, **options))
    except (MediaError, FramesError) as error:
        return {"error": str(error)}
    best = [{"class": name, "probability": score} for name, score in mean_of(moments, top)]
    return {"best": best, "moments": [to_dict(moment) for moment in moments]}


def _known(output: Path) -> set[str]:
    """Return the files whose line has classes; a last line that was cut off is removed."""
    if not output.exists():
        return set()
    text = output.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        output.write_text(text, encoding="utf-8")
    try:
        entries = [json.loads(line) for line in text.splitlines()]
        return {str(entry["source"]) for entry in entries if "error" not in entry}
    except (ValueError, TypeError, KeyError):
        raise OutputError(f"{output} is not from an earlier run; --force overwrites it, -o names another") from None


def _scored(classifier: Classifier, clip: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return classifier.probabilities(clip)
    except (CheckpointError, RuntimeError) as error:
        raise FramesError(
            f"the network can't run on a window of {clip.shape[2]} frames: {first_line(error)}; change --frames"
        ) from None


def windows(given: Iterable[Frame], frames: int, stride: int) -> Iterator[list[Frame]]:
    """Yield windows of `frames`, every `stride`; the last ends with the last frame, which fills a short window."""
    window: deque[Frame] = deque(maxlen=frames)
    count, seen = 0, 0
    for frame in given:
        window.append(frame)
        count += 1
        if count >= frames and (count - frames) % stride == 0:
            seen = count
            yield list(window)
    if 0 < count < frames:
        yield [*window, *[window[-1]] * (frames - count)]
    elif seen < count:
        yield list(window)


def mean_of(moments: list[Moment], top: int = 5) -> list[tuple[str, float]]:
    """Return the best classes by their mean probability over all moments and all classes."""
    total: dict[str, float] = {}
    for moment in moments:
        for name, score in moment.every or moment.best:
            total[name] = total.get(name, 0.0) + score / len(moments)
    return sorted(total.items(), key=lambda item: -item[1])[:top]


def to_dict(moment: Moment) -> dict[str, Any]:
    """Return plain data."""
    best = [{"class": name, "probability": score} for name, score in moment.best]
    return {"start": moment.start, "end": moment.end, "best": best}
