"""pytorch-i3d: `InceptionI3d`, the I3D of Carreira & Zisserman (arXiv:1705.07750)."""

from __future__ import annotations

from torch import nn

from i3dconvert.backbones import Changes, Origin
from i3dconvert.frameworks.framework import CONVOLUTION, Format, Framework, Target, called
from i3dconvert.recipes import InsertedPool, Recipe, Rule, preset
from i3dconvert.video.preprocessing import Preprocessing

_UNITS = (("conv", "conv3d"), ("bn", "bn"))
_BRANCHES = (
    ("branch1", "b0"),
    ("branch2.0", "b1a"),
    ("branch2.1", "b1b"),
    ("branch3.0", "b2a"),
    ("branch3.1", "b2b"),
    ("branch4.1", "b3b"),
)
_STEM = (("conv1", "Conv3d_1a_7x7"), ("conv2", "Conv3d_2b_1x1"), ("conv3", "Conv3d_2c_3x3"))

_I3D = Recipe(
    "pytorch-i3d",
    (*preset("i3d").rules, Rule("conv1.conv|maxpool3|maxpool4", padding="same")),
    (InsertedPool(after="inception5b", kernel=2, stride=1, kind="avg_pool"),),
    source="github.com/piergiaj/pytorch-i3d, pytorch_i3d.py",
)


def _build(origin: Origin) -> nn.Module:
    from pytorch_i3d import InceptionI3d

    network = InceptionI3d(num_classes=origin.classes, in_channels=origin.input[0])
    return called(network, gives=lambda scores: scores.mean(2))


FRAMEWORK = Framework(
    "pytorch-i3d",
    source="github.com/piergiaj/pytorch-i3d, pytorch_i3d.py",
    targets=(
        Target(
            "InceptionI3d",
            "googlenet",
            _I3D,
            _build,
            "pytorch_i3d.InceptionI3d(num_classes={classes}, in_channels={channels})",
            note="InceptionI3d pads like TensorFlow's 'SAME' and takes images in [-1, 1]: it equals GoogLeNet "
            "with these changes, for clips of a multiple of 8 frames, at least 16",
            structure=Changes(same=True),
        ),
    ),
    format=Format(
        keys=(
            *((f"{ours}.{part}", f"{theirs}.{unit}") for ours, theirs in _STEM for part, unit in _UNITS),
            *(
                (f"inception{stage}{letter}.{ours}.{part}", f"Mixed_{stage}{below}.{theirs}.{unit}")
                for stage, letters in ((3, "ab"), (4, "abcde"), (5, "ab"))
                for letter, below in zip(letters, "bcdef", strict=False)
                for ours, theirs in _BRANCHES
                for part, unit in _UNITS
            ),
            ("fc", "logits.conv3d"),
        ),
        conversions={"fc.weight": CONVOLUTION},
        preprocessing=Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3),
    ),
    suffix=".pt",
    install="put a clone of the repository on PYTHONPATH",
)
