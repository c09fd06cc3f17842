"""segmentation-models-pytorch on volumes."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from i3dconvert import inflate
from i3dconvert.verification import Settings, verify
from i3dconvert.weights import randomise
from tests.test_dense import convolutions_lifted


@pytest.mark.parametrize("architecture", [smp.Unet, smp.FPN, smp.DeepLabV3Plus])
@pytest.mark.parametrize("encoder", ["resnet18", pytest.param("resnet50", marks=pytest.mark.sweep)])
def test_segmentation_models_on_volumes(architecture: type[nn.Module], encoder: str) -> None:
    model = architecture(encoder, encoder_weights=None, classes=4).eval()
    randomise(model, 0, (3, 64, 64))
    network = inflate(model, "volumetric", size=64)
    assert convolutions_lifted(network)
    report = verify(model, network, Settings(frames=32, size=64, dtypes=(torch.float64,)))
    assert report.passed, report.reason
    with torch.no_grad():
        volume = torch.randn(1, 3, 64, 64, 64)
        out = network(volume)
        assert out.shape == (1, 4, 64, 64, 64)
