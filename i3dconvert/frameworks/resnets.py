"""Properties that the ResNets of several frameworks share: depths, recipes, preprocessing."""

from __future__ import annotations

from i3dconvert.recipes import InsertedPool, Recipe, Rule
from i3dconvert.video.preprocessing import Preprocessing

RESNETS = "resnet18|resnet34|resnet50|resnet101|resnet152"
BOTTLENECKS = "resnet50|resnet101|resnet152"
KINETICS = Preprocessing(mean=(0.45,) * 3, std=(0.225,) * 3)

_POOL = (InsertedPool(after="layer1", kernel=2, stride=2),)
C2D = Recipe("c2d-r50", (), _POOL, source="the C2D of SlowFast and PyTorchVideo: 2 frames pooled after the first stage")
I3D = Recipe(
    "i3d-r50",
    (
        Rule("conv1", kernel=5),
        Rule("layer1.*.conv1|layer[23].*[02468].conv1|layer4.*[13579].conv1", kind="pointwise", kernel=3),
    ),
    _POOL,
    source="the I3D-ResNet of SlowFast and PyTorchVideo",
)
