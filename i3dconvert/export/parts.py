"""Convolutions of stacked frames with few channels, such as a stem, in parts that onnxruntime computes directly."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert.export.framewise import StackedConv

MOST = 7
"""The most input channels that onnxruntime convolves directly whatever their number, on any processor."""
MULTIPLE = 4
"""More channels are convolved directly if they are a multiple of this, and otherwise as one large matrix product."""
LARGEST = 32
"""Parts of this many channels or more together were not measured."""


class ConvInParts(nn.Module):
    """A convolution as the sum of convolutions of a few input channels each."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.spatial: Any = (conv.stride, conv.padding, conv.dilation)
        self.bias = conv.bias
        parts = conv.weight.detach().tensor_split(-(-conv.in_channels // MOST), dim=1)
        self.channels = [part.shape[1] for part in parts]
        self.weights = nn.ParameterList(nn.Parameter(part.contiguous(), requires_grad=False) for part in parts)

    def forward(self, frames: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C', H', W')`."""
        first, *others = zip(torch.split(frames, self.channels, 1), self.weights, strict=True)
        out = F.conv2d(*first, self.bias, *self.spatial)
        for part, weight in others:
            out = out + F.conv2d(part, weight, None, *self.spatial)
        return out


def stacks_in_parts(form: nn.Module, kind: type[Any] = StackedConv) -> None:
    """Replace the convolution, `conv`, of the layers of a kind by parts, where onnxruntime computes those faster."""
    for module in form.modules():
        if isinstance(module, kind):
            module.conv = in_parts(module.conv)


def in_parts(conv: nn.Module) -> nn.Module:
    """Return a 2D convolution in parts, if onnxruntime computes those faster; otherwise the layer itself."""
    if not isinstance(conv, nn.Conv2d) or conv.groups > 1 or not MOST < conv.in_channels < LARGEST:
        return conv
    return ConvInParts(conv) if conv.in_channels % MULTIPLE else conv
