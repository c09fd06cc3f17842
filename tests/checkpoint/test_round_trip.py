"""A network that was trained, its head exchanged, comes back from its file; what no file can keep is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import parametrizations

import i3dconvert
from i3dconvert.checkpoint import read
from i3dconvert.checkpoint.present import class_names, document_of, name_classes
from i3dconvert.classification import classify, classify_live, load_classifier, load_live
from i3dconvert.errors import CheckpointError, ClassesError, OutputError
from i3dconvert.lift.network import Network3d
from i3dconvert.lift.seals import moved, sealed
from i3dconvert.verification import Settings, verify_file
from tests.conftest import Run


class Small(nn.Sequential):
    """A convolution, a norm, a head."""

    def __init__(self) -> None:
        norm = nn.BatchNorm2d(6)
        super().__init__(
            nn.Conv2d(3, 6, 3, 2, 1), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        )


CLIP = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FACTORY = (
    "from torch import nn\n"
    "def small():\n"
    "    layers = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
    "    return nn.Sequential(*layers, nn.Linear(6, 4))\n"
)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network3d:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("nets.py").write_text(FACTORY)
    return i3dconvert.inflate("nets.py:small", weights="random", size=16)


def trained(network: Network3d) -> Network3d:
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network(CLIP).square().sum().backward()
    optimizer.step()
    return network.eval()


HEADS = {
    "linear": lambda: nn.Linear(6, 7, bias=False),
    "identity": nn.Identity,
    "layers": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 3)),
    "nested": lambda: nn.Sequential(nn.LayerNorm(6), nn.Sequential(nn.PReLU(), nn.Linear(6, 2))),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_heads_of_torchs_own_layers_come_back(network: Network3d, head: str, suffix: str) -> None:
    torch.manual_seed(0)
    network[5] = HEADS[head]()
    network = trained(network)
    i3dconvert.save(network, f"net{suffix}")
    again = i3dconvert.load(f"net{suffix}")
    assert torch.equal(again(CLIP), network(CLIP))
    assert repr(again[5]) == repr(network[5])
    outputs = network(CLIP).shape[1]
    assert i3dconvert.origin_of(again).classes == (0 if head == "identity" else outputs)
    i3dconvert.save(again, f"again{suffix}")
    assert torch.equal(i3dconvert.load(f"again{suffix}")(CLIP), network(CLIP))


def weight_normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(6, 7))


NAMED = "class Named(nn.Sequential):\n    def forward(self, x):\n        return {'out': super().forward(x)}\n"


@pytest.mark.parametrize("stepwise", [False, True])
def test_scores_in_a_dict_are_scores(network: Network3d, stepwise: bool) -> None:
    Path("named.py").write_text(FACTORY.replace("return nn.Sequential", "return Named") + NAMED)
    named = i3dconvert.inflate("named.py:small", weights="random", size=16)
    for one in (named, network):
        setattr(one, "5", nn.Linear(6, 3))
    named.load_state_dict(network.state_dict())
    for one, path in ((named, "named.safetensors"), (network, "plain.safetensors")):
        i3dconvert.save(one.eval(), path, classes=["a", "b", "c"])
    Image.effect_noise((20, 20), 90).convert("RGB").save("noise.png")
    seen = [_classes(path, stepwise) for path in ("named.safetensors", "plain.safetensors")]
    assert seen[0] == seen[1]
    assert {name for name, _ in seen[0]} == {"a", "b", "c"}


def _classes(path: str, stepwise: bool) -> Sequence[tuple[str, float]]:
    if stepwise:
        return [*classify_live(load_live(path), Path("noise.png"))][-1].best
    return [*classify(load_classifier(path), Path("noise.png"))][-1].best


class Mine(nn.Linear):
    """Somebody's."""


