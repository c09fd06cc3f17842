"""A backbone's own preprocessing, as data that travels in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to `resize` pixels, crop `size`×`size` from the center, scale to [0, 1], normalise."""

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __call__(self, image: Any) -> Tensor:
        """A PIL image → `(3, size, size)`, float32."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as tv

        colours = {1: "L", 3: "RGB"}.get(len(self.mean))
        if colours is None:
            raise ValueError(f"a picture has no {len(self.mean)} channels")
        resized = tv.resize(image.convert(colours), [self.resize], InterpolationMode(self.interpolation))
        cropped = tv.center_crop(resized, [self.size, self.size])
        normalised: Tensor = tv.normalize(tv.to_tensor(cropped), list(self.mean), list(self.std))
        return normalised

    def encode(self, frames: Tensor) -> Tensor:
        """Frames as a decoder gives them, `(N, T, H, W, C)` in uint8, as the network's clips `(N, C, T, H, W)`."""
        clip = frames.movedim(-1, 1).float()
        mean, std = (clip.new_tensor(values).reshape(-1, 1, 1, 1) * 255 for values in (self.mean, self.std))
        return (clip - mean) / std

    def decode(self, clip: Tensor) -> Tensor:
        """The nearest frames `(N, T, H, W, C)` in uint8 that `encode` would make clips like `(N, C, T, H, W)` of."""
        mean, std = (clip.new_tensor(values).reshape(-1, 1, 1, 1) * 255 for values in (self.mean, self.std))
        return (clip * std + mean).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)

    def with_channels(self, channels: int) -> Preprocessing:
        """The same for another number of channels: all with the mean over RGB."""
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` is its inverse."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def to_processor(self) -> dict[str, Any]:
        """The same as transformers' `preprocessor_config.json` says it."""
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
        """Read what `to_dict` wrote."""
        return cls(**dict(document) | {"mean": tuple(document["mean"]), "std": tuple(document["std"])})
