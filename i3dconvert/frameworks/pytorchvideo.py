"""PyTorchVideo: `create_resnet` in the forms of its hub, at any depth of bottlenecks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from i3dconvert.backbones import Origin
from i3dconvert.frameworks.framework import Framework, Target
from i3dconvert.frameworks.keys import Rows
from i3dconvert.preprocessing import Preprocessing
from i3dconvert.recipes import InsertedPool, Recipe, Rule, preset

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


def depth(origin: Origin) -> int:
    """50 of resnet50."""
    return int(origin.backbone.qualified.rpartition("resnet")[2].partition(".")[0])


def _create(**architecture: Any) -> Callable[[Origin], nn.Module]:
    def build(origin: Origin) -> nn.Module:
        from pytorchvideo.models.resnet import create_resnet

        sizes = {"input_channel": origin.input[0], "model_num_class": origin.classes}
        network: nn.Module = create_resnet(model_depth=depth(origin), **sizes, **architecture)
        return network

    return build


def _keys(stages: tuple[int, ...], head: int) -> Rows:
    parts = {
        "conv1": "branch2.conv_a",
        "conv2": "branch2.conv_b",
        "conv3": "branch2.conv_c",
        "bn1": "branch2.norm_a",
        "bn2": "branch2.norm_b",
        "bn3": "branch2.norm_c",
        "downsample.0": "branch1_conv",
        "downsample.1": "branch1_norm",
    }
    return (
        ("conv1", "blocks.0.conv"),
        ("bn1", "blocks.0.norm"),
        *(
            (f"layer{index + 1}.{{}}.{ours}", f"blocks.{stage}.res_blocks.{{}}.{theirs}")
            for index, stage in enumerate(stages)
            for ours, theirs in parts.items()
        ),
        ("fc", f"blocks.{head}.proj"),
    )


_POOLED = _keys(stages=(1, 3, 4, 5), head=6)
"""The pool behind the first stage is a block of its own."""
_PLAIN = (1, 1, 1)
_DEEP = (3, 1, 1)

PYTORCHVIDEO = Framework(
    "pytorchvideo",
    source="pytorchvideo 0.1.5, models/hub/resnet.py",
    targets=(
        Target(
            "slow_r50",
            BOTTLENECKS,
            preset("slow"),
            _create(stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(8, 7, 7)),
            "pytorchvideo.models.hub.slow_r50(model_num_class={classes})",
        ),
        Target(
            "c2d_r50",
            BOTTLENECKS,
            C2D,
            _create(stem_conv_kernel_size=(1, 7, 7), stage1_pool=nn.MaxPool3d, stage_conv_a_kernel_size=(_PLAIN,) * 4),
            "pytorchvideo.models.hub.c2d_r50(model_num_class={classes})",
            keys=_POOLED,
        ),
        Target(
            "i3d_r50",
            BOTTLENECKS,
            I3D,
            _create(
                stem_conv_kernel_size=(5, 7, 7),
                stage1_pool=nn.MaxPool3d,
                stage_conv_a_kernel_size=(_DEEP, [_DEEP, _PLAIN], [_DEEP, _PLAIN], [_PLAIN, _DEEP]),
            ),
            "pytorchvideo.models.hub.i3d_r50(model_num_class={classes})",
            keys=_POOLED,
        ),
    ),
    keys=_keys(stages=(1, 2, 3, 4), head=5),
    suffix=".pyth",
    nest="model_state",
    install="pip install pytorchvideo",
    preprocessing=KINETICS,
)
