"""Your own network, inflated for volumes: it strides and upsamples depth like height and width.

i3dconvert inflate examples/own_network.py:unet --recipe volumetric --size 64 --weights random -o unet.safetensors
i3dconvert verify unet.safetensors --frames 16
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """A small U-Net from `(N, 1, H, W)` to `(N, classes, H, W)`; height and width must be multiples of 4."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.top, self.middle, self.bottom = block(1, 16), block(16, 32), block(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.merge, self.last = block(64, 32), block(48, 16)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return a score for each class and pixel."""
        top = self.top(image)
        middle = self.middle(self.pool(top))
        merged = self.merge(torch.cat([self.up(self.bottom(self.pool(middle))), middle], dim=1))
        enlarged = F.interpolate(merged, size=top.shape[-2:], mode="bilinear")
        logits: Tensor = self.head(self.last(torch.cat([enlarged, top], dim=1)))
        return logits


def unet(num_classes: int = 2) -> nn.Module:
    """Build the network for `i3dconvert inflate examples/own_network.py:unet`."""
    return UNet(num_classes)
