"""Pictures and videos of the user's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from i3dconvert.errors import MediaError, first_line
from i3dconvert.files import check_input
from i3dconvert.video.preprocessing import Preprocessing


def read_pictures(paths: Sequence[Path], preprocessing: Preprocessing) -> Tensor:
    """The pictures at `paths`, preprocessed, `(N, 3, H, W)`; raises `MediaError`."""
    from PIL import Image, UnidentifiedImageError

    tensors = []
    for path in paths:
        check_input(path, MediaError, "a picture")
        try:
            with Image.open(path) as image:
                tensors.append(preprocessing(as_shown(image)))
        except (UnidentifiedImageError, Image.DecompressionBombError, ValueError, OSError, SyntaxError) as error:
            reason = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error)
            raise MediaError(f"can't read the picture {path}: {reason}") from None
    return torch.stack(tensors)


def as_shown(image: Any) -> Any:
    """A PIL image as viewers show it: turned as its EXIF says, of 16 bits the upper eight; raises `ValueError`."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > _SIXTEEN_BITS:
        raise ValueError("its pixels are numbers of more than 16 bits; save it with 8 or 16 bits")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


_SIXTEEN_BITS = 2**16 - 1

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RATE = 25.0
"""Frames a second of a directory of pictures, where nobody says."""


class Frame(NamedTuple):
    """One frame, preprocessed, `(C, H, W)`, and when it is shown, in seconds."""

    time: float
    image: Tensor


def is_picture(path: Path) -> bool:
    """Whether a path is of a single picture, by its name."""
    return path.suffix.lower() in PICTURES and not path.is_dir()


def stream(path: Path, preprocessing: Preprocessing, fps: float | None = None) -> Iterator[Frame]:
    """The frames of a video, or the pictures of a directory in the order of their names, one at a time.

    With `fps`, so many frames a second: of each instant the last frame that is shown then, whatever the video's own
    rate is. Raises `MediaError`.
    """
    if path.is_dir() or is_picture(path):
        files = _files(path) if path.is_dir() else [path]
        for index, file in enumerate(files):
            yield Frame(index / (fps or RATE), read_pictures([file], preprocessing)[0])
        return
    with _opened(path) as container:
        shown = ((frame.time, frame) for frame in container.decode(video=0))
        for time, frame in _timed(shown, container) if fps is None else _resampled(_timed(shown, container), fps):
            yield Frame(time, preprocessing(frame.to_image()))


def duration(path: Path) -> float | None:
    """Return a video's length in seconds; None if its file does not say."""
    if path.is_dir() or is_picture(path):
        return None
    with _opened(path) as container:
        return container.duration / 1e6 if container.duration else None


def _timed(shown: Iterator[tuple[float | None, Any]], container: Any) -> Iterator[tuple[float, Any]]:
    """Frames with the time since the first; those without one in the file, by its rate."""
    rate, first = float(container.streams.video[0].average_rate or RATE), None
    for index, (time, frame) in enumerate(shown):
        time = index / rate if time is None else time
        first = time if first is None else first
        yield time - first, frame


def _resampled(shown: Iterator[tuple[float, Any]], fps: float) -> Iterator[tuple[float, Any]]:
    """What is shown at 0, 1/fps, 2/fps, …; a frame is until the next one comes."""
    count, current = 0, None
    for time, frame in shown:
        while current is not None and count / fps < time - 1e-9:
            yield count / fps, current
            count += 1
        current = frame
    if current is not None:
        yield count / fps, current


def read_clips(path: Path, preprocessing: Preprocessing, frames: int, most: int) -> Tensor:
    """Up to `most` clips of `frames` consecutive frames each, `(N, 3, T, H, W)`.

    `path` is a video, or a directory whose pictures, by name, are the frames. Raises `MediaError` where there are too
    few frames for one clip.
    """
    images = [frame.image for frame in islice(stream(path, preprocessing), frames * most)]
    if len(images) < frames:
        raise MediaError(f"{path} has {len(images)} frames; a clip needs {frames}")
    clips = torch.stack(images[: len(images) // frames * frames])
    return clips.reshape(-1, frames, *clips.shape[1:]).transpose(1, 2)


def _files(path: Path) -> list[Path]:
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise MediaError(f"there are no pictures in {path}")
    return files


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    check_input(path, MediaError, "a video, or a directory of pictures")
    try:
        import av
    except ImportError:
        raise MediaError("videos are read by PyAV: pip install av; or give a directory of pictures") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                kinds = " and ".join(sorted({one.type for one in container.streams})) or "nothing"
                raise MediaError(f"{path} holds {kinds} and no pictures; name a video")
            yield container
    except (av.FFmpegError, IndexError, RuntimeError) as error:
        raise MediaError(f"can't read the video {path}: {first_line(error)}") from None
