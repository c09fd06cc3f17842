"""Other frameworks' 3D networks: a table of names for each, applied both ways."""

from __future__ import annotations

from i3dconvert.errors import LayoutError
from i3dconvert.frameworks.framework import Framework, Target, check_fits, how_to_load
from i3dconvert.frameworks.i3resnet import I3RESNET
from i3dconvert.frameworks.mmaction2 import MMACTION2
from i3dconvert.frameworks.monai import MONAI
from i3dconvert.frameworks.pytorch_i3d import PYTORCH_I3D
from i3dconvert.frameworks.pytorchvideo import PYTORCHVIDEO
from i3dconvert.frameworks.resnets3d import RESNETS3D
from i3dconvert.frameworks.slowfast import SLOWFAST
from i3dconvert.frameworks.timm3d import TIMM3D
from i3dconvert.frameworks.torchvision import TORCHVISION_VIDEO
from i3dconvert.frameworks.transformers import TRANSFORMERS

__all__ = ["FRAMEWORKS", "Framework", "Target", "check_fits", "framework", "how_to_load", "split"]

FRAMEWORKS = {
    known.name: known
    for known in (
        *(I3RESNET, PYTORCHVIDEO, SLOWFAST, MMACTION2, RESNETS3D, MONAI),
        *(TORCHVISION_VIDEO, TRANSFORMERS, PYTORCH_I3D, TIMM3D),
    )
}


def framework(layout: str) -> Framework:
    """The framework that a layout names, `NAME` or `NAME:NETWORK`; raises `LayoutError`."""
    name = split(layout)[0]
    if name not in FRAMEWORKS:
        raise LayoutError(f"no layout {name!r}; known: {', '.join(FRAMEWORKS)}")
    return FRAMEWORKS[name]


def split(layout: str) -> tuple[str, str]:
    """`pytorchvideo:i3d_r50` → the framework's name and the network's, which may be left out."""
    name, _, network = layout.partition(":")
    return name, network
