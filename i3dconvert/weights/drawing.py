"""Draw the weights of a network at random."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def randomise(model: nn.Module, seed: int, size: tuple[int, int, int]) -> None:
    """Fill `model` with seeded random weights with which every layer matters.

    Libraries initialise heads, last norms and layer scales to zero, which would exclude branches from a comparison.
    Here weights are scaled by their fan-in (He et al., arXiv:1502.01852), scales are around one, and BatchNorm
    statistics are those of noise of the shape `size` (C, H, W), so that activations stay of order one at any depth.
    The same seed gives the same weights on all machines; for this, the statistics are computed in float64.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_draw(name, parameter, seed))
        noise = torch.randn(4, *size, generator=_generator("calibration", seed), dtype=torch.float64)
        _calibrate(model, noise, seed)


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big"))


def _draw(name: str, parameter: Tensor, seed: int) -> Tensor:
    generator = _generator(name, seed)
    one_filter = name.endswith("weight") and parameter.dim() > 2 and parameter.shape[0] == 1
    vector = parameter.numel() == max((*parameter.shape, 1)) and not one_filter
    if vector and name.endswith("bias"):
        return torch.randn(parameter.shape, generator=generator) * 0.5
    if vector:
        return torch.rand(parameter.shape, generator=generator) + 0.5
    deviation = 0.5 if parameter.shape[0] == 1 else (2 / parameter[0].numel()) ** 0.5
    return torch.randn(parameter.shape, generator=generator) * deviation


def _calibrate(model: nn.Module, noise: Tensor, seed: int) -> None:
    """Set each BatchNorm's statistics from its inputs, in one pass.

    The variance is the second moment around a random mean, plus a quarter of the second moment over all channels.
    Behind many layers, noise is nearly constant, and in some channels the weights cancel. With the true variance,
    every layer would then magnify the rounding errors of the one before it.
    """

    def measure(name: str, norm: Any, inputs: tuple[Tensor, ...]) -> None:
        channels_last = inputs[0].transpose(1, -1).flatten(0, -2)
        scale = channels_last.square().mean(0).sqrt()
        shift = torch.randn(scale.shape, generator=_generator(f"{name}.running_mean", seed), dtype=scale.dtype)
        norm.running_mean.copy_(0.1 * scale * shift)
        norm.running_var.copy_((channels_last - norm.running_mean).square().mean(0) + scale.square().mean() / 4)

    hooks = [
        norm.register_forward_pre_hook(partial(measure, name))
        for name, norm in model.named_modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats
    ]
    if hooks:
        dtype = next(model.parameters()).dtype
        mode = model.training
        model.double()(noise)
        model.to(dtype).train().train(mode)  # caches for evaluation (LeViT's biases) have the other dtype
    for hook in hooks:
        hook.remove()
