"""Whether a 2D network treats each image by itself: one that mixes those of a batch has no right value for clips."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from i3dconvert.comparison.forward import evaluating, outputs, relative_error

TOLERANCE = 1e-3
"""The relative error up to which an image gives the same in a batch and alone."""


def mixing(model: nn.Module, images: Tensor) -> str:
    """How the first of two `images` `(2, C, H, W)` differs in the batch from what it gives alone; empty where not.

    In eval mode. A network that draws random numbers then, and one that does not run on the images, is passed over.
    What differs in the network's own dtype is computed again in float64: rounding errors may grow.
    """
    tensor = next((p for p in model.parameters() if p.is_floating_point()), images)
    for dtype in dict.fromkeys((tensor.dtype, torch.float64)):
        try:
            error = _error(model, images.to(tensor.device, dtype), dtype)
        except Exception:  # noqa: BLE001 - whatever somebody's network raises; reading it says so
            return ""
        if error <= TOLERANCE:
            return ""
    return (
        f"the 2D network mixes the images of a batch: beside another, an image gives something else than alone "
        f"(relative error {error:.1g}), so that there is no right value for a frame"
    )


def _error(model: nn.Module, images: Tensor, dtype: torch.dtype) -> float:
    with evaluating(model, dtype, device=str(images.device)):
        together, alone = outputs(model(images.clone())), outputs(model(images[:1].clone()))
        error = _difference(together, alone)
        if error > TOLERANCE and _difference(outputs(model(images.clone())), together, 2) > 0:
            return 0.0  # it draws
    return error


def _difference(together: list[Tensor], alone: list[Tensor], rows: int = 1) -> float:
    errors = [
        float("inf") if both.isfinite().all() and not one.isfinite().all() else relative_error(one, both[:rows])
        for both, one in zip(together, alone, strict=True)
        if both.dim() and len(both) == 2 and len(one) == rows and one.shape[1:] == both.shape[1:] and one.numel()
    ]
    return max((error for error in errors if error == error), default=0.0)
