"""3D networks that others build of the same classes load the inflated state dict strictly and give the same for
moving volumes: nnU-Net's, deepinv's, and segmentation-models-pytorch-3d's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from deepinv.models import DnCNN, DRUNet
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from i3dconvert import inflate
from i3dconvert.comparison.forward import outputs, relative_error

Build = Callable[[int], nn.Module]
"""Builds the network over so many dimensions of space."""


def agree(build: Build, shape: tuple[int, int, int], constants: dict[str, Any] | None = None) -> None:
    model2d, model3d = build(2), build(3).eval().double()
    network = inflate(model2d, "volumetric", input=shape, constants=constants).eval().double()
    assert network.inflation.convolutions.kept == ()
    model3d.load_state_dict(network.state_dict(), strict=True)
    volume = torch.randn(1, shape[0], 32, *shape[1:], dtype=torch.float64)
    with torch.no_grad():
        pairs = zip(outputs(model3d(volume, **(constants or {}))), outputs(network(volume)), strict=True)
        assert max(relative_error(theirs, ours) for theirs, ours in pairs) <= 1e-12


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("cls", [PlainConvUNet, ResidualEncoderUNet])
def test_nnu_net(cls: type[nn.Module], deep_supervision: bool) -> None:
    def build(dims: int) -> nn.Module:
        layers = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}[dims]
        stages = {"strides": (1, 2, 2), "num_classes": 3, "deep_supervision": deep_supervision}
        norm = {"norm_op": layers[1], "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
        blocks = (2, 2) if cls is PlainConvUNet else (2, 1)
        names = ("n_conv_per_stage" if cls is PlainConvUNet else "n_blocks_per_stage", "n_conv_per_stage_decoder")
        depths = dict(zip(names, blocks, strict=True))
        return cls(1, 3, (8, 16, 32), layers[0], 3, **stages, **norm, **depths, conv_bias=True)

    agree(build, (1, 32, 32))


def test_deepinv() -> None:
    agree(lambda dims: DnCNN(1, 1, depth=5, nf=8, pretrained=None, dim=dims), (1, 32, 32))
    small = {"nc": (4, 8, 8, 16), "nb": 1, "pretrained": None}
    agree(lambda dims: DRUNet(1, 1, dim=dims, **small), (1, 32, 32), {"sigma": 0.05})


ENCODERS = ["resnet18", "densenet121", "efficientnet-b0", "dpn68", "vgg16_bn"]
"""Its release 1.0.2 can't build its own SENets."""


@pytest.mark.parametrize("architecture", ["Unet", "Linknet", "UnetPlusPlus", "MAnet"])
@pytest.mark.parametrize(
    "encoder",
    [
        name if name in ("resnet18", "efficientnet-b0") else pytest.param(name, marks=pytest.mark.sweep)
        for name in ENCODERS
    ],
)
def test_segmentation_models_3d(architecture: str, encoder: str) -> None:
    smp3d = pytest.importorskip("segmentation_models_pytorch_3d", reason="it asks for timm 0.9.7: install it --no-deps")

    def build(dims: int) -> nn.Module:
        package = smp if dims == 2 else smp3d
        network: nn.Module = getattr(package, architecture)(encoder, encoder_weights=None, in_channels=1, classes=2)
        return network.eval()

    agree(build, (1, 64, 64))
