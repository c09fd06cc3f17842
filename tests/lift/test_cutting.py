"""Every module of the 2D network is a module of the 3D network's tree: no call is inlined."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from i3dconvert.lift.kernels import Style
from i3dconvert.lift.planning import Plan, plan
from i3dconvert.recipes import preset

TORCHVISION = ("alexnet", "mobilenet_v3_small", "vit_b_32")
TIMM = ("convnext_atto", "mixer_s32_224")


def planned(model: nn.Module, size: int = 224) -> Plan:
    return plan(model.eval(), preset("uniform"), Style(), (3, size, size))


@pytest.mark.parametrize("name", [*TORCHVISION, *(f"timm/{name}" for name in TIMM)])
def test_no_call_of_a_librarys_network_is_inlined(name: str) -> None:
    library, _, known = name.rpartition("/")
    with torch.device("meta"):
        model = timm.create_model(known) if library else models.get_model(known)
    assert not planned(model).cut.inlined


class ByChannels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.shape[1] == 3 else x.tanh()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.part = nn.Conv2d(3, 4, 3), ByChannels()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.conv(self.part(x)))


def test_calls_of_a_module_that_differ_are_inlined_and_it_says_why() -> None:
    assert planned(Twice(), 16).cut.inlined == {"part": "two calls of it differ"}
