"""The original inflation scripts (hassony2/inflated_convnets_pytorch): I3ResNet and I3DenseNet, and Merlin's I3ResNet.

Merlin (Blankemeier et al., arXiv:2406.06512) and Astra train it on CT. Their files may prefix the tensor names with the
image encoder's name, and have both of Merlin's heads or none.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.backbones import Origin
from i3dconvert.errors import LayoutError
from i3dconvert.frameworks.framework import CONVOLUTION, Conversion, Format, Framework, Target, called
from i3dconvert.frameworks.keys import SAME
from i3dconvert.lift.kernels import Style
from i3dconvert.recipes import preset
from i3dconvert.video.preprocessing import Preprocessing

RESNETS = "resnet50|resnet101|resnet152|wide_resnet50_2|wide_resnet101_2"
DENSENETS = "densenet121|densenet161|densenet169|densenet201"

FRAMES = 16
"""Frames in the scripts' clips, which the size of I3DenseNet's head depends on."""
_LEFT = 2
"""Frames left after the three transitions of a DenseNet."""

_VOLUMES = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)
"""Merlin's: Hounsfield units from -1000 to 1000 mapped to 0 to 1, in three equal channels."""


def _backbone2d(origin: Origin) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(origin.backbone.name, num_classes=origin.classes or 1)


def _resnet(origin: Origin, **options: Any) -> nn.Module:
    from src.i3res import I3ResNet

    return I3ResNet(_backbone2d(origin), FRAMES, origin.classes, **options)


def _densenet(origin: Origin) -> nn.Module:
    from src import i3dense

    i3dense._DenseLayer3d.add_module = _add_module
    return i3dense.I3DenseNet(_backbone2d(origin), FRAMES, inflate_block_convs=True)


def _add_module(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Rename the script's paddings, such as `padding.1`, a name that torch rejects; they have no tensors."""
    nn.Module.add_module(parent, name.replace(".", "_"), child)


def _merlin(output: int, origin: Origin) -> nn.Module:
    from merlin.models.i3res import I3ResNet

    network = I3ResNet(_backbone2d(origin), class_nb=origin.classes, conv_class=True)
    return called(network, lambda clip: (clip[:, :1].movedim(2, -1),), lambda outputs: outputs[output])


def _for_each_frame(weight: Tensor) -> Tensor:
    """Map `(K, C)` to `(K, T·C)`, which computes the mean of the scores over the remaining frames."""
    return weight.repeat(1, _LEFT) / _LEFT


def _for_all_frames(weight: Tensor) -> Tensor:
    parts = weight.chunk(_LEFT, 1)
    if weight.is_meta or all(torch.equal(part, parts[0]) for part in parts):
        return parts[0] * _LEFT
    raise LayoutError(
        "the classifier weights frames differently, which a mean over time can't express; keep the rest with "
        "{key: tensor for key, tensor in state.items() if not key.startswith('classifier')}"
    )


def _convolutional(head: str, **rest: Any) -> Format:
    """Return the files of a network whose head, called `head`, is a convolution."""
    return Format((("fc", head), *SAME), {"fc.weight": CONVOLUTION}, **rest)


_HEADS = ("classifier.*", "contrastive_head.*")

FRAMEWORK = Framework(
    "i3resnet",
    source="github.com/hassony2/inflated_convnets_pytorch, src; github.com/StanfordMIMI/Merlin, merlin/models/i3res.py",
    targets=(
        Target(
            "i3resnet",
            RESNETS,
            preset("resnet"),
            _resnet,
            "src.i3res.I3ResNet(torchvision.models.{name}(), class_nb={classes})",
        ),
        Target(
            "conv_class",
            RESNETS,
            preset("resnet"),
            partial(_resnet, conv_class=True),
            "src.i3res.I3ResNet(torchvision.models.{name}(), class_nb={classes}, conv_class=True)",
            format=_convolutional("classifier"),
        ),
        Target(
            "i3densenet",
            DENSENETS,
            preset("densenet"),
            _densenet,
            f"src.i3dense.I3DenseNet(torchvision.models.{{name}}(), {FRAMES}, inflate_block_convs=True)",
            f"for clips of {FRAMES} frames of 224×224; torch rejects the script's module name 'padding.1', "
            "rename it to 'padding_1'",
            format=Format(conversions={"classifier.weight": Conversion(_for_each_frame, _for_all_frames)}),
            style=Style(padding="replicate"),
            frames=FRAMES,
        ),
        *(
            Target(
                name,
                RESNETS,
                preset("resnet"),
                partial(_merlin, output),
                "merlin.models.i3res.I3ResNet(torchvision.models.{name}(), class_nb={classes}, conv_class=True)",
                "this is one of Merlin's two heads; the input is one channel repeated three times",
                format=_convolutional(head, others=other, needs=_HEADS, preprocessing=_VOLUMES),
                read_only="it has two heads; i3resnet:conv_class is the same network with only the classifier",
            )
            for name, output, head, other in (
                ("merlin", 1, "classifier", "contrastive_head.*"),
                ("merlin_contrastive", 0, "contrastive_head", "classifier.*"),
            )
        ),
    ),
    suffix=".pth",
    inside="i3_resnet.",
    install="PYTHONPATH=inflated_convnets_pytorch (or PYTHONPATH=Merlin)",
)
