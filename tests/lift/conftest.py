"""A lifted ResNet-18, inflated once for the tests of its module tree."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torchvision import models

from i3dconvert import Network3d, inflate

SIZE = 64


@cache
def resnet() -> tuple[nn.Module, Network3d]:
    torch.manual_seed(0)
    model = models.resnet18(num_classes=5).eval()
    return model, inflate(model, "uniform", "mean", size=SIZE)


@pytest.fixture
def network() -> Network3d:
    return copy.deepcopy(resnet()[1])
