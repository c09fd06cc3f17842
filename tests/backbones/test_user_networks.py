"""Networks of the user's own: built from a file by name, found again, and never run on a stranger's word."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from i3dconvert import load
from i3dconvert.backbones import Source
from i3dconvert.checkpoint import read
from i3dconvert.errors import CheckpointError, WeightsError
from i3dconvert.inflation import Options, inflate_to_file
from i3dconvert.weights import read_state
from tests.conftest import Run

CODE = """
import torch
from pathlib import Path
from parts import block

def small(num_classes=5):
    Path(__file__).with_name("ran").touch()
    torch.manual_seed(0)
    return torch.nn.Sequential(block(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                               torch.nn.Linear(8, num_classes))

def grey():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3))

class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())

    def forward(self, x):
        y = self.backbone(x)
        return y if float(y.max()) > 0.5 else y * 2

def wrong():
    return 3

def failing():
    raise KeyError("no such layer")
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "mine.py").write_text(CODE)
    (folder / "parts.py").write_text("import torch\ndef block(): return torch.nn.Conv2d(3, 8, 3)\n")
    return folder


def test_frames_are_brought_to_the_size_that_a_network_is_read_at(nets: Path) -> None:
    origin = Source(f"{nets / 'mine.py'}:small", "random", size=32).load()[1]
    assert (origin.preprocessing.size, origin.preprocessing.resize) == (32, 37)
    assert len(Source(f"{nets / 'mine.py'}:grey", "random", size=32).load()[1].preprocessing.mean) == 1
    assert Source(f"{nets / 'mine.py'}:small", "random").load()[1].preprocessing.size == 224


@pytest.mark.slow
def test_inflate_verify_export(run: Run, nets: Path) -> None:
    done = run("inflate", "nets/mine.py:small", "-w", "random", "-s", 32, "-o", "nets/small.safetensors")
    assert done.code == 0, done.err
    assert run("verify", "nets/small.safetensors", "-f", 4).code == 0
    assert run("export", "nets/small.safetensors", "--onnx").code == 0
    assert run("verify", "nets/small.onnx", "-f", 4).code == 0
    assert "mine.py:small" in run("inspect", "nets/small.safetensors").out


def test_a_part_of_a_network(run: Run, nets: Path) -> None:
    assert run("inflate", "nets/mine.py:Detector.backbone", "-s", 32, "-o", "part.safetensors").code == 0
    assert run("verify", "part.safetensors").code == 0
    assert set(read_state(Path("part.safetensors"))) == {"0.weight", "0.bias"}


def test_weights_as_the_factory_leaves_them(run: Run, nets: Path) -> None:
    assert run("inflate", "nets/mine.py:grey", "-s", 32).code == 0
    torch.manual_seed(0)
    expected = nn.Conv2d(1, 8, 3).weight
    assert torch.equal(load("grey-i3d.safetensors").state_dict()["0.weight"].sum(2), expected)
    assert run("verify", "grey-i3d.safetensors", "-f", 4).code == 0


def test_weights_of_another_class_count(run: Run, nets: Path) -> None:
    torch.manual_seed(1)
    state = {"0.weight": torch.randn(8, 3, 3, 3), "0.bias": torch.randn(8)}
    state |= {"3.weight": torch.randn(7, 8), "3.bias": torch.randn(7)}
    torch.save(state, "seven.pth")
    assert run("inflate", "nets/mine.py:small", "-w", "seven.pth", "-s", 32).code == 0
    assert run("verify", "small-i3d.safetensors", "-f", 4).code == 0
    assert load("small-i3d.safetensors")(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 7)


