"""A backbone's own preprocessing, as data in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from i3dconvert.errors import FramesError


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to `resize` pixels, crop `size`×`size` from the center, scale to [0, 1], normalise."""

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __call__(self, image: Any) -> Tensor:
        """Preprocess uint8 frames `(T, H, W, 3)`, a tensor or an array, to a float32 clip `(3, T, size, size)`.

        A PIL image becomes `(3, size, size)`. Raises `FramesError` for frames in another form.
        """
        return self._clip(image) if hasattr(image, "ndim") else self._picture(image)

    def _clip(self, frames: Any) -> Tensor:
        from PIL import Image

        array = np.asarray(frames.cpu() if isinstance(frames, Tensor) else frames)
        if array.ndim != 4 or array.shape[-1] not in (1, 3) or array.dtype != np.uint8 or not array.size:
            raise FramesError(
                f"frames are {array.shape} in {array.dtype}; pass uint8 (T, H, W, 3), as decoders return them"
            )
        pictures = (Image.fromarray(one[..., 0] if array.shape[-1] == 1 else one) for one in array)
        return torch.stack([self._picture(picture) for picture in pictures], 1)

    def _picture(self, image: Any) -> Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as tv

        colours = {1: "L", 3: "RGB"}.get(len(self.mean))
        if colours is None:
            raise ValueError(f"a picture has no {len(self.mean)} channels")
        resized = tv.resize(image.convert(colours), [self.resize], InterpolationMode(self.interpolation))
        cropped = tv.center_crop(resized, [self.size, self.size])
        normalised: Tensor = tv.normalize(tv.to_tensor(cropped), list(self.mean), list(self.std))
        return normalised

    @classmethod
    def of_images(cls, shape: tuple[int, int, int]) -> Preprocessing:
        """Return ImageNet's preprocessing for images `(C, H, W)`, the usual one of trained networks."""
        channels, height, width = shape
        size = min(height, width)
        usual = cls(size, round(size * 256 / 224))
        return usual if channels == len(usual.mean) else usual.with_channels(channels)

    def encode(self, frames: Tensor) -> Tensor:
        """Convert decoded uint8 frames `(N, T, H, W, C)` to the network's clips `(N, C, T, H, W)`."""
        clip = frames.movedim(-1, 1).float()
        mean, std = (clip.new_tensor(values).reshape(-1, 1, 1, 1) * 255 for values in (self.mean, self.std))
        return (clip - mean) / std

    def decode(self, clip: Tensor) -> Tensor:
        """Convert clips `(N, C, T, H, W)` to the nearest uint8 frames `(N, T, H, W, C)`: the inverse of `encode`."""
        mean, std = (clip.new_tensor(values).reshape(-1, 1, 1, 1) * 255 for values in (self.mean, self.std))
        return (clip * std + mean).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)

    def at(self, size: int) -> Preprocessing:
        """Return the preprocessing for another size, with the same share of the image kept."""
        return replace(self, size=size, resize=round(self.resize * size / self.size))

    def with_channels(self, channels: int) -> Preprocessing:
        """Return the preprocessing for another number of channels, all with the mean over RGB."""
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is the inverse."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def to_processor(self) -> dict[str, Any]:
        """Return transformers' `preprocessor_config.json`."""
        return {
            "video_processor_type": "TimesformerVideoProcessor",
            "size": {"shortest_edge": self.resize},
            "crop_size": {"height": self.size, "width": self.size},
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "resample": {"bilinear": 2, "bicubic": 3}.get(self.interpolation, 2),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Preprocessing:
        """Read the data written by `to_dict`. Raises `ValueError` for what no picture can be prepared with."""
        found = cls(**dict(document) | {"mean": tuple(document["mean"]), "std": tuple(document["std"])})
        for size in (found.size, found.resize):
            if not (isinstance(size, int) and 0 < size <= _MOST_PIXELS):
                raise ValueError(f"pictures of {str(size)[:60]} pixels")
        numbers = [isinstance(one, int | float) and math.isfinite(one) for one in (*found.mean, *found.std)]
        if not all(numbers) or len(found.mean) != len(found.std) or 0 in found.std:
            raise ValueError("no mean and standard deviation of each channel")
        if found.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"no interpolation {str(found.interpolation)[:60]!r}")
        return found


_INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""The values of torchvision's `InterpolationMode`."""
_MOST_PIXELS = 8192
"""The most pixels in the height or width of a picture that a file may ask for."""
