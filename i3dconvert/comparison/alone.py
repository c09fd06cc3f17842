"""Check that a 2D network's output for an image depends on that image alone; otherwise a frame has no defined value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from i3dconvert.comparison.forward import evaluating, outputs, relative_error

TOLERANCE = 1e-5
"""The largest relative difference between an image's output in a batch and alone."""


def mixing(model: nn.Module, images: Tensor) -> str:
    """Return how the output for one of two `images` `(2, C, H, W)` depends on the other, or on earlier calls.

    Returns an empty string if it does not. Runs in eval mode, with a second image of another mean and contrast, so
    that statistics over the batch show. Networks that draw random numbers or do not run on the images are skipped. A
    difference in the network's own dtype is checked again in float64, as rounding errors may grow.
    """
    tensor = next((p for p in model.parameters() if p.is_floating_point()), images)
    images = torch.stack([images[0], 3 * images[1] + 1])
    reason = ""
    for dtype in dict.fromkeys((tensor.dtype, torch.float64)):
        try:
            reason = _difference_alone(model, images.to(tensor.device, dtype), dtype)
        except Exception:  # noqa: BLE001 - a user's network may raise anything; reading it reports that
            return ""
        if not reason:
            return ""
    return reason


def _difference_alone(model: nn.Module, images: Tensor, dtype: torch.dtype) -> str:
    def run(batch: Tensor, seed: int = 0) -> list[Tensor]:
        torch.manual_seed(seed)
        return outputs(model(batch.clone()))

    devices = [images.device] if images.is_cuda else []
    with evaluating(model, dtype, device=str(images.device)), torch.random.fork_rng(devices):
        together, alone = run(images), [run(images[i : i + 1]) for i in range(2)]
        error = max(_difference(together, one, i) for i, one in enumerate(alone))
        joined = bool(together) and all(map(_joined, together, *alone))
        if error <= TOLERANCE and not joined:
            return ""
        if _differ(run(images), together):
            return (
                "the 2D network's output changes from call to call (its forward pass keeps a number or a tensor, such "
                "as a counter), so a frame has no defined value"
            )
        if _differ(run(images, seed=1), together):
            return ""  # it draws random numbers
    if joined:
        return (
            "the 2D network returns the same number of values for one image and for a batch, and they depend on the "
            "images of the batch, so a frame has no defined value"
        )
    return (
        f"the 2D network mixes the images of a batch: an image's output depends on the other images "
        f"(relative error {error:.1g}), so a frame has no defined value"
    )


def _differ(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return any(not torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(ours, theirs, strict=True))


def _joined(together: Tensor, first: Tensor, second: Tensor) -> bool:
    """Return whether an output has one shape for a batch and for each image, and other values for one of them.

    Single numbers, such as a loss, are left out.
    """
    same = together.shape == first.shape == second.shape and together.dim() > 0
    return same and not (torch.equal(together, first) and torch.equal(together, second))


def _difference(together: list[Tensor], alone: list[Tensor], index: int) -> float:
    """Return the relative error of the image at `index` of a batch of two, alone; outputs without a batch are 0."""
    errors = [
        float("inf") if both.isfinite().all() and not one.isfinite().all() else relative_error(one, both[index, None])
        for both, one in zip(together, alone, strict=True)
        if both.dim() and len(both) == 2 and len(one) == 1 and one.shape[1:] == both.shape[1:] and one.numel()
    ]
    return max((error for error in errors if error == error), default=0.0)
