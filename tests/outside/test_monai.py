"""MONAI's 2D networks, inflated for the same class over volumes: `--layout monai:UNet` and its like."""

from pathlib import Path

import pytest
import torch
from torch import nn

from i3dconvert import inflate
from i3dconvert.comparison.forward import check_outputs, evaluating, outputs
from i3dconvert.weights import randomise, read_state
from tests.conftest import Run
from tools.outside import CATALOGUE, monai

CODE = """
import torch
from monai.networks import nets

def unet(spatial_dims=2):
    torch.manual_seed(0)
    return nets.UNet(spatial_dims, 1, 2, (8, 16, 32), (2, 2), num_res_units=2)

def flat():
    torch.manual_seed(0)
    return nets.UNet(2, 1, 2, (8, 16, 32), (2, 2))
"""

SAME_FUNCTION = "UNet UNet-residual BasicUNet SegResNet DynUNet AttentionUnet HighResNet AutoEncoder".split()
"""Equal on moving clips too: inflating commutes with building the network in 3D."""


@pytest.mark.parametrize("name", SAME_FUNCTION)
def test_the_3d_class_loads_them_and_is_the_inflated_network(name: str) -> None:
    model, shape = monai(name).eval(), CATALOGUE[f"monai/{name}"].shape
    randomise(model, 0, shape)
    network = inflate(model, "volumetric", size=shape[-1])
    theirs = monai(name, dimensions=3).eval()
    theirs.load_state_dict(network.state_dict(), strict=True)
    volume = torch.randn(1, shape[0], 16, *shape[1:], dtype=torch.float64)
    with evaluating(network, torch.float64), evaluating(theirs, torch.float64), evaluating(model, torch.float64):
        check = check_outputs(name, outputs(network(volume)), outputs(theirs(volume)), 1e-12)
        assert check.passed, check.detail
        still = outputs(theirs(volume[:, :, :1].expand_as(volume)))
        assert check_outputs(name, outputs(model(volume[:, :, 0])), still, 1e-12).passed


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(CODE)
    return path


def test_by_command(run: Run, code: Path) -> None:
    from monai.networks import nets

    done = run("inflate", "nets.py:unet", "-s", 64, "-w", "random", "--layout", "monai:UNet", "-o", "unet.safetensors")
    assert done.code == 0, done.err
    assert "for monai's UNet:" in done.out
    theirs: nn.Module = nets.UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=2)
    theirs.load_state_dict(read_state(Path("unet.safetensors")), strict=True)
    done = run("verify", "unet.safetensors", "--layout", "monai:UNet", "-f", 16)
    assert done.code == 0, done.err
    assert "forward equality of monai's UNet, float64" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nets.py:unet", "--layout", "monai"), "choose the network of monai for nets.py:unet"),
        (("nets.py:unet", "--layout", "monai:SegResNet"), "builds monai.networks.nets.unet.UNet, not"),
        (("nets.py:unet", "--layout", "monai:UNet", "-r", "c2d"), "differs in model.0"),
        (("nets.py:unet", "--layout", "slowfast"), "no 3D form of nets.py:unet"),
        (("resnet18", "--layout", "monai:UNet"), "no network 'UNet' that is a 3D form of resnet18"),
    ],
)
def test_what_does_not_fit_is_refused(run: Run, code: Path, words: tuple[str, ...], message: str) -> None:
    done = run("inflate", *words, "-s", 64, "-w", "random", "-o", "out.safetensors")
    assert done.code == 1
    assert message in done.err
    assert not Path("out.safetensors").exists()


def test_a_function_without_volumes_is_told_how(run: Run, code: Path) -> None:
    assert run("inflate", "nets.py:flat", "-s", 64, "--layout", "monai:UNet", "-o", "flat.safetensors").code == 0
    assert run("verify", "flat.safetensors", "-f", 16).code == 0
    done = run("verify", "flat.safetensors", "--layout", "monai:UNet")
    assert done.code == 1
    assert "let flat(spatial_dims=2) build the 2D network" in done.err


def test_a_checkpoint_of_theirs_is_read_in_python(run: Run, code: Path) -> None:
    torch.save({"a.weight": torch.zeros(1)}, "theirs.pth")
    done = run("inspect", "theirs.pth", "--from-layout", "monai:UNet")
    assert done.code == 1
    assert "inflate(model2d, 'volumetric').load_state_dict" in done.err
