"""A network in memory whose name is found: its file needs no module, and a wrong name is never taken."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import i3dconvert
from i3dconvert import checkpoint, inflate, save
from i3dconvert.backbones.recognised import recognised
from tests.conftest import Run

NETS = """
import torch
from torch import nn

class Home(nn.Module):
    def __init__(self, classes=7, slope=0.1):
        super().__init__()
        self.conv, self.head, self.act = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, classes), nn.LeakyReLU(slope)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)))

class Needy(Home):
    def __init__(self, classes):
        super().__init__(classes)

def seeded():
    torch.manual_seed(0)
    return Home(4)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("homes.py").write_text(NETS)
    yield importlib.import_module("homes")
    del sys.modules["homes"]


def name_of(model: nn.Module) -> str:
    found = recognised(model.eval(), "default", 0, (3, 32, 32))
    return found.backbone.qualified if found is not None else ""


def test_librarys_networks() -> None:
    assert name_of(torchvision.models.resnet18(num_classes=5)) == "resnet18"
    assert name_of(timm.create_model("test_resnet.r160_in1k", num_classes=3)) == "timm/test_resnet"


def test_a_network_that_was_changed_is_not_recognised() -> None:
    """In its settings, its hooks, its forward pass, its modules."""
    stride, hooked, other, longer = (torchvision.models.resnet18() for _ in range(4))
    stride.layer3[0].conv1.stride = (1, 1)
    hooked.layer1.register_forward_hook(lambda module, given, output: output * 2)
    other.forward = lambda x: other.fc(other.conv1(x).mean((2, 3)).repeat(1, 8))
    longer.fc = nn.Sequential(nn.Linear(512, 5))
    assert not any(map(name_of, (stride, hooked, other, longer)))
    assert not name_of(timm.create_model("test_resnet", drop_path_rate=0.1))


def test_a_name_that_its_library_does_not_have_is_no_error() -> None:
    model = timm.create_model("test_resnet")
    for said in ("no_such_network", None):
        model.pretrained_cfg = {"architecture": said}
        assert not name_of(model)


def test_a_users_own_by_its_function_or_class(nets: ModuleType) -> None:
    assert name_of(nets.Home()).endswith("homes.py:Home")
    assert not name_of(nets.Home(slope=0.2))
    assert not name_of(nets.Needy(3))
    network = inflate(nets.seeded, size=16)
    save(network, "net.safetensors")
    origin = checkpoint.read(Path("net.safetensors"))[0].origin
    assert origin is not None
    assert (origin.backbone.qualified.rpartition("/")[2], origin.classes) == ("homes.py:seeded", 4)
    clip = torch.randn(1, 3, 2, 16, 16)
    with torch.no_grad():
        assert torch.equal(network.eval()(clip), i3dconvert.load("net.safetensors")(clip))


def test_the_random_numbers_of_a_user_stay_as_they_are(nets: ModuleType) -> None:
    model = nets.Home()
    state = torch.random.get_rng_state()
    assert name_of(model)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_its_trained_file_works_on_the_command_line(nets: ModuleType, run: Run) -> None:
    network = inflate(nets.Home(), size=16, num_classes=3, in_channels=1)
    with torch.no_grad():
        network.conv.weight.add_(0.01)
    save(network, "net.safetensors", classes=["cat", "dog", "cow"])
    done = run("verify", "net.safetensors")
    assert (done.code, "trained: 1 of 2 kernels moved" in done.out) == (0, True), done.err
    assert run("inspect", "net.safetensors").code == 0
    assert i3dconvert.load("net.safetensors").preprocessing(torch.zeros(2, 20, 20, 3).byte()).shape == (1, 2, 16, 16)


def test_its_untrained_file_names_the_state_dict_that_proves_it(run: Run, tmp_path: Path) -> None:
    model: nn.Module = torchvision.models.resnet18()
    save(inflate(model, size=32), tmp_path / "net.safetensors")
    torch.save(model.state_dict(), tmp_path / "net.pth")
    done = run("verify", tmp_path / "net.safetensors")
    assert (done.code, "--reference PATH" in done.err) == (1, True)
    done = run("verify", tmp_path / "net.safetensors", "--reference", tmp_path / "net.pth", "--size", "32")
    assert done.code == 0, done.err
    torch.save({k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}, tmp_path / "net.pth")
    done = run("verify", tmp_path / "net.safetensors", "--reference", tmp_path / "net.pth")
    assert (done.code, "are not those that were inflated" in done.err) == (1, True)


def test_a_function_that_builds_no_network_is_refused() -> None:
    def nothing() -> Tensor:
        return torch.zeros(1)

    with pytest.raises(i3dconvert.errors.BackboneError, match="returned Tensor, not a"):
        inflate(nothing)  # type: ignore[arg-type]
