"""MMAction2: `ResNet3d` and `ResNet3dSlowOnly` in a `Recognizer3D`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from i3dconvert.backbones import Origin
from i3dconvert.frameworks.framework import Format, Framework, Target, called
from i3dconvert.frameworks.resnets import BOTTLENECKS, I3D
from i3dconvert.recipes import Recipe, Rule, preset

_I3D = Recipe(
    "mmaction2-i3d",
    (*I3D.rules, Rule("conv1", stride=2), Rule("maxpool", kind="max_pool", stride=2)),
    I3D.pools,
    source="MMAction2, configs/_base_/models/i3d_r50.py",
)

_SLOW_ONLY: Mapping[str, Any] = {
    "type": "ResNet3dSlowOnly",
    "lateral": False,
    "conv1_kernel": (1, 7, 7),
    "conv1_stride_t": 1,
    "pool1_stride_t": 1,
    "inflate": (0, 0, 1, 1),
}
_INFLATED: Mapping[str, Any] = {
    "type": "ResNet3d",
    "conv1_kernel": (5, 7, 7),
    "conv1_stride_t": 2,
    "pool1_stride_t": 2,
    "inflate": ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0)),
}


def _build(backbone: Mapping[str, Any], origin: Origin) -> nn.Module:
    import mmaction.models  # noqa: F401 - registers them
    from mmaction.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmaction")
    sizes = {"depth": origin.backbone.depth, "in_channels": origin.input[0], "pretrained": None}
    head = {"type": "I3DHead", "in_channels": 2048, "num_classes": origin.classes}
    network = MODELS.build({"type": "Recognizer3D", "backbone": {**backbone, **sizes}, "cls_head": head})
    return called(network, given=lambda clip: clip[:, None], gives=network.cls_head)


FRAMEWORK = Framework(
    "mmaction2",
    source="github.com/open-mmlab/mmaction2, models/backbones/resnet3d.py, configs/_base_/models",
    targets=(
        Target(
            "slowonly",
            BOTTLENECKS,
            preset("slow"),
            partial(_build, _SLOW_ONLY),
            "configs/_base_/models/slowonly_r50.py",
        ),
        Target("i3d", BOTTLENECKS, _I3D, partial(_build, _INFLATED), "configs/_base_/models/i3d_r50.py"),
    ),
    format=Format(
        keys=(
            ("conv1", "backbone.conv1.conv"),
            ("bn1", "backbone.conv1.bn"),
            ("layer{}.{}.conv{}", "backbone.layer{}.{}.conv{}.conv"),
            ("layer{}.{}.bn{}", "backbone.layer{}.{}.conv{}.bn"),
            ("layer{}.{}.downsample.0", "backbone.layer{}.{}.downsample.conv"),
            ("layer{}.{}.downsample.1", "backbone.layer{}.{}.downsample.bn"),
            ("fc", "cls_head.fc_cls"),
        )
    ),
    suffix=".pth",
    nest="state_dict",
    install="see its installation guide",
)