def test_a_checkpoint_from_elsewhere_runs_nothing(run: Run, nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("inflate", "nets/mine.py:small", "-s", 32, "-o", "net.safetensors").code == 0
    (nets / "ran").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(nets / "another user's"))
    for words in (("verify",), ("inspect",), ("export", "--onnx")):
        refused = run(*words)
        assert refused.code == 1
        assert "i3dconvert trust" in refused.err
    with pytest.raises(CheckpointError, match="if you trust its code"):
        load("net.safetensors")
    assert not (nets / "ran").exists()
    assert run("trust", "nets/mine.py").code == 0
    assert run("verify", "-f", 4).code == 0
    (nets / "ran").unlink()
    (nets / "mine.py").write_text(CODE + "\n# changed\n")
    assert "has changed" in run("verify").err
    assert not (nets / "ran").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nets/none.py:small", "No such file"),
        ("nets/mine.py:absent", "has no function 'absent'"),
        ("nets/mine.py:wrong", "returned int, not a torch.nn.Module"),
        ("nets/mine.py:failing", "failed: KeyError: 'no such layer'"),
        ("nets/mine.py:Detector", "inflate(model.backbone), or FILE.py:NAME.backbone as the network of a command"),
        ("nets/mine.py:Detector.neck", "the Detector has no module 'neck'; it has backbone"),
        ("nets/broken.py:f", "broken.py failed: SyntaxError"),
        ("nets/exits.py:f", "exits.py failed: SystemExit"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(run: Run, nets: Path, name: str, words: str) -> None:
    (nets / "broken.py").write_text("def f(:")
    (nets / "exits.py").write_text("raise SystemExit(0)")
    done = run("inflate", name, "-o", "out.safetensors")
    assert done.code == 1
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not Path("out.safetensors").exists()


class TestShards:
    """Checkpoints in several safetensors files."""

    @pytest.fixture
    def index(self, tmp_path: Path) -> Path:
        model, _ = Source("resnet18", "random", seed=5).load()
        state = model.state_dict()
        keys = sorted(state)
        halves = {"model-1.safetensors": keys[::2], "model-2.safetensors": keys[1::2]}
        for file, part in halves.items():
            save_file({key: state[key] for key in part}, tmp_path / file)
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {key: file for file, part in halves.items() for key in part}}))
        return path

    def test_inflate_and_verify(self, run: Run, index: Path) -> None:
        assert run("inflate", "resnet18", "-w", index).code == 0
        assert run("verify", "resnet18-i3d.safetensors", "-f", 2, "-s", 64).code == 0
        (index.parent / "model-2.safetensors").rename(index.parent / "moved.safetensors")
        assert "model-2.safetensors, which does not exist" in run("verify", "resnet18-i3d.safetensors").err

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("<html>", "not a readable safetensors index"),
            ("[]", "not a readable safetensors index"),
            ('{"weight_map": {"a": "../model-1.safetensors"}}', "not a file beside it"),
            ('{"weight_map": {"a": "/etc/passwd"}}', "not a file beside it"),
            ('{"weight_map": {"a": "none.safetensors"}}', "does not exist"),
            ('{"weight_map": {"a": "model-1.safetensors"}}', r"1 missing key \(a\)"),
            ('{"weight_map": {}}', "holds no state dict"),
        ],
    )
    def test_bad_indices_are_refused(self, index: Path, text: str, words: str) -> None:
        index.write_text(text)
        with pytest.raises(WeightsError, match=words):
            read_state(index)


def test_mapped_weights_that_the_function_changed_stay_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.save({"0.weight": torch.ones(1024, 1024, 3, 3), "0.bias": torch.ones(1024)}, tmp_path / "own.pth")
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n"
        f"    state = torch.load({str(tmp_path / 'own.pth')!r}, mmap=True)\n"
        "    state['0.weight'].mul_(2)\n"
        "    network = nn.Sequential(nn.Conv2d(1024, 1024, 3, device='meta'))\n"
        "    network.load_state_dict(state, assign=True)\n"
        "    return network\n"
    )
    path = tmp_path / "net.safetensors"
    inflate_to_file(Source(f"{tmp_path / 'nets.py'}:net", size=8), path, Options("c2d"))
    assert bool((read(path)[1]["0.weight"] == 2).all())
