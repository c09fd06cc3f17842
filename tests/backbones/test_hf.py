"""Hugging Face transformers' image networks, from a folder as `save_pretrained` writes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from i3dconvert import inflate, load
from i3dconvert.backbones import Source
from i3dconvert.backbones.hf import LIBRARY as TRANSFORMERS
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import BackboneError
from i3dconvert.verification import Settings, verify
from i3dconvert.weights import randomise
from tests.conftest import Run
from tools.outside import _TRANSFORMERS

CLASSES = """
    ResNet RegNet ConvNext ConvNextV2 Swin Swinv2 ViT Dinov2 DeiT Beit MobileNetV2 EfficientNet Segformer PvtV2 Bit
    Levit
""".split()
WITHOUT_ATTENTION = {"RegNet", "ConvNext", "ConvNextV2", "MobileNetV2", "EfficientNet", "Bit"}
LABELS = {0: "cat", 1: "dog", 2: "clip"}


def save(name: str, folder: Path, **preprocessor: Any) -> torch.nn.Module:
    """A tiny network of the class called so, with random weights, in a folder."""
    transformers.utils.logging.disable_progress_bar()
    cls = getattr(transformers, f"{name}ForImageClassification")
    options = dict(_TRANSFORMERS[cls.__name__])
    network = cls(cls.config_class(**options, id2label=LABELS, label2id={v: k for k, v in LABELS.items()}))
    randomise(network.eval(), 0, (3, 64, 64))
    network.save_pretrained(folder)
    told = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 64, "width": 64}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told | preprocessor))
    return network


def cases() -> Iterator[Any]:
    for name, recipe in product(CLASSES, ("uniform", "joint")):
        if name in ("ResNet", "ViT"):
            yield name, recipe
        elif recipe == "uniform" or name not in WITHOUT_ATTENTION:
            yield pytest.param(name, recipe, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "recipe"), cases())
def test_equal_under_its_own_names(name: str, recipe: str, tmp_path: Path) -> None:
    theirs = save(name, tmp_path / "net")
    model, origin = Source(f"hf/{tmp_path / 'net'}", size=64).load()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)  # one network run twice can differ in float32's last bit
    with torch.no_grad():
        assert relative_error(theirs.double()(images).logits, model.double()(images)) < 1e-13
    network = inflate(model, recipe, size=64)
    assert network.state_dict().keys() == theirs.state_dict().keys()
    report = verify(model, network, Settings(frames=2, size=64, dtypes=(torch.float64,)))
    assert report.passed, report.reason
    assert origin.class_names() == list(LABELS.values())
    assert origin.preprocessing.mean == (0.5, 0.5, 0.5)
    assert origin.preprocessing.interpolation == "bicubic"


@pytest.mark.slow
def test_by_command(run: Run) -> None:
    save("ViT", Path("vit"))
    done = run("inflate", "hf/vit", "-r", "joint", "--time-embedding", "zeros")
    assert done.code == 0, done.err
    assert "vit.layers.0.attention.q_proj.weight" in load_file("vit-i3d.safetensors")
    assert run("verify", "vit-i3d.safetensors", "-f", 3).code == 0
    assert run("export", "vit-i3d.safetensors", "--onnx").code == 0
    done = run("verify", "vit-i3d.onnx", "-f", 5)
    assert done.code == 0, done.err
    # All but the proof stands without the folder.
    shutil.rmtree("vit")
    assert load("vit-i3d.safetensors")(torch.zeros(1, 3, 2, 64, 64)).shape == (1, 3)
    assert "there is no folder vit" in run("verify", "vit-i3d.safetensors").err


def test_another_class_count(run: Run) -> None:
    save("ResNet", Path("resnet"))
    done = run("inflate", "hf/resnet", "-s", 64, "-w", "random", "--num-classes", 7, "-o", "seven.safetensors")
    assert done.code == 0, done.err
    assert run("verify", "seven.safetensors", "-f", 2).code == 0
    assert load("seven.safetensors")(torch.zeros(1, 3, 2, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "net is not a folder|there is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("<html>"), "not a readable JSON document"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "not a readable JSON document"),
        (lambda folder: (folder / "config.json").write_text("{}"), "names no architecture"),
        (
            lambda folder: (folder / "config.json").write_text('{"architectures": ["os"]}'),
            "is a os, which transformers .* does not have",
        ),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"architectures": ["ViTForImageClassification"], "hidden_size": "wide"}'
            ),
            "Field 'hidden_size' expected int",
        ),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "can't read the weights of",
        ),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"size": "large"}'), "can't be read"),
    ],
)
def test_a_folder_of_something_else_is_refused_in_one_line(run: Run, change: Any, message: str) -> None:
    import re

    save("ViT", Path("net"))
    change(Path("net"))
    done = run("inflate", "hf/./net")
    assert done.code == 1
    assert re.search(message, done.err), done.err
    assert done.err.count("\n") == 1
    assert not Path("net-i3d.safetensors").exists()


def test_a_name_that_is_no_folder_and_not_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"nobody/nothing is not a folder, and its config\.json can't be"):
        Source("hf/nobody/nothing").load()
    with pytest.raises(BackboneError, match="there is no folder"):
        Source("hf/a/b/c").load()


@pytest.mark.parametrize(("size", "expected"), [(64, (64, 73)), ([96, 96], (96, 110)), (None, (224, 256))])
def test_without_a_preprocessor_pictures_have_the_networks_size(size: Any, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"image_size": size}))
    look = TRANSFORMERS.preprocessing(str(tmp_path), None)
    assert (look.size, look.resize) == expected
