"""Files made from a module in memory: `--model` names the 2D network, on every command that needs it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from i3dconvert import from_pretrained, inflate, load, origin_of, save
from i3dconvert.checkpoint import read
from i3dconvert.errors import CheckpointError, WeightsError
from i3dconvert.weights import digest
from tests.conftest import Run

CODE = """
import torch
from torch import nn

class Wide(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))

def network():
    torch.manual_seed(0)
    return Wide(8)

built = network()
tensors = built.state_dict()
"""


@pytest.fixture
def module(tmp_path: Path) -> nn.Module:
    (tmp_path / "nets.py").write_text(CODE)
    names: dict[str, object] = {}
    exec(CODE, names)
    found = names["built"]
    assert isinstance(found, nn.Module)
    return found


def test_every_command_takes_the_model(module: nn.Module, tmp_path: Path, run: Run) -> None:
    save(inflate(module, num_classes=3, in_channels=1, size=32), tmp_path / "net.safetensors", classes=["a", "b", "c"])
    for command in ("verify", "export --safetensors -o x.safetensors", "classify"):
        words = command.split()
        refused = run(words[0], "net.safetensors", *words[1:], *(["nets.py"] if command == "classify" else []))
        assert refused.code == 1
        assert "--model PATH.py:NAME" in refused.err
    assert "equals its 2D network" in run("verify", "net.safetensors", "--model", "nets.py:network").out
    assert "equals its 2D network" in run("report", "net.safetensors", "--model", "nets.py:built").out
    assert "conv" in run("inspect", "net.safetensors", "--model", "nets.py:built").out.lower()
    done = run("export", "net.safetensors", "--safetensors", "-o", "named.safetensors", "--model", "nets.py:built")
    assert done.code == 0
    # The new file names its network, so a colleague needs no option, and gets the same scores and classes.
    clip = torch.randn(1, 1, 4, 32, 32)
    assert torch.equal(load(tmp_path / "named.safetensors")(clip), load("net.safetensors", "nets.py:network")(clip))
    assert run("verify", "named.safetensors").code == 0
    with pytest.raises(CheckpointError, match="omit --model"):
        load("named.safetensors", "nets.py:network")


def test_another_network_is_not_equal(module: nn.Module, tmp_path: Path, run: Run) -> None:
    save(inflate(module, size=32), tmp_path / "net.safetensors")
    (tmp_path / "nets.py").write_text(CODE.replace("manual_seed(0)", "manual_seed(1)"))
    done = run("verify", "net.safetensors", "--model", "nets.py:network")
    assert done.code == 1
    assert "weight identity" in done.err
    done = run("classify", "net.safetensors", "nets.py", "--model", "torchvision/resnet18")
    assert (done.code, len(done.err) < 500) == (1, True)
    assert '"bn1.bias", …' in done.err


def test_a_new_file_names_the_weights_that_were_inflated(module: nn.Module, tmp_path: Path, run: Run) -> None:
    save(inflate(module, size=32), tmp_path / "net.safetensors")
    written = "net.safetensors", "--safetensors", "--model", "nets.py:network", "-o"
    assert run("export", *written, "same.safetensors").err == ""
    assert read(tmp_path / "same.safetensors")[0].origin.weights.sha256 == digest(module.state_dict())
    (tmp_path / "nets.py").write_text(CODE.replace("manual_seed(0)", "manual_seed(1)"))
    done = run("export", *written, "other.safetensors")
    assert (done.code, "nets.py:network builds other weights than those in net.safetensors" in done.err) == (0, True)
    assert "of a module in memory" in str(read(tmp_path / "other.safetensors")[0].origin.weights)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    assert run("verify", "other.safetensors").code == 1
    assert run("verify", "other.safetensors", "--reference", "weights.pth").code == 0


@pytest.mark.parametrize("frozen", [True, False])
def test_a_trained_file_names_the_weights_if_some_are_left(frozen: bool, module: nn.Module, tmp_path: Path) -> None:
    network = inflate(module, size=32)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not (frozen and name == "0.weight"):
                parameter.add_(1)
    save(network, tmp_path / "net.safetensors")
    found = origin_of(load(tmp_path / "net.safetensors", f"{tmp_path}/nets.py:network")).weights
    assert (found.kind, found.sha256) == (("pretrained", digest(module.state_dict())) if frozen else ("memory", ""))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Wide", "needs width; give a function without arguments"),
        ("tensors", "has type OrderedDict; give a function or a torch.nn.Module; -w FILE gives its tensors"),
        ("netwrok", "did you mean network?"),
    ],
)
def test_what_is_no_network_is_said(module: nn.Module, run: Run, name: str, said: str) -> None:
    done = run("inflate", f"nets.py:{name}", "-s", "32")
    assert done.code == 1
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert "nets.py needs the name of its function or module: nets.py:NAME" in run("inflate", "nets.py").err


def test_a_module_in_a_file_is_inflated(module: nn.Module, run: Run) -> None:
    assert run("inflate", "nets.py:built", "-s", "32", "-o", "net.safetensors", "-q").code == 0
    assert run("verify", "net.safetensors", "-q").code == 0


def test_weights_that_change_at_each_run_are_explained(module: nn.Module, tmp_path: Path, run: Run) -> None:
    (tmp_path / "nets.py").write_text(CODE.replace("torch.manual_seed(0)", "torch.seed()"))
    assert run("inflate", "nets.py:network", "-s", "32", "-o", "net.safetensors", "-q").code == 0
    assert "let it load a file or call torch.manual_seed" in run("verify", "net.safetensors").err


def test_adapters_alone_are_no_network(module: nn.Module, tmp_path: Path, run: Run) -> None:
    save(inflate(module, size=32), tmp_path / "net.safetensors")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/adapter_config.json").write_text('{"peft_type": "LORA"}')
    adapters = {f"base_model.model.0.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    save_file(adapters, tmp_path / "tuned/adapter_model.safetensors")
    save_file(module.state_dict() | adapters, tmp_path / "both.safetensors")
    for words in (
        "verify tuned",
        "inflate hf/tuned",
        "inflate resnet18 -w ./tuned",
        "verify tuned/adapter_model.safetensors",
    ):
        done = run(*words.split())
        assert (done.code, len(done.err.splitlines())) == (1, 1)
        assert "tuned has PEFT's adapters without their network; merge them first" in done.err
    with pytest.raises(CheckpointError, match="merge them first"):
        from_pretrained(tmp_path / "tuned")
    with pytest.raises(WeightsError, match="merge its adapters first"):
        inflate(module, weights=str(tmp_path / "both.safetensors"), size=32)
