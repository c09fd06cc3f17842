"""torchvision.models.video: r3d_18 and mc3_18 (Tran et al., arXiv:1711.11248), and Video Swin."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.backbones import Changes, Origin
from i3dconvert.frameworks.framework import Conversion, Format, Framework, Target
from i3dconvert.recipes import Recipe, Rule, preset
from i3dconvert.video.preprocessing import Preprocessing

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


def _video(name: str, origin: Origin) -> nn.Module:
    from torchvision.models import video

    network: Any = getattr(video, name)(num_classes=origin.classes)
    stem_name, stem = next((n, module) for n, module in network.named_modules() if isinstance(module, nn.Conv3d))
    if origin.input[0] != stem.in_channels:
        own: Any = (stem.out_channels, stem.kernel_size, stem.stride, stem.padding, 1, 1, stem.bias is not None)
        network.set_submodule(stem_name, nn.Conv3d(origin.input[0], *own))
    return network


WINDOW = 7
"""Height and width of the windows of torchvision's Swin; its video form has 8 frames."""
_DISTANCES = 2 * WINDOW - 1


def _index_in_volumes(index: Tensor) -> Tensor:
    """Return the index `(8·L, 8·L)` of each pair of tokens in a table over time, height and width, from one `(L²,)`."""
    frames = torch.arange(8, device=index.device)
    further = (frames.unsqueeze(1) - frames + 7) * _DISTANCES**2
    within = index.reshape(WINDOW**2, WINDOW**2)
    return (further[:, None, :, None] + within[None, :, None, :]).reshape(8 * WINDOW**2, 8 * WINDOW**2)


def _index_in_images(index: Tensor) -> Tensor:
    return (index[: WINDOW**2, : WINDOW**2] - 7 * _DISTANCES**2).flatten()


_SWIN_FILES = Format(
    keys=(
        ("features.0.0", "patch_embed.proj"),
        ("features.0.2", "patch_embed.norm"),
        *((f"features.{stage}.*", f"features.{stage - 1}.*") for stage in range(1, 8)),
        ("norm", "norm"),
        ("head", "head"),
    ),
    conversions={"*.relative_position_index": Conversion(_index_in_volumes, _index_in_images)},
    preprocessing=Preprocessing(224, 256),
)
_SWINS = tuple(
    Target(
        name,
        f"swin_{name[-1]}",
        preset("video-swin"),
        partial(_video, name),
        f"torchvision.models.video.{name}(num_classes={{classes}})",
        "for clips of an even number of frames up to 16, or a multiple of 16, at 224×224: the video network pads "
        "others or attends to them in smaller windows",
        format=_SWIN_FILES,
    )
    for name in ("swin3d_t", "swin3d_s", "swin3d_b")
)

FRAMEWORK = Framework(
    "torchvision-video",
    source=_SOURCE,
    targets=(
        *(
            Target(
                recipe.name,
                "resnet18",
                recipe,
                partial(_video, recipe.name),
                f"torchvision.models.video.{recipe.name}(num_classes={{classes}})",
                "the video network has no max-pool after its stem: it equals ResNet-18 without one, with all of its "
                "tensors",
                structure=Changes(without="maxpool"),
            )
            for recipe in (_R3D, _MC3)
        ),
        *_SWINS,
    ),
    format=Format(
        keys=(
            ("conv1", "stem.0"),
            ("bn1", "stem.1"),
            ("layer{}.{}.conv{}", "layer{}.{}.conv{}.0"),
            ("layer{}.{}.bn{}", "layer{}.{}.conv{}.1"),
            ("layer{}.{}.downsample.{}", "layer{}.{}.downsample.{}"),
            ("fc", "fc"),
        ),
        preprocessing=Preprocessing(112, 128, (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    ),
    suffix=".pth",
    install="pip install torchvision",
)