def other_tensors() -> nn.Module:
    layer = nn.Linear(6, 7)
    layer.register_buffer("mask", torch.ones(7))
    return layer


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (weight_normed, "5 is a .*ParametrizedLinear.*remove_parametrizations"),
        (lambda: Mine(6, 7), r"5 is a .*\.Mine, which a file can't store: a file can store layers of torch\.nn"),
        (other_tensors, "5 is a Linear with foreign tensors"),
        (lambda: nn.Sequential(nn.ReLU(), Mine(6, 7)), r"5\.1 is a .*\.Mine"),
        (lambda: nn.Linear(5, 7), "the network does not run with the module at 5"),
    ],
)
def test_what_no_file_can_keep_is_refused_by_name(network: Network3d, head: type[nn.Module], said: str) -> None:
    network[5] = head()
    with pytest.raises(CheckpointError, match=said):
        i3dconvert.save(network, "net.safetensors")
    with pytest.raises(CheckpointError, match=said):
        network.save_pretrained("folder")
    assert not Path("net.safetensors").exists()


def test_a_cut_network_and_one_that_is_none_are_refused(network: Network3d) -> None:
    with pytest.raises(
        CheckpointError, match=r"Sequential is not an inflated network: save the network inside it, \.0"
    ):
        i3dconvert.save(nn.Sequential(network), "net.safetensors")
    del network._modules["5"]
    with pytest.raises(CheckpointError, match="5 was removed from the network"):
        i3dconvert.save(network, "net.safetensors")


def test_nothing_unreadable_is_put_in_place(network: Network3d, monkeypatch: pytest.MonkeyPatch) -> None:
    network[5] = nn.Linear(6, 7)
    monkeypatch.setattr("i3dconvert.checkpoint.reading.put", lambda network, forms: network.add_module("5", nn.ReLU()))
    with pytest.raises(CheckpointError, match="can't be built again from its file"):
        i3dconvert.save(network, "net.safetensors")
    assert not list(Path().glob("*net*safetensors*"))


def test_a_network_is_saved_out_of_its_wrappers(network: Network3d) -> None:
    average = torch.optim.swa_utils.AveragedModel(network)
    i3dconvert.save(average, "net.safetensors")
    assert torch.equal(i3dconvert.load("net.safetensors")(CLIP), network(CLIP))


def test_training_is_seen(network: Network3d) -> None:
    i3dconvert.save(network, "plain.safetensors")
    assert not read(Path("plain.safetensors"))[0].finetuned
    i3dconvert.save(trained(copy.deepcopy(network)), "all.safetensors")
    document = read(Path("all.safetensors"))[0]
    assert document.finetuned
    assert str(document.trained) == "2 of 2 kernels moved"
    with torch.no_grad():
        network[1].bias.add_(1)
    i3dconvert.save(network, "bias.safetensors")
    assert str(read(Path("bias.safetensors"))[0].trained) == "0 of 2 kernels moved, and 1 other tensors"
    again = i3dconvert.load("bias.safetensors")  # and what had moved before it was read is remembered
    with torch.no_grad():
        again[0].weight.add_(1)
    i3dconvert.save(again, "both.safetensors")
    assert read(Path("both.safetensors"))[0].trained.keys == {"0.weight", "1.bias"}  # type: ignore[union-attr]


def test_lists_of_parameters_are_kept_in_another_dtype(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.by_name = nn.ParameterDict({"scale": nn.Parameter(torch.rand(4))})
            self.listed = nn.ParameterList([nn.Parameter(torch.rand(4))])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.conv(x) * (self.by_name["scale"] * self.listed[0]).reshape(-1, 1, 1)).mean((2, 3))

    network = i3dconvert.inflate(Scaled(), size=16).eval().double()
    i3dconvert.save(network, tmp_path / "net.safetensors")
    with torch.no_grad():
        expected = network(CLIP.double())
        assert torch.equal(i3dconvert.load(tmp_path / "net.safetensors", Scaled()).double()(CLIP.double()), expected)


