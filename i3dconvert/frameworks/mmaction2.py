"""MMAction2: `ResNet3d` and `ResNet3dSlowOnly` in a `Recognizer3D`."""

from __future__ import annotations

from i3dconvert.frameworks.framework import Framework, Target
from i3dconvert.frameworks.pytorchvideo import BOTTLENECKS, I3D
from i3dconvert.recipes import Recipe, Rule, preset

_I3D = Recipe(
    "mmaction2-i3d",
    (*I3D.rules, Rule("conv1", stride=2), Rule("maxpool", kind="max_pool", stride=2)),
    I3D.pools,
    source="MMAction2, configs/_base_/models/i3d_r50.py",
)

MMACTION2 = Framework(
    "mmaction2",
    source="github.com/open-mmlab/mmaction2, models/backbones/resnet3d.py, configs/_base_/models",
    targets=(
        Target("slowonly", BOTTLENECKS, preset("slow"), built_by="configs/_base_/models/slowonly_r50.py"),
        Target("i3d", BOTTLENECKS, _I3D, built_by="configs/_base_/models/i3d_r50.py"),
    ),
    keys=(
        ("conv1", "backbone.conv1.conv"),
        ("bn1", "backbone.conv1.bn"),
        ("layer{}.{}.conv{}", "backbone.layer{}.{}.conv{}.conv"),
        ("layer{}.{}.bn{}", "backbone.layer{}.{}.conv{}.bn"),
        ("layer{}.{}.downsample.0", "backbone.layer{}.{}.downsample.conv"),
        ("layer{}.{}.downsample.1", "backbone.layer{}.{}.downsample.bn"),
        ("fc", "cls_head.fc_cls"),
    ),
    suffix=".pth",
    nest="state_dict",
)
