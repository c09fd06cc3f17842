"""A backbone's own preprocessing, as data that travels in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

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

        resized = tv.resize(image.convert("RGB"), [self.resize], InterpolationMode(self.interpolation))
        cropped = tv.center_crop(resized, [self.size, self.size])
        normalised: Tensor = tv.normalize(tv.to_tensor(cropped), list(self.mean), list(self.std))
        return normalised

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` is its inverse."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_dict` wrote."""
        return cls(**dict(document) | {"mean": tuple(document["mean"]), "std": tuple(document["std"])})
