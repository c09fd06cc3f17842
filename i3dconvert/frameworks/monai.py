"""MONAI: its ResNets and DenseNets, inflated from torchvision's, and its own 2D networks with `spatial_dims=3`."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from i3dconvert.backbones import Changes, Origin
from i3dconvert.backbones.user import build_in_volumes
from i3dconvert.frameworks.framework import Format, Framework, Target
from i3dconvert.frameworks.resnets import RESNETS
from i3dconvert.recipes import preset


def _resnet(stride: int, origin: Origin) -> nn.Module:
    import monai.networks.nets as nets

    return getattr(nets, origin.backbone.model)(
        spatial_dims=3, n_input_channels=origin.input[0], num_classes=origin.classes, conv1_t_stride=stride
    )


def _densenet(origin: Origin, **architecture: Any) -> nn.Module:
    import monai.networks.nets as nets

    create = nets.DenseNet if architecture else getattr(nets, f"DenseNet{origin.backbone.depth}")
    return create(spatial_dims=3, in_channels=origin.input[0], out_channels=origin.classes, **architecture)


_NETWORKS = """
    UNet BasicUNet BasicUNetPlusPlus SegResNet DynUNet AttentionUnet HighResNet VNet AutoEncoder DenseNet
    ResNet SENet EfficientNetBN
""".split()
"""Classes whose 2D and 3D forms have the same names and, in `volumetric`, the same kernels."""

_POOLING_TIME = ("SENet", "EfficientNetBN")
"""Networks whose squeeze-and-excitation also averages over depth; the inflated network averages each slice."""


def _own(name: str) -> Target:
    return Target(
        name,
        "PATH.py:FUNCTION",
        preset("volumetric"),
        lambda origin: build_in_volumes(origin.backbone.name),
        f"monai.networks.nets.{name}(spatial_dims=3, …), from FUNCTION(spatial_dims=3)",
        note="it averages over depth, the inflated network over each slice: equal only on still clips"
        if name in _POOLING_TIME
        else "",
        format=Format(),
        package="monai.networks.nets",
    )


FRAMEWORK = Framework(
    "monai",
    source="MONAI 1.6.1, networks/nets",
    targets=(
        Target(
            "resnet",
            RESNETS,
            preset("volumetric"),
            partial(_resnet, 2),
            "monai.networks.nets.resnet{depth}(spatial_dims=3, n_input_channels={channels}, conv1_t_stride=2, "
            "num_classes={classes})",
            note="MONAI's default stem has stride 1 (monai:resnet_stride1); with it, the same weights "
            "equal the 2D network with such a stem",
        ),
        Target(
            "resnet_stride1",
            RESNETS,
            preset("volumetric"),
            partial(_resnet, 1),
            "monai.networks.nets.resnet{depth}(spatial_dims=3, n_input_channels={channels}, num_classes={classes})",
            note="its stem has stride 1: it equals the 2D network with such a stem, not the one that was trained",
            structure=Changes(stem_stride=1),
        ),
        Target(
            "densenet",
            "densenet121|densenet169|densenet201",
            preset("volumetric"),
            _densenet,
            "monai.networks.nets.DenseNet{depth}(spatial_dims=3, in_channels={channels}, out_channels={classes})",
        ),
        Target(
            "densenet161",
            "densenet161",
            preset("volumetric"),
            partial(_densenet, init_features=96, growth_rate=48, block_config=(6, 12, 36, 24)),
            "monai.networks.nets.DenseNet(spatial_dims=3, in_channels={channels}, out_channels={classes}, "
            "init_features=96, growth_rate=48, block_config=(6, 12, 36, 24))",
        ),
        *map(_own, _NETWORKS),
    ),
    format=Format(
        keys=(
            ("features.denseblock{}.denselayer{}.*", "features.denseblock{}.denselayer{}.layers.*"),
            ("classifier", "class_layers.out"),
            ("*", "*"),
        ),
        biased=(("layer{}.{}.downsample.0", "layer{}.{}.downsample.1"),),
    ),
    install="pip install monai",
)
