"""Families of torchvision's and of timm's classifiers, and named networks with all presets."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from i3dconvert import verify
from i3dconvert.backbones import Source
from i3dconvert.errors import FramesError, RecipeError
from i3dconvert.inflation import Options, inflate_loaded
from i3dconvert.lift.kernels import Style
from i3dconvert.recipes import PRESETS
from i3dconvert.verification import Settings
from tools.sweep import verify_small

TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 "
    "squeezenet1_1 swin_t swin_v2_t vgg11_bn vit_b_32 wide_resnet50_2"
).split()
SLOW = {"efficientnet_v2_s", "inception_v3", "maxvit_t", "swin_v2_t", "vgg11_bn", "wide_resnet50_2"}
WITH_MEAN_TAPS = {"googlenet", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"}
TIMM = (
    "convnext_atto deit_tiny_patch16_224 efficientnet_lite0 ghostnet_050 mixer_s32_224 mobilenetv3_small_050 "
    "regnetx_002 resnet18d seresnext26d_32x4d tf_efficientnet_lite0 vgg11 hrnet_w18_small dla34"
).split()
NAMED = "resnet50 resnet101 resnet152 densenet121 densenet161 densenet169 densenet201 googlenet".split()
FITTING = {
    "resnet": {"resnet", "i3d-resnet", "slow", "c2d", "uniform", "volumetric"},
    "densenet": {"densenet", "c2d", "uniform", "volumetric"},
    "googlenet": {"i3d", "c2d", "uniform", "volumetric"},
}
IN_A_SECOND = {"mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"}
TIMM_IN_A_SECOND = {"mixer_s32_224", "mobilenetv3_small_050", "regnetx_002", "resnet18d"}


def check(name: str, init: str) -> None:
    model, origin = Source(name, "random").load()
    network = inflate_loaded(model, origin, Options(style=Style(init=init)))
    report = verify_small(model, network)
    assert report.passed, report.reason
    assert {check.error is not None for check in report.checks[1:]} == {True}


def swept(names: Iterable[str], quick: Iterable[str], slow: Iterable[str] = ()) -> list[Any]:
    """The names as parameters, those that are not quick marked as slow or for the sweep."""
    marks = {name: pytest.mark.slow if name in slow else pytest.mark.sweep for name in names}
    return [name if name in quick else pytest.param(name, marks=mark) for name, mark in marks.items()]


@pytest.mark.parametrize("name", swept(TORCHVISION, IN_A_SECOND, {*TORCHVISION} - SLOW))
def test_torchvision_families(name: str) -> None:
    check(name, "center")


@pytest.mark.parametrize("name", swept(TORCHVISION, {"squeezenet1_1"}, WITH_MEAN_TAPS))
def test_torchvision_families_with_mean_taps(name: str) -> None:
    check(name, "mean")


@pytest.mark.parametrize("name", swept(TIMM, TIMM_IN_A_SECOND, {*TIMM} - {"vgg11"}))
def test_timm_families(name: str) -> None:
    check(f"timm/{name}", "center")


OF_ATTENTION = {"joint", "divided", "factorised"}
"""Which are `uniform` or `c2d` where nothing attends."""


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - OF_ATTENTION))
@pytest.mark.parametrize("name", swept(NAMED, (), {"resnet50"}))
def test_named_networks_with_every_preset_and_many_lengths(name: str, preset: str) -> None:
    model, origin = Source(name, "random").load()
    if preset not in FITTING[name.rstrip("0123456789")]:
        with pytest.raises(RecipeError, match="does not fit"):
            inflate_loaded(model, origin, Options(preset))
        return
    network = inflate_loaded(model, origin, Options(preset))
    minimum = network.inflation.minimum_frames
    for frames in (1, 8, 16, 17, minimum):
        settings = Settings(frames=frames, size=64, dtypes=(torch.float64,))
        if frames < minimum:
            with pytest.raises(FramesError, match="too short"):
                verify(model, network, settings)
        else:
            report = verify(model, network, settings)
            assert report.passed, (frames, report.reason)
