"""Classify a video moment by moment: a window of frames slides over it, through a network in any form."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i3dconvert import checkpoint
from i3dconvert.checkpoint import PICKLED
from i3dconvert.comparison.forward import outputs
from i3dconvert.errors import BackboneError, CheckpointError, FramesError, I3DError, MediaError, first_line
from i3dconvert.export.runtime import CLASSES, Runtime, as_input, read_document, read_metadata
from i3dconvert.inflation import inflate
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.progress import Progress, silent
from i3dconvert.streaming.runtime import is_stream
from i3dconvert.video.labels import Given, Names, check_count, class_name, names_of
from i3dconvert.video.media import Frame, duration, is_picture, stream
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


def load_classifier(network: str, weights: str = "default", classes: Given = None, built_by: str = "") -> Classifier:
    """Load a checkpoint, an exported `.onnx` file, or a backbone by name, inflated like `inflate` does by default.

    `classes` are the class names, or a file with them; by default the network's own. `built_by` names the 2D network
    (`PATH.py:NAME`) of a checkpoint that can't. Raises `CheckpointError`,
    `BackboneError`, `WeightsError`, `ClassesError`.
    """
    path, names = Path(network), names_of(classes)
    if path.suffix == ".onnx":
        found = _exported(path, names)
        return replace(found, names=names or found.names)
    model = network_of(network, weights, built_by)
    document = checkpoint.document_of(model)
    if not document.gives_classes:
        raise CheckpointError(f"{network} returns features instead of class scores")

    def probabilities(clip: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return _ranked(outputs(model(clip)), names, network, BackboneError)

    least = inflation_of(model).minimum_frames
    return Classifier(probabilities, document.preprocessing, names or document.class_names, max(FRAMES, least))


def _exported(path: Path, given: Names) -> Classifier:
    document, runtime = read_document(path), Runtime(path, trusted=False)  # it folds constants
    if is_stream(path):
        raise CheckpointError(f"{path} is a stream; use classify --stream")
    if not document.gives_classes:
        raise CheckpointError(f"{path} returns features instead of class scores")
    preprocessing = document.preprocessing

    def probabilities(clip: Tensor) -> tuple[Tensor, Tensor]:
        found = runtime(as_input(clip, runtime.dtype, preprocessing)[0])
        if runtime.names_best:
            return found[0][0], found[1][0]
        return _ranked(found, given, path, CheckpointError)

    names = class_names_in(path)
    frames = runtime.fixed("frames") or max(FRAMES, document.inflation.minimum_frames)
    return Classifier(probabilities, preprocessing, names, frames)


def network_of(name: str, weights: str, built_by: str) -> Network3d:
    """Return a checkpoint's network, or that of a backbone by name, for inference in float32."""
    path = Path(name)
    is_file = path.suffix in (".safetensors", *PICKLED) or path.exists()
    network = checkpoint.load(path, built_by or None) if is_file else inflate(name, weights=weights)
    return network.eval().float()


def _ranked(found: Sequence[Tensor], names: Names, network: str | Path, error: type[I3DError]) -> tuple[Tensor, Tensor]:
    """Return the probabilities of a clip's classes, the highest first, and the indices of their classes."""
    if len(found) != 1 or found[0].dim() != 2:
        raise error(f"{network} returns maps or several outputs instead of class scores")
    check_count(names, found[0].shape[1])
    best = found[0].float().softmax(-1).sort(descending=True)
    return best.values[0], best.indices[0]


def class_names_in(path: Path) -> tuple[str, ...]:
    """Return the class names of an exported file."""
    try:
        return tuple(str(name) for name in json.loads(read_metadata(path).get(CLASSES, "[]")))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has damaged class names ({first_line(error)})") from None


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
        every = tuple((class_name(classifier.names, index), score) for index, score in pairs)
        yield Moment(start, end, every[:top], every)
    if not seen:
        raise MediaError(f"there are no frames in {path}")


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