def test_a_user_may_say_that_it_is_trained(network: Network3d) -> None:
    assert document_of(network, finetuned=True).finetuned
    assert not document_of(network).finetuned


def test_classes_are_named_or_left_as_they_are(network: Network3d) -> None:
    name_classes(network, None)
    assert class_names(network) == []
    name_classes(network, ["a", "b", "c", "d"])
    name_classes(network, None)
    assert class_names(network) == ["a", "b", "c", "d"]


def test_tensors_begin_at_a_multiple_of_eight_bytes(network: Network3d) -> None:
    for length in range(8):
        i3dconvert.save(network, "net.safetensors", force=True, classes=["a" * (length + 1), "b", "c", "d"])
        assert int.from_bytes(Path("net.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_maps_have_no_classes() -> None:
    with pytest.raises(ClassesError, match="2 class names are given; the network has 0 classes"):
        document_of(i3dconvert.inflate(nn.Sequential(nn.Conv2d(3, 2, 3)), size=8), classes=["a", "b"])


def test_a_cast_is_no_training(network: Network3d) -> None:
    i3dconvert.save(network.half(), "half.safetensors")
    assert not read(Path("half.safetensors"))[0].finetuned
    seals = sealed({"a": torch.ones(4), "b": torch.arange(4)})
    assert moved({"a": torch.full((4,), 2.0), "b": torch.arange(4)}, seals) == {"a"}  # whose bits cancel out
    assert moved({"a": torch.ones(2, 2), "b": torch.arange(4), "c": torch.ones(1)}, seals) == {"a", "c"}


@pytest.mark.parametrize(("damage", "said"), [("", ""), ("tensors", "tensors changed")])
def test_verify_says_what_is_left_to_prove(network: Network3d, damage: str, said: str) -> None:
    i3dconvert.save(trained(network), "net.safetensors")
    if damage:
        data = bytearray(Path("net.safetensors").read_bytes())
        data[-1] ^= 1
        Path("net.safetensors").write_bytes(data)
    report = verify_file(Path("net.safetensors"), Settings())
    assert report.trained == "trained: 2 of 2 kernels moved; equality with the 2D network no longer applies"
    assert report.passed is not bool(damage)
    assert said in report.reason
    if not damage:
        assert [check.name.partition(":")[0] for check in report.checks] == ["integrity", "loads and runs", "exports"]


@pytest.mark.slow
def test_names_of_classes_travel(network: Network3d, run: Run) -> None:
    Image.new("RGB", (20, 20)).save("black.png")
    Path("names.txt").write_text("cat\ndog\n\nfox\nowl\n")
    i3dconvert.save(network, "net.safetensors", classes=["a", "b", "c", "d"])
    assert i3dconvert.class_names(i3dconvert.load("net.safetensors")) == ["a", "b", "c", "d"]
    assert run("export", "net.safetensors", "--hub", "out", "--classes", "names.txt", "-q").code == 0
    config = json.loads(Path("out/config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "fox", "3": "owl"}
    for file in ("out/model.onnx", "out/model.safetensors"):
        shown = json.loads(run("classify", file, "black.png", "--json").out)
        assert {entry["class"] for entry in shown[0]["moments"][0]["best"]} == {"cat", "dog", "fox", "owl"}
    assert " a " in run("classify", "net.safetensors", "black.png").out.replace(":", " ").replace(",", " ")
    with pytest.raises(ClassesError, match="2 class names are given; the network has 4 classes"):
        i3dconvert.save(network, "net.safetensors", force=True, classes=["a", "b"])


def test_a_wrong_suffix_is_refused(network: Network3d, run: Run) -> None:
    for write in (i3dconvert.save, i3dconvert.export_onnx):
        with pytest.raises(OutputError, match=r"use (the|one of the) suffix"):
            write(network, "net.txt")
    assert "one of the suffixes" in run("inflate", "nets.py:small", "-w", "random", "-s", "16", "-o", "net.onnx").err
