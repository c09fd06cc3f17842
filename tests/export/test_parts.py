"""Convolutions in parts: the same sum, only where onnxruntime gains by it, and in exported files alone."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from i3dconvert import export_onnx, inflate, optimize
from i3dconvert.comparison.forward import relative_error
from i3dconvert.export.parts import MOST, ConvInParts, in_parts


@pytest.mark.parametrize(
    ("channels", "bias", "spatial"), [(9, True, (1, 1, 1)), (21, False, (2, 3, 1)), (10, True, (1, "same", 2))]
)
def test_the_sum_of_the_parts_is_the_convolution(
    channels: int, bias: bool, spatial: tuple[int, int | str, int]
) -> None:
    stride, padding, dilation = spatial
    conv = nn.Conv2d(channels, 5, 3, stride, padding, dilation, bias=bias).double()
    parts = in_parts(conv)
    assert isinstance(parts, ConvInParts)
    assert max(weight.shape[1] for weight in parts.weights) <= MOST
    images = torch.randn(2, channels, 12, 11, dtype=torch.float64)
    assert relative_error(conv(images), parts(images)) < 1e-14


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(3, 4, 3), nn.Conv2d(12, 4, 3), nn.Conv2d(33, 4, 3), nn.Conv2d(9, 9, 3, groups=3)]
)
def test_others_stay_whole(conv: nn.Module) -> None:
    assert in_parts(conv) is conv


def test_a_files_stem_over_several_frames_is_in_parts_and_optimize_keeps_it_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    network = inflate(model, "uniform", "mean", size=16)
    file = onnx.load(export_onnx(network, tmp_path / "net.onnx", static=True).path)
    widths = sorted(tensor.dims[1] for tensor in file.graph.initializer if len(tensor.dims) == 4)
    assert widths == [4, 5]
    assert [module.in_channels for module in optimize(network).modules() if isinstance(module, nn.Conv2d)] == [9]
