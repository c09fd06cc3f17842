"""Layers that pad like TensorFlow's 'SAME': as much as the size requires, the odd pixel at the end."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert.lift.modules import pair, same_padding


def _padded(image: Tensor, layer: nn.Conv2d | nn.MaxPool2d, value: float) -> Tensor:
    kernel, stride, dilation = pair(layer.kernel_size), pair(layer.stride), pair(layer.dilation)
    top_bottom, left_right = (
        same_padding(image.shape[axis - 2], kernel[axis], stride[axis], dilation[axis]) for axis in (0, 1)
    )
    return F.pad(image, (*left_right, *top_bottom), value=value)


class Conv2dSame(nn.Conv2d):
    """`(N, C, H, W)` → `(N, O, ⌈H/stride⌉, ⌈W/stride⌉)`."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad with zeros, then convolve."""
        return super().forward(_padded(input, self, 0.0))


class MaxPool2dSame(nn.MaxPool2d):
    """`(N, C, H, W)` → `(N, C, ⌈H/stride⌉, ⌈W/stride⌉)`."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad with −∞, then pool."""
        pooled: Tensor = super().forward(_padded(input, self, float("-inf")))
        return pooled


def pad_as_same(model: nn.Module) -> None:
    """Make the strided convolutions and max-pools of `model` pad like 'SAME', in place; the others already do."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and pair(layer.stride) != (1, 1):
            layer.padding = (0, 0)
            if isinstance(layer, nn.Conv2d):
                layer.__class__ = Conv2dSame
            else:
                layer.ceil_mode = False
                layer.__class__ = MaxPool2dSame
