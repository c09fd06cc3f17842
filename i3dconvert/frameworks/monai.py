"""MONAI: its ResNets and DenseNets with `spatial_dims=3`."""

from __future__ import annotations

from torch import nn

from i3dconvert.backbones import Origin
from i3dconvert.frameworks.framework import Framework, Target
from i3dconvert.frameworks.resnets3d import RESNETS
from i3dconvert.recipes import preset


def _resnet(origin: Origin) -> nn.Module:
    import monai.networks.nets as nets

    name = origin.backbone.qualified.rpartition("/")[2].partition(".")[0]
    network: nn.Module = getattr(nets, name)(
        spatial_dims=3, n_input_channels=origin.input[0], num_classes=origin.classes, conv1_t_stride=2
    )
    return network


def _densenet(origin: Origin) -> nn.Module:
    import monai.networks.nets as nets

    depth = origin.backbone.qualified.rpartition("densenet")[2].partition(".")[0]
    network: nn.Module = getattr(nets, f"DenseNet{depth}")(
        spatial_dims=3, in_channels=origin.input[0], out_channels=origin.classes
    )
    return network


MONAI = Framework(
    "monai",
    source="MONAI 1.6.1, networks/nets/resnet.py and densenet.py",
    targets=(
        Target(
            "resnet",
            RESNETS,
            preset("volumetric"),
            _resnet,
            "monai.networks.nets.resnet{depth}(spatial_dims=3, conv1_t_stride=2, num_classes={classes})",
            note="MONAI's ResNets have a stem of stride 1 by default: the weights fit, but equal the 2D network with "
            "conv1_t_stride=2 alone",
        ),
        Target(
            "densenet",
            "densenet121|densenet169|densenet201",
            preset("volumetric"),
            _densenet,
            "monai.networks.nets.DenseNet{depth}(spatial_dims=3, in_channels=3, out_channels={classes})",
        ),
    ),
    keys=(
        ("features.denseblock{}.denselayer{}.*", "features.denseblock{}.denselayer{}.layers.*"),
        ("classifier", "class_layers.out"),
        ("*", "*"),
    ),
    biased=(("layer{}.{}.downsample.0", "layer{}.{}.downsample.1"),),
    package="monai",
)
