"""PyTorchVideo: `create_resnet` with the architectures of its hub, at any depth with bottlenecks."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from i3dconvert.backbones import Origin
from i3dconvert.frameworks.framework import Format, Framework, Target
from i3dconvert.frameworks.keys import in_stages
from i3dconvert.frameworks.resnets import BOTTLENECKS, C2D, I3D, KINETICS
from i3dconvert.recipes import Recipe, preset


def _create(origin: Origin, **architecture: Any) -> nn.Module:
    from pytorchvideo.models.resnet import create_resnet

    sizes = {"input_channel": origin.input[0], "model_num_class": origin.classes}
    return create_resnet(model_depth=origin.backbone.depth, **sizes, **architecture)


def _target(name: str, recipe: Recipe, format: Format | None = None, **architecture: Any) -> Target:
    """Return a network of the hub, which has it at one depth; `create_resnet` builds it at any."""
    written = ", ".join(f"{key}={_written(value)}" for key, value in architecture.items())
    sizes = "model_depth={depth}, input_channel={channels}, model_num_class={classes}"
    built_by = f"pytorchvideo.models.resnet.create_resnet({sizes}, {written})"
    return Target(name, BOTTLENECKS, recipe, partial(_create, **architecture), built_by, format=format)


def _written(value: Any) -> str:
    return f"torch.nn.{value.__name__}" if isinstance(value, type) else repr(value)


_PARTS = {
    "conv1": "branch2.conv_a",
    "conv2": "branch2.conv_b",
    "conv3": "branch2.conv_c",
    "bn1": "branch2.norm_a",
    "bn2": "branch2.norm_b",
    "bn3": "branch2.norm_c",
    "downsample.0": "branch1_conv",
    "downsample.1": "branch1_norm",
}


def _format(stages: tuple[int, ...], head: int) -> Format:
    keys = (
        ("conv1", "blocks.0.conv"),
        ("bn1", "blocks.0.norm"),
        *in_stages([f"blocks.{stage}.res_blocks.{{}}" for stage in stages], _PARTS),
        ("fc", f"blocks.{head}.proj"),
    )
    return Format(keys, preprocessing=KINETICS)


_POOLED = _format(stages=(1, 3, 4, 5), head=6)
"""In these, the pool after the first stage is a separate block."""
_PLAIN = (1, 1, 1)
_DEEP = (3, 1, 1)

FRAMEWORK = Framework(
    "pytorchvideo",
    source="pytorchvideo 0.1.5, models/hub/resnet.py",
    targets=(
        _target("slow_r50", preset("slow"), stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(8, 7, 7)),
        _target(
            "c2d_r50",
            C2D,
            _POOLED,
            stem_conv_kernel_size=(1, 7, 7),
            stage1_pool=nn.MaxPool3d,
            stage_conv_a_kernel_size=(_PLAIN,) * 4,
        ),
        _target(
            "i3d_r50",
            I3D,
            _POOLED,
            stem_conv_kernel_size=(5, 7, 7),
            stage1_pool=nn.MaxPool3d,
            stage_conv_a_kernel_size=(_DEEP, [_DEEP, _PLAIN], [_DEEP, _PLAIN], [_PLAIN, _DEEP]),
        ),
    ),
    format=_format(stages=(1, 2, 3, 4), head=5),
    suffix=".pyth",
    nest="model_state",
    install="pip install pytorchvideo",
)
