"""timm-3d: timm's names, with cubic kernels, strides and pools."""

from __future__ import annotations

from torch import nn

from i3dconvert.backbones import Origin
from i3dconvert.frameworks.framework import Framework, Target
from i3dconvert.recipes import preset


def _create(origin: Origin) -> nn.Module:
    import timm_3d

    return timm_3d.create_model(
        origin.backbone.model, pretrained=False, num_classes=origin.classes, in_chans=origin.input[0]
    )


FRAMEWORK = Framework(
    "timm-3d",
    source="timm-3d 1.0.1",
    targets=(
        Target(
            "timm",
            "*resn*|densenet*|convnext*|*efficientnet*|vgg*",
            preset("volumetric"),
            _create,
            "timm_3d.create_model('{name}', num_classes={classes}, in_chans={channels})",
            note="timm-3d's networks may differ from timm's: check with `verify --layout timm-3d`",
        ),
    ),
    sources="timm",
    named_by_backbone=True,
    install="pip install timm-3d",
)
