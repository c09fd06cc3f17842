"""3D-ResNets-PyTorch (Hara et al., arXiv:1711.09577): `generate_model` with shortcut B; and MedicalNet."""

from __future__ import annotations

from torch import nn

from i3dconvert.backbones import Changes, Origin
from i3dconvert.frameworks.framework import Format, Framework, Target, called
from i3dconvert.frameworks.resnets import RESNETS
from i3dconvert.recipes import Recipe, Rule, preset
from i3dconvert.video.preprocessing import Preprocessing

_R3D = Recipe(
    "3d-resnets",
    (*preset("volumetric").rules, Rule("conv1", stride=1)),
    source="github.com/kenshohara/3D-ResNets-PyTorch, models/resnet.py, conv1_t_stride 1",
)
_PREPROCESSING = Preprocessing(112, 112, (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))


def _generate(origin: Origin) -> nn.Module:
    from models.resnet import generate_model

    sizes = {"n_input_channels": origin.input[0], "n_classes": origin.classes}
    return generate_model(origin.backbone.depth, shortcut_type="B", **sizes)


def _medicalnet(origin: Origin) -> nn.Module:
    from models import resnet

    sizes = {"sample_input_D": 16, "sample_input_H": 112, "sample_input_W": 112, "num_seg_classes": 1}
    network: nn.Module = getattr(resnet, origin.backbone.name)(**sizes, no_cuda=True)
    network.conv_seg = nn.Identity()  # its decoder
    return called(network, gives=lambda maps: maps.mean((2, 3, 4)))


FRAMEWORK = Framework(
    "3d-resnets",
    source="github.com/kenshohara/3D-ResNets-PyTorch, models/resnet.py",
    targets=(
        Target(
            "resnet",
            RESNETS,
            _R3D,
            _generate,
            "models.resnet.generate_model(model_depth={depth}, n_input_channels={channels}, n_classes={classes}, "
            "shortcut_type='B')",
        ),
        Target(
            "medicalnet",
            RESNETS,
            preset("volumetric"),
            _medicalnet,
            "MedicalNet's generate_model(opt) with model_depth {depth}, resnet_shortcut B",
            note="MedicalNet takes one channel (--in-channels 1) and dilates its last two stages instead of using "
            "strides: it equals the 2D network with these changes",
            format=Format(others="conv_seg.*", preprocessing=_PREPROCESSING),
            headless=True,
            structure=Changes(dilated="layer3=2,layer4=4"),
        ),
    ),
    format=Format(preprocessing=_PREPROCESSING),
    suffix=".pth",
    nest="state_dict",
    install="put a clone of the repository on PYTHONPATH",
)
