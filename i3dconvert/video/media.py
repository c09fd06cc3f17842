"""Read the user's pictures and videos."""

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
    """Read and preprocess the pictures at `paths` to `(N, 3, H, W)`; raises `MediaError`."""
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
    """Return a PIL image as viewers show it: rotated by its EXIF data, with 16 bits cut to 8; raises `ValueError`."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > _SIXTEEN_BITS:
        raise ValueError("its pixels have more than 16 bits; save it with 8 or 16 bits")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


_SIXTEEN_BITS = 2**16 - 1

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RATE = 25.0
"""The default frames per second of a directory of pictures."""


class Frame(NamedTuple):
    """A preprocessed frame, `(C, H, W)`, and its time in seconds."""

    time: float
    image: Tensor


def is_picture(path: Path) -> bool:
    """Return whether the name of a path is a picture's."""
    return path.suffix.lower() in PICTURES and not path.is_dir()


def stream(path: Path, preprocessing: Preprocessing, fps: float | None = None) -> Iterator[Frame]:
    """Yield the frames of a video, or the pictures of a directory in the order of their names.

    With `fps`, yield that many frames per second, each the last one shown at its time, at any rate of the video. Raises
    `MediaError`.
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
    """Yield frames with the time since the first; without one in the file, it follows from the rate."""
    rate, first = float(container.streams.video[0].average_rate or RATE), None
    for index, (time, frame) in enumerate(shown):
        time = index / rate if time is None else time
        first = time if first is None else first
        yield time - first, frame


def _resampled(shown: Iterator[tuple[float, Any]], fps: float) -> Iterator[tuple[float, Any]]:
    """Yield the frames shown at 0, 1/fps, 2/fps, …; a frame is shown until the next one."""
    count, current = 0, None
    for time, frame in shown:
        while current is not None and count / fps < time - 1e-9:
            yield count / fps, current
            count += 1
        current = frame
    if current is not None:
        yield count / fps, current


def read_clips(path: Path, preprocessing: Preprocessing, frames: int, most: int) -> Tensor:
    """Read up to `most` clips of `frames` consecutive frames each, `(N, 3, T, H, W)`.

    `path` is a video, or a directory whose pictures are the frames, in the order of their names. Raises `MediaError` if
    there are too few frames for one clip.
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
        raise MediaError("videos need PyAV: pip install av; or give a directory of pictures") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                kinds = " and ".join(sorted({one.type for one in container.streams})) or "nothing"
                raise MediaError(f"{path} contains {kinds} and no pictures; give a video")
            yield container
    except (av.FFmpegError, IndexError, RuntimeError) as error:
        raise MediaError(f"can't read the video {path}: {first_line(error)}") from None
