"""What the frameworks' tests share: their own networks and checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from i3dconvert import backbones
from i3dconvert.backbones import Origin, Source
from i3dconvert.frameworks import framework_of
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.planning import plan

Shapes = dict[str, tuple[int, ...]]


def quiet_build(layout: str, origin: Origin) -> nn.Module:
    """The framework's own network."""
    known = framework_of(layout)
    target = known.target(origin.backbone.qualified, layout.partition(":")[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return target.build(origin).eval()
        except ImportError as error:
            pytest.skip(f"{layout} is not installed: {error}")


def shapes(layout: str, backbone: str) -> dict[str, tuple[int, ...]]:
    """What a framework's file holds, statistics and counts of BatchNorm apart."""
    known = framework_of(layout)
    target = known.target(backbone, layout.partition(":")[2])
    arguments = backbones.library("torchvision").arguments(backbone, None, 400)
    model = backbones.build(backbones.Backbone("torchvision", backbone, arguments))
    inflation = plan(model, target.recipe, Style(), (3, 224, 224)).inflation
    places = known.places(target, {key: inflation.shape(key, value) for key, value in model.state_dict().items()})
    return {place.name: place.shape for place in places if place.name.endswith((".weight", ".bias"))}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def strangers(layout: str, backbone: str, path: Path) -> nn.Module:
    """A framework's own checkpoint of random weights, of 400 classes, in the form that its trainer saves."""
    origin = Source(backbone, "random", size=32).load()[1].with_classes(400)
    network = quiet_build(layout, origin)
    randomise_clip(network)
    nest = framework_of(layout).nest
    torch.save({nest: network.state_dict(), "epoch": 3} if nest else network.state_dict(), path)
    return network


def randomise_clip(network: nn.Module) -> None:
    """Random weights, and statistics of order one, in every tensor: biases that the 2D network lacks among them."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator)
            spread = 0.1 if tensor.dim() < 2 else (2 / tensor[0].numel()) ** 0.5
            drawn = drawn.abs() + 0.5 if "running_var" in name else drawn * spread
            tensor.copy_(drawn if tensor.dim() > 1 else drawn.mul(1024).round() / 1024)  # of which sums are exact
            if tensor.dim() == 1 and name.endswith("weight"):
                tensor.add_(1)
