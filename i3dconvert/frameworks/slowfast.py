"""SlowFast: its single-pathway ResNets, C2D, I3D and Slow."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from i3dconvert.backbones import Origin
from i3dconvert.frameworks.framework import Format, Framework, Target, called
from i3dconvert.frameworks.keys import in_stages
from i3dconvert.frameworks.resnets import C2D, I3D, KINETICS
from i3dconvert.recipes import preset

_DEPTHS = "resnet50|resnet101"
_BLOCKS = {50: [[3], [4], [6], [3]], 101: [[3], [4], [23], [3]]}


def _build(arch: str, origin: Origin) -> nn.Module:
    from slowfast.config.defaults import get_cfg
    from slowfast.models import build_model

    config = get_cfg()
    config.NUM_GPUS = 0
    config.DATA.NUM_FRAMES, config.DATA.TRAIN_CROP_SIZE = 8, 224
    config.DATA.INPUT_CHANNEL_NUM = [origin.input[0]]
    config.MODEL.MODEL_NAME, config.MODEL.ARCH, config.MODEL.NUM_CLASSES = "ResNet", arch, origin.classes
    config.RESNET.DEPTH = origin.backbone.depth
    config.RESNET.NUM_BLOCK_TEMP_KERNEL = _BLOCKS[origin.backbone.depth]
    network: Any = build_model(config)
    network.head.act = nn.Identity()  # in eval mode it would return probabilities
    return called(network, given=lambda clip: [clip])


_PARTS = {
    "conv1": "branch2.a",
    "conv2": "branch2.b",
    "conv3": "branch2.c",
    "bn1": "branch2.a_bn",
    "bn2": "branch2.b_bn",
    "bn3": "branch2.c_bn",
    "downsample.0": "branch1",
    "downsample.1": "branch1_bn",
}

FRAMEWORK = Framework(
    "slowfast",
    source="github.com/facebookresearch/SlowFast, models/video_model_builder.py, resnet_helper.py, stem_helper.py",
    targets=(
        Target("slow", _DEPTHS, preset("slow"), partial(_build, "slow"), "MODEL.ARCH slow, RESNET.DEPTH {depth}"),
        Target("c2d", _DEPTHS, C2D, partial(_build, "c2d"), "MODEL.ARCH c2d, RESNET.DEPTH {depth}"),
        Target("i3d", _DEPTHS, I3D, partial(_build, "i3d"), "MODEL.ARCH i3d, RESNET.DEPTH {depth}"),
    ),
    format=Format(
        keys=(
            ("conv1", "s1.pathway0_stem.conv"),
            ("bn1", "s1.pathway0_stem.bn"),
            *in_stages([f"s{stage}.pathway0_res{{}}" for stage in (2, 3, 4, 5)], _PARTS),
            ("fc", "head.projection"),
        ),
        preprocessing=KINETICS,
    ),
    suffix=".pyth",
    nest="model_state",
    install="see its INSTALL.md",
)
