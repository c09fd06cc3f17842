"""Check that a 2D network treats each image independently; otherwise a clip's frames have no defined value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from i3dconvert.comparison.forward import evaluating, outputs, relative_error

TOLERANCE = 1e-3
"""The largest relative difference between an image's output in a batch and alone."""


def mixing(model: nn.Module, images: Tensor) -> str:
    """Return how the output of the first of two `images` `(2, C, H, W)` depends on the second; empty if it does not.

    Runs in eval mode. Networks that draw random numbers or do not run on the images are skipped. A difference in the
    network's own dtype is checked again in float64, as rounding errors may grow.
    """
    tensor = next((p for p in model.parameters() if p.is_floating_point()), images)
    for dtype in dict.fromkeys((tensor.dtype, torch.float64)):
        try:
            error = _error(model, images.to(tensor.device, dtype), dtype)
        except Exception:  # noqa: BLE001 - a user's network may raise anything; reading it reports that
            return ""
        if error <= TOLERANCE:
            return ""
    return (
        f"the 2D network mixes the images of a batch: an image's output depends on the other images "
        f"(relative error {error:.1g}), so a frame has no defined value"
    )


def _error(model: nn.Module, images: Tensor, dtype: torch.dtype) -> float:
    with evaluating(model, dtype, device=str(images.device)):
        together, alone = outputs(model(images.clone())), outputs(model(images[:1].clone()))
        error = _difference(together, alone)
        if error > TOLERANCE and _difference(outputs(model(images.clone())), together, 2) > 0:
            return 0.0  # it draws random numbers
    return error


def _difference(together: list[Tensor], alone: list[Tensor], rows: int = 1) -> float:
    errors = [
        float("inf") if both.isfinite().all() and not one.isfinite().all() else relative_error(one, both[:rows])
        for both, one in zip(together, alone, strict=True)
        if both.dim() and len(both) == 2 and len(one) == rows and one.shape[1:] == both.shape[1:] and one.numel()
    ]
    return max((error for error in errors if error == error), default=0.0)
