"""Files and pictures from strangers: what they ask for is looked at before it is done."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from i3dconvert import I3DError, load
from i3dconvert.backbones import Weights
from i3dconvert.checkpoint import KEY
from i3dconvert.checkpoint.document import _seal
from i3dconvert.classification import Moment
from i3dconvert.errors import CheckpointError
from i3dconvert.names import visible
from i3dconvert.recipes import Recipe, Rule, toml
from i3dconvert.reporting.drawing import draw_timeline
from i3dconvert.reporting.templates import _ENVIRONMENT
from i3dconvert.video.media import read_pictures
from i3dconvert.video.preprocessing import Preprocessing
from tests.conftest import Run


def forged(checkpoint: Path, to: Path, part: str = "backbone", **values: Any) -> Path:
    """A copy of a checkpoint with other values in a part of its origin, or of its document, with a seal that fits."""
    with safe_open(checkpoint, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        document = json.loads(file.metadata()[KEY])
    (document["origin"][part] if part else document).update(values)
    document["seal"] = _seal(document)
    save_file(tensors, to, {KEY: json.dumps(document)})
    return to


class Boom:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ({"source": "timm", "name": "resnet18", "arguments": {"checkpoint_path": "evil.pth"}}, "checkpoint_path"),
        ({"source": "timm", "name": "resnet18", "arguments": {"pretrained": True}}, "pretrained=True"),
        ({"source": "timm", "name": "resnet18", "arguments": {"num_classes": "evil.pth"}}, "num_classes='evil.pth'"),
        ({"source": "timm", "name": "resnet18", "arguments": {"num_classes": 10**9}}, "num_classes=1000000000"),
        ({"source": "timm", "name": "hf-hub:somebody/net"}, "would be downloaded"),
        ({"arguments": {"weights_backbone": "DEFAULT"}}, "weights_backbone"),
        (
            {"source": "hf", "name": "x", "arguments": {
                "architecture": "TimmWrapperForImageClassification", "config": {"model_args": {}}, "folder": False}},
            "wraps a network of another library",
        ),
        (
            {"source": "hf", "name": "x", "arguments": {
                "architecture": "ResNetForImageClassification", "config": {"depths": [1000000] * 4}, "folder": False}},
            "depths",
        ),
        ({"source": "torchvision", "name": "resnet19"}, "torchvision can't build 'resnet19'"),
    ],
)  # fmt: skip
def test_no_argument_of_a_file_runs_fetches_or_fills_memory(
    backbone: dict[str, Any], said: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Boom(tmp_path / "ran")}, "evil.pth")
    with pytest.raises(I3DError, match=said):
        load(forged(checkpoint, tmp_path / "net.safetensors", **backbone))
    assert not (tmp_path / "ran").exists()


def test_names_from_a_file_do_not_reach_the_terminal(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    path = forged(checkpoint, tmp_path / "net.safetensors", version="\x1b]0;owned\x07\x1b[2J")
    for words in (("inspect", path), ("verify", path), ("inspect", tmp_path / "\x1b[31mnone.safetensors")):
        result = run(*words)
        assert "\x1b" not in result.out + result.err
        assert "\x07" not in result.out + result.err
    assert "\\x1b]0;owned" in run("inspect", path).out


@pytest.mark.parametrize("kind", ["device", "pipe", "vast", "quoted"])
def test_a_file_that_a_document_names_as_code_is_not_read_without_end(
    kind: str, run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    place = tmp_path / "nets.py; touch owned"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.write_text("")
        os.truncate(place, 2**24 if kind == "vast" else 0)
    name = f"{'/dev/zero' if kind == 'device' else place}:network"
    done = run("verify", forged(checkpoint, tmp_path / "net.safetensors", source="user", name=name))
    says = {"vast": "is larger than any Python file", "quoted": f"i3dconvert trust '{place}'"}
    assert (done.code, says.get(kind, "is a pipe or a device") in done.err) == (1, True)


EVIL = "\x1b[2J\x9b1m\u202e\nok"


def test_names_from_a_file_reach_no_recipe_chart_or_page_unescaped(tmp_path: Path) -> None:
    recipe = Recipe(EVIL, (Rule(f"*{EVIL}\U0001f600", kernel=3),))
    text = toml.dumps(recipe)
    assert toml.loads(text) == recipe
    moments = {f"{EVIL}.mp4": [Moment(0.0, 1.0, ((EVIL, 0.9), ("b", 0.1)))]}
    draw_timeline(moments, tmp_path / "line.svg")
    page = _ENVIRONMENT.from_string("{{ name }}{{ weights }}").render(name=EVIL, weights=Weights("file", path=EVIL))
    for shown in (text, (tmp_path / "line.svg").read_text(), page, visible(EVIL)):
        assert not set("\x1b\x9b\u202e") & set(shown)
    assert "\n" not in visible(EVIL)


def test_force_replaces_files_alone(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint, tmp_path / "net.safetensors")
    result = run("inflate", "resnet18", "-w", "random", "-s", 32, "-o", "/dev/null", "--force")
    assert (result.code, "is a device or a pipe" in result.err) == (1, True)
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_pictures_of_16_bits_are_those_of_8(ending: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "8.png")
    Image.fromarray(ramp.astype(np.uint16) << 8).save(tmp_path / f"16.{ending}")
    look = Preprocessing.from_dict(
        {"resize": 64, "size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    )
    eight, sixteen = read_pictures([tmp_path / "8.png", tmp_path / f"16.{ending}"], look)
    assert torch.equal(eight, sixteen)


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    image.save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    look = Preprocessing.from_dict(
        {"resize": 64, "size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    )
    plain, turned = read_pictures([tmp_path / "plain.png", tmp_path / "turned.png"], look)
    assert torch.equal(plain, turned)


@pytest.mark.parametrize("size", [10**6, [1, 10**9], 0, "large"])
def test_pictures_of_any_size_are_not_made(size: Any, checkpoint: Path, tmp_path: Path) -> None:
    look = {"resize": size, "size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    path = forged(checkpoint, tmp_path / "net.safetensors", "preprocessing", **look)
    with pytest.raises(CheckpointError, match="pictures of"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [{"std": [0, 1, 1]}, {"mean": [0.5]}, {"mean": "abc"}, {"std": [float("nan")] * 3}, {"interpolation": "sharp"}],
)
def test_pictures_are_prepared_as_no_library_can(change: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    path = forged(checkpoint, tmp_path / "net.safetensors", "preprocessing", **change)
    with pytest.raises(CheckpointError, match=r"damaged i3dconvert metadata .ValueError: no "):
        load(path)


def test_a_recipe_that_does_not_fit_the_tensors_is_inspected_in_one_line(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    rules = [{"layer": "*", "kernel": 9, "stride": 1}]
    done = run("inspect", forged(checkpoint, tmp_path / "net.safetensors", "", recipe={"name": "r", "rule": rules}))
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "do not match its recipe" in done.err
