"""SlowFast: its single-pathway ResNets, C2D, I3D and Slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from i3dconvert.backbones import Origin
from i3dconvert.frameworks.framework import Framework, Target, called
from i3dconvert.frameworks.pytorchvideo import C2D, I3D, KINETICS, depth
from i3dconvert.recipes import preset

_DEPTHS = "resnet50|resnet101"
_BLOCKS = {50: [[3], [4], [6], [3]], 101: [[3], [4], [23], [3]]}


def _build(arch: str) -> Callable[[Origin], nn.Module]:
    def build(origin: Origin) -> nn.Module:
        from slowfast.config.defaults import get_cfg
        from slowfast.models import build_model

        config = get_cfg()
        config.NUM_GPUS = 0
        config.DATA.NUM_FRAMES, config.DATA.TRAIN_CROP_SIZE = 8, 224
        config.DATA.INPUT_CHANNEL_NUM = [origin.input[0]]
        config.MODEL.MODEL_NAME, config.MODEL.ARCH, config.MODEL.NUM_CLASSES = "ResNet", arch, origin.classes
        config.RESNET.DEPTH = depth(origin)
        config.RESNET.NUM_BLOCK_TEMP_KERNEL = _BLOCKS[depth(origin)]
        network: Any = build_model(config)
        network.head.act = nn.Identity()  # in eval mode, where its users want probabilities
        return called(network, given=lambda clip: [clip])

    return build


SLOWFAST = Framework(
    "slowfast",
    source="github.com/facebookresearch/SlowFast, models/video_model_builder.py, resnet_helper.py, stem_helper.py",
    targets=(
        Target("slow", _DEPTHS, preset("slow"), _build("slow"), "MODEL.ARCH slow, RESNET.DEPTH {depth}"),
        Target("c2d", _DEPTHS, C2D, _build("c2d"), "MODEL.ARCH c2d, RESNET.DEPTH {depth}"),
        Target("i3d", _DEPTHS, I3D, _build("i3d"), "MODEL.ARCH i3d, RESNET.DEPTH {depth}"),
    ),
    keys=(
        ("conv1", "s1.pathway0_stem.conv"),
        ("bn1", "s1.pathway0_stem.bn"),
        *(
            row
            for stage in (1, 2, 3, 4)
            for row in (
                (f"layer{stage}.{{}}.conv1", f"s{stage + 1}.pathway0_res{{}}.branch2.a"),
                (f"layer{stage}.{{}}.conv2", f"s{stage + 1}.pathway0_res{{}}.branch2.b"),
                (f"layer{stage}.{{}}.conv3", f"s{stage + 1}.pathway0_res{{}}.branch2.c"),
                (f"layer{stage}.{{}}.bn1", f"s{stage + 1}.pathway0_res{{}}.branch2.a_bn"),
                (f"layer{stage}.{{}}.bn2", f"s{stage + 1}.pathway0_res{{}}.branch2.b_bn"),
                (f"layer{stage}.{{}}.bn3", f"s{stage + 1}.pathway0_res{{}}.branch2.c_bn"),
                (f"layer{stage}.{{}}.downsample.0", f"s{stage + 1}.pathway0_res{{}}.branch1"),
                (f"layer{stage}.{{}}.downsample.1", f"s{stage + 1}.pathway0_res{{}}.branch1_bn"),
            )
        ),
        ("fc", "head.projection"),
    ),
    suffix=".pyth",
    nest="model_state",
    install="its INSTALL.md says how",
    preprocessing=KINETICS,
)
