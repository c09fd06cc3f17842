"""Tools that explain, quantise, slide over and compile networks, on a lifted network and on its 2D network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from monai.inferers import sliding_window_inference
from monai.visualize import GradCAM as MonaiGradCAM
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from i3dconvert import inflate
from i3dconvert.comparison.forward import relative_error
from tests.outside.test_trainers import CLASSES, NETWORKS, SIZE, images, made, moving, pair, still


class Flat(nn.Module):
    """Maps as large as the image, so that a picture of them needs no enlarging."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def test_a_cam_over_time_is_the_2d_cam_on_a_still_clip() -> None:
    torch.manual_seed(1)
    model = Flat().eval()
    network: Any = inflate(model, "uniform", "mean", size=SIZE)
    target = [ClassifierOutputTarget(1)]
    flat = GradCAM(model, [model.body])(images(1), target)
    over_time = GradCAM(network, [network.body])(still(images(1)), target)
    assert flat.max() > 0.5
    assert over_time.shape == (1, 3, SIZE, SIZE)
    for frame in over_time[0]:
        assert abs(frame - flat[0]).max() < 1e-4
    changed = GradCAM(network, [network.body])(moving(1), target)
    assert abs(changed[0, 0] - changed[0, 1]).max() > 0.1


@pytest.mark.parametrize("name", ["torchvision resnet", "timm resnet"])
def test_captum(name: str) -> None:
    """A score is the mean over time: each frame has its share of the 2D attribution."""
    model, network = pair(name)
    flat = LayerGradCam(model, model.layer4).attribute(images(1), target=1)
    over_time = LayerGradCam(network, network.layer4).attribute(still(images(1), 4), target=1)
    assert relative_error(flat.unsqueeze(2).expand_as(over_time), over_time * 4) < 1e-4


def test_monai() -> None:
    model, network = pair("torchvision resnet")
    flat = MonaiGradCAM(model, "layer4")(images(1))
    network.layer4.register_full_backward_pre_hook(lambda block, given: tuple(one.contiguous() for one in given))
    over_time = MonaiGradCAM(network, "layer4")(still(images(1), 4))
    assert over_time.shape == (1, 1, 4, SIZE, SIZE)
    assert relative_error(flat, over_time[:, :, 1]) < 1e-3
    maps = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    volumetric = inflate(maps, "c2d", size=32)
    volume = torch.randn(1, 1, 40, 48, 40)
    with torch.no_grad():
        found = sliding_window_inference(volume, (40, 32, 32), 1, volumetric)
        expected = [sliding_window_inference(slice, (32, 32), 1, maps) for slice in volume.unbind(2)]
    assert relative_error(torch.stack(expected, 2), found) < 1e-5


# Wrappers, compilers, several processes.


def test_compiled_once_for_clips_of_any_length() -> None:
    torch._dynamo.reset()
    _, network = pair("torchvision resnet")
    whole, part = CompileCounter(), CompileCounter()
    compiled = torch.compile(network, backend=whole)
    partly = copy.deepcopy(network)
    partly.layer1.compile(backend=part)
    with torch.no_grad():
        for frames in (2, 3, 5, 8):
            expected = network(moving(1, frames))
            assert torch.equal(compiled(moving(1, frames)), expected)
            assert torch.equal(partly(moving(1, frames)), expected)
    assert (whole.frame_count, part.frame_count) == (2, 2)  # once with a length, once with any


@pytest.mark.parametrize("name", ["timm vit", "torchvision swin"])
def test_torchao(name: str) -> None:
    errors = []
    for net, given in zip(pair(name), (images(), still(images())), strict=True):
        with torch.no_grad():
            expected = net(given)
            quantize_(net, Int8WeightOnlyConfig())
            assert sum("Int8" in type(p).__name__ for p in net.parameters()) > 6
            errors.append(relative_error(expected, net(given)))
    assert 0 < errors[1] < 2 * errors[0]


def test_pt2e() -> None:
    errors = []
    model = Flat().eval()
    for net, given in ((model, images()), (inflate(model, "uniform", "mean", size=SIZE), still(images()))):
        with torch.no_grad():
            quantizer = x86.X86InductorQuantizer()
            quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
            prepared = prepare_pt2e(torch.export.export(net, (given,)).module(), quantizer)
            prepared(given)
            errors.append(relative_error(net(given), convert_pt2e(prepared)(given)))
    assert 0 < errors[1] < 2 * errors[0] < 0.1


def test_lists_of_parameters_and_children() -> None:
    """What is frozen by its place is what is frozen in 2D."""
    for name in NETWORKS:
        model, network = made(name)
        assert [key for key, _ in network.named_parameters()][:-2] == [key for key, _ in model.named_parameters()][:-2]
        assert [key for key, _ in network.named_children()] == [key for key, _ in model.named_children()]
    _, network = pair("torchvision resnet")
    features = nn.Sequential(*list(network.children())[:-1])
    with torch.no_grad():
        assert features(moving()).shape == (2, 512, 3, 1, 1)
