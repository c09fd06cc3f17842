"""3D-ResNets-PyTorch and MedicalNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from i3dconvert import load
from i3dconvert.backbones import Changes, Source
from i3dconvert.checkpoint import filled, rebuild
from i3dconvert.checkpoint.adoption import adopt
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LayoutError
from i3dconvert.inflation import Options, inflate_to_file
from i3dconvert.verification import Settings, verify_file
from i3dconvert.weights import read_state
from tests.frameworks.harness import Shapes, norm, quiet_build, shapes


def test_names_and_shapes_of_3d_resnets() -> None:
    wanted: Shapes = {"conv1.weight": (64, 3, 7, 7, 7)} | norm("bn1", 64)
    before = 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            place = f"layer{stage + 1}.{block}"
            wanted |= {f"{place}.conv1.weight": (channels, before, 3, 3, 3)} | norm(f"{place}.bn1", channels)
            wanted |= {f"{place}.conv2.weight": (channels, channels, 3, 3, 3)} | norm(f"{place}.bn2", channels)
            if before != channels:
                wanted |= {f"{place}.downsample.0.weight": (channels, before, 1, 1, 1)}
                wanted |= norm(f"{place}.downsample.1", channels)
            before = channels
    wanted |= {"fc.weight": (400, 512), "fc.bias": (400,)}
    assert shapes("3d-resnets", "resnet18") == wanted


@pytest.mark.slow
def test_medicalnet(tmp_path: Path) -> None:
    path, layout = tmp_path / "net.pth", "3d-resnets:medicalnet"
    with pytest.raises(LayoutError, match="--no-head"):
        inflate_to_file(Source("resnet50", weights="random", size=64), path, Options(layout=layout))
    inflate_to_file(
        Source("resnet50", weights="random", size=64, changes=Changes(1, "sum", "none")), path, Options(layout=layout)
    )
    assert verify_file(path, Settings(16, 64, (torch.float64,))).passed
    ours, clip = load(path).requires_grad_(False), torch.randn(1, 1, 16, 64, 64)
    theirs = {**read_state(path), "conv_seg.0.weight": torch.zeros(3, 2, 2, 2, 2)}
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in theirs.items()}}, tmp_path / "theirs.pth")
    document, state = adopt(tmp_path / "theirs.pth", layout)
    assert document.origin is not None
    again = filled(rebuild(document, document.origin.build()), state, path).eval().requires_grad_(False)
    assert torch.equal(ours(clip), again(clip))
    dilated = again.get_submodule("layer4.1.conv2")
    assert isinstance(dilated, nn.Conv3d)
    assert (dilated.stride, dilated.dilation, dilated.padding) == ((1, 1, 1), (4, 4, 4), (4, 4, 4))
    network = quiet_build(layout, document.origin)
    network.load_state_dict(read_state(path), strict=True)
    assert relative_error(network(clip), ours(clip)) <= 1e-5
    assert verify_file(path, Settings(16, 64, (torch.float64,)), layout=layout).passed


@pytest.mark.slow
@pytest.mark.slow
def test_a_grey_checkpoint_without_a_head(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    changes = Changes(1, "sum", "none")
    inflate_to_file(Source("resnet18", weights="random", size=32, changes=changes), path, Options(layout="3d-resnets"))
    bare = {f"module.{key}": tensor.clone() for key, tensor in read_state(path).items()}
    torch.save({"state_dict": bare}, tmp_path / "theirs.pth")
    with pytest.raises(LayoutError, match="3d-resnets:resnet and 3d-resnets:medicalnet, which have the same tensors"):
        adopt(tmp_path / "theirs.pth", "3d-resnets")
    document, state = adopt(tmp_path / "theirs.pth", "3d-resnets:resnet")
    assert document.origin is not None
    assert document.origin.input[0] == 1
    ours, own = filled(rebuild(document, document.origin.build()), state, path).eval(), load(path).eval()
    clip = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        assert ours(clip).shape == (1, 512)
        assert torch.equal(ours(clip), own(clip))
