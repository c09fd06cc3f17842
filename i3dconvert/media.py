"""Pictures and videos of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i3dconvert.errors import MediaError
from i3dconvert.files import check_input
from i3dconvert.preprocessing import Preprocessing


def read_pictures(paths: Sequence[Path], preprocessing: Preprocessing) -> Tensor:
    """The pictures at `paths`, preprocessed, `(N, 3, H, W)`; raises `MediaError`."""
    from PIL import Image, UnidentifiedImageError

    tensors = []
    for path in paths:
        check_input(path, MediaError, "a picture")
        try:
            with Image.open(path) as image:
                tensors.append(preprocessing(image))
        except (UnidentifiedImageError, Image.DecompressionBombError, ValueError, OSError, SyntaxError) as error:
            reason = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error)
            raise MediaError(f"can't read the picture {path}: {reason}") from None
    return torch.stack(tensors)


def read_clips(path: Path, preprocessing: Preprocessing, frames: int, most: int) -> Tensor:
    """Up to `most` clips of `frames` consecutive frames each, `(N, 3, T, H, W)`.

    `path` is a video, or a directory whose pictures, by name, are the frames. Raises `MediaError` where there are too
    few frames for one clip.
    """
    images = (
        _directory(path, preprocessing, frames * most) if path.is_dir() else _video(path, preprocessing, frames * most)
    )
    if len(images) < frames:
        raise MediaError(f"{path} has {len(images)} frames; a clip needs {frames}")
    clips = images[: len(images) // frames * frames].reshape(-1, frames, *images.shape[1:])
    return clips.transpose(1, 2)


def _directory(path: Path, preprocessing: Preprocessing, most: int) -> Tensor:
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise MediaError(f"there are no pictures in {path}")
    return read_pictures(files[:most], preprocessing)


def _video(path: Path, preprocessing: Preprocessing, most: int) -> Tensor:
    check_input(path, MediaError, "a video, or a directory of pictures")
    try:
        import av
    except ImportError:
        raise MediaError("videos are read by PyAV: pip install av; or give a directory of pictures") from None
    try:
        with av.open(str(path)) as container:
            decoded: Any = islice(container.decode(video=0), most)
            return torch.stack([preprocessing(frame.to_image()) for frame in decoded])
    except (av.FFmpegError, IndexError, RuntimeError) as error:
        raise MediaError(f"can't read the video {path}: {str(error).partition(chr(10))[0]}") from None
