"""Weights from the Hugging Face hub by name: timm's own resolver, on a cache laid out as the hub client leaves it."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from timm.models import save_for_hf

from i3dconvert.backbones import Source
from i3dconvert.errors import WeightsError
from i3dconvert.weights import randomise
from tests.conftest import Run

COMMIT = "0" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds `someone/small`, a timm ResNet-18 with seven classes."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--someone--small"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    model = timm.create_model("resnet18", num_classes=7)
    randomise(model, 3, (3, 64, 64))
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "num_classes": 7}
    save_for_hf(model, snapshot, safe_serialization=True)
    return snapshot


@pytest.mark.slow
def test_inflate_and_verify(run: Run, hub: Path) -> None:
    done = run("inflate", "timm/resnet18", "-w", "hf-hub:someone/small", "-o", "net.safetensors")
    assert done.code == 0, done.err
    verified = run("verify", "net.safetensors", "-f", 2, "-s", 64)
    assert verified.code == 0, verified.err
    assert "hf-hub:someone/small" in run("inspect", "net.safetensors").out


def test_classes_weights_and_preprocessing_are_the_repositorys(hub: Path) -> None:
    model, origin = Source("timm/resnet18", "hf-hub:someone/small").load()
    expected = timm.create_model("resnet18", num_classes=7)
    randomise(expected, 3, (3, 64, 64))
    assert origin.classes == 7
    assert origin.preprocessing.mean == (0.1, 0.2, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("backbone", "weights", "words"),
    [
        ("timm/resnet34", "hf-hub:someone/small", "holds weights of timm/resnet18"),
        ("timm/resnet18", "hf-hub:someone/absent", "can't get timm's weights"),
        ("resnet18", "hf-hub:someone/small", "someone/small"),
    ],
)
def test_what_is_refused(hub: Path, backbone: str, weights: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        Source(backbone, weights).load()
