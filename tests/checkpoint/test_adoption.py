"""Checkpoints of other frameworks are recognised by the names and shapes of their tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from i3dconvert import backbones
from i3dconvert.checkpoint.adoption import adopt
from i3dconvert.errors import LayoutError
from i3dconvert.frameworks import framework_of
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.planning import plan

Shapes = dict[str, tuple[int, ...]]


def shapes_of(layout: str, classes: int) -> Shapes:
    """Return the shapes of all tensors of a framework's ResNet-18."""
    framework, arguments = framework_of(layout), backbones.library("torchvision").arguments("resnet18", None, classes)
    target = framework.target("resnet18", layout.partition(":")[2])
    model = backbones.build(backbones.Backbone("torchvision", "resnet18", arguments))
    inflation = plan(model, target.recipe, Style(), (3, 64, 64)).inflation
    places = framework.places(target, {key: inflation.shape(key, value) for key, value in model.state_dict().items()})
    return {place.name: place.shape for place in places}


def written(shapes: Shapes, path: Path) -> Path:
    torch.save({"state_dict": {f"module.{key}": torch.zeros(shape) for key, shape in shapes.items()}}, path)
    return path


@pytest.mark.parametrize(("classes", "said"), [(1000, None), (7, 7)])
def test_the_number_of_classes_is_that_of_the_head(classes: int, said: int | None, tmp_path: Path) -> None:
    document, state = adopt(written(shapes_of("3d-resnets", classes), tmp_path / "net.pth"), "3d-resnets")
    assert document.origin is not None
    assert (document.origin.classes, document.origin.input[0]) == (classes, 3)
    assert document.origin.backbone == backbones.Backbone.of("torchvision", "resnet18", classes=said)
    assert document.origin.changes.in_init == ""
    assert state["conv1.weight"].shape == (64, 3, 7, 7, 7)


def test_a_grey_network_without_a_head_may_be_of_two_frameworks(tmp_path: Path) -> None:
    shapes = {key: shape for key, shape in shapes_of("3d-resnets", 7).items() if not key.startswith("fc")}
    path = written(shapes | {"conv1.weight": (64, 1, 7, 7, 7)}, tmp_path / "net.pth")
    with pytest.raises(LayoutError, match="3d-resnets:resnet and 3d-resnets:medicalnet, which have the same tensors"):
        adopt(path, "3d-resnets")
    document, _ = adopt(path, "3d-resnets:resnet")
    assert document.origin is not None
    assert (document.origin.input[0], document.origin.classes) == (1, 0)
    assert (document.origin.changes.head, document.origin.changes.in_init) == ("none", "sum")


@pytest.mark.parametrize(
    "other",
    [
        {"conv1.weight": (64, 1, 7, 7, 7), "layer1.0.conv1.weight": (64, 1, 3, 3, 3)},
        {"layer1.0.conv1.weight": (32, 64, 3, 3, 3)},
    ],
    ids=["two", "not of channels"],
)
def test_only_the_channels_of_one_kernel_may_differ(other: Shapes, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="the shapes of no known network"):
        adopt(written(shapes_of("3d-resnets", 7) | other, tmp_path / "net.pth"), "3d-resnets")
