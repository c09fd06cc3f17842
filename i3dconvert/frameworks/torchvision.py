"""torchvision.models.video: r3d_18 and mc3_18 (Tran et al., arXiv:1711.11248)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from i3dconvert.backbones import Changes, Origin
from i3dconvert.frameworks.framework import Framework, Target
from i3dconvert.preprocessing import Preprocessing
from i3dconvert.recipes import Recipe, Rule

_SOURCE = "torchvision, models/video/resnet.py"
_R3D = Recipe(
    "r3d_18",
    (
        Rule(kind="spatial", kernel=3, stride="spatial"),
        Rule(kind="pointwise", stride="spatial"),
        Rule("conv1", stride=1),
    ),
    source=_SOURCE,
)
_MC3 = Recipe("mc3_18", (Rule("conv1|layer1.*", kind="spatial", kernel=3),), source=_SOURCE)


def _video(name: str) -> Callable[[Origin], nn.Module]:
    def build(origin: Origin) -> nn.Module:
        from torchvision.models import video

        network: nn.Module = getattr(video, name)(num_classes=origin.classes)
        return network

    return build


TORCHVISION_VIDEO = Framework(
    "torchvision-video",
    source=_SOURCE,
    targets=tuple(
        Target(
            recipe.name,
            "resnet18",
            recipe,
            _video(recipe.name),
            f"torchvision.models.video.{recipe.name}(num_classes={{classes}})",
            "the video network has no max-pool behind its stem: it equals ResNet-18 without one, with all its tensors",
            structure=Changes(without="maxpool"),
        )
        for recipe in (_R3D, _MC3)
    ),
    keys=(
        ("conv1", "stem.0"),
        ("bn1", "stem.1"),
        ("layer{}.{}.conv{}", "layer{}.{}.conv{}.0"),
        ("layer{}.{}.bn{}", "layer{}.{}.conv{}.1"),
        ("layer{}.{}.downsample.{}", "layer{}.{}.downsample.{}"),
        ("fc", "fc"),
    ),
    suffix=".pth",
    install="pip install torchvision",
    preprocessing=Preprocessing(112, 128, (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
)
