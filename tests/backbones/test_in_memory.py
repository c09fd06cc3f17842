"""A 2D network in memory takes what one by name takes; files that people have are read."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision import models

import i3dconvert
from i3dconvert.backbones import Source
from i3dconvert.backbones.in_memory import name_of, recipe_of
from i3dconvert.backbones.timm import LIBRARY
from i3dconvert.backbones.wrappers import unwrapped
from i3dconvert.errors import BackboneError, FramesError, WeightsError
from i3dconvert.names import list_models
from i3dconvert.recipes import default_recipe
from i3dconvert.weights import read_state


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()


CLIP = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_module_takes_what_a_name_takes(tmp_path: Path) -> None:
    model = small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert i3dconvert.inflate(model, size=16, num_classes=7)(CLIP).shape == (2, 7)
    assert i3dconvert.inflate(model, size=16, head="none")(CLIP).shape == (2, 6)
    grey = i3dconvert.inflate(model, size=16, in_channels=1)
    same = i3dconvert.inflate(model, size=16)
    still = CLIP[:, :1]
    assert torch.allclose(grey(still), same(still.expand(-1, 3, -1, -1, -1)), atol=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    torch.save({"model": {f"net.{key}": tensor + 1 for key, tensor in before.items()}}, tmp_path / "more.pth")
    tuned = i3dconvert.inflate(model, size=16, weights=str(tmp_path / "more.pth"))
    assert torch.equal(tuned[5].bias, before["5.bias"] + 1)
    drawn = [i3dconvert.inflate(model, size=16, weights="random", seed=seed)[5].bias for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    for options, said in (({"features": True}, "features_only"), ({"weights": "IMAGENET1K_V1"}, "no pretrained")):
        with pytest.raises(BackboneError, match=said):
            i3dconvert.inflate(model, size=16, **options)


@pytest.mark.parametrize("options", [{"num_classes": 7}, {"head": "none"}, {"in_channels": 1}, {}])
def test_load_does_to_the_module_what_the_file_records(options: dict[str, Any], tmp_path: Path) -> None:
    network, path = i3dconvert.inflate(small(), size=16, **options), tmp_path / "net.safetensors"
    i3dconvert.save(network, path)
    model = small()
    again = i3dconvert.load(path, model)
    clip = CLIP[:, : options.get("in_channels", 3)]
    assert torch.equal(again(clip), network(clip))
    assert model[5].out_features == 4


def test_modules_of_libraries_take_the_recipe_of_their_names() -> None:
    for name in ("resnet18", "densenet121", "googlenet", "mobilenet_v2", "vit_b_16"):
        with torch.device("meta"):
            model = models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
        assert recipe_of(model) == default_recipe(name)
    with torch.device("meta"):
        assert name_of(timm.create_model("resnet18")) == "timm/resnet18"
    assert recipe_of(small()).name == "uniform"


def test_names_by_a_pattern() -> None:
    assert list_models("resnet1[0-9]", "torchvision") == ["resnet18"]
    assert "timm/convnext_tiny" in list_models("convnext_t*")
    assert list_models("timm/resnet18") == ["timm/resnet18"]
    assert {"list_models", "inflate", "save"} <= set(dir(i3dconvert))
    assert (Path(i3dconvert.__file__).parent / "py.typed").exists()


def test_frames_become_a_clip() -> None:
    network = i3dconvert.inflate(small(), size=16)
    frames = torch.randint(0, 256, (5, 30, 40, 3), dtype=torch.uint8)
    clip = network.preprocessing(frames)
    assert (clip.shape, clip.dtype) == ((3, 5, 16, 16), torch.float32)
    assert torch.equal(network.preprocessing(frames.numpy()), clip)
    plain = network.preprocessing(torch.full((2, 16, 16, 3), 128, dtype=torch.uint8))
    assert plain[0].unique() == pytest.approx((128 / 255 - 0.485) / 0.229)
    assert i3dconvert.preprocessing_of(i3dconvert.inflate(small(), size=16, in_channels=1))(frames).shape[0] == 1
    for wrong in (frames[0], frames.float(), frames.movedim(-1, 1), frames[:0]):
        with pytest.raises(FramesError, match="pass uint8"):
            network.preprocessing(wrong)


class Evil:
    """What runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_what_trainers_put_beside_the_weights_is_left(tmp_path: Path) -> None:
    state = small().state_dict()
    beside = {"args": argparse.Namespace(path=Path("x"), lr=np.float64(1)), "log": np.arange(3)}
    torch.save({"model": state, **beside}, tmp_path / "reference.pth")
    assert read_state(tmp_path / "reference.pth").keys() == state.keys()
    torch.save({"model": state, "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"it would call (posix|nt)\.system; nothing in it was run"):
        read_state(tmp_path / "evil.pth")


def test_prefixes_of_anybodys_and_heads_beside(recwarn: pytest.WarningsRecorder) -> None:
    state = models.resnet18().state_dict()
    for prefix in ("net.", "classifier.trunk.", "module.net."):
        assert unwrapped({prefix + key: tensor for key, tensor in state.items()}, state, "f").keys() == state.keys()
    beside = {
        key.replace("fc.", "head.fc.") if key.startswith("fc.") else f"backbone.{key}": state[key] for key in state
    }
    found = unwrapped(beside, state, "f")
    assert found["fc.weight"] is state["fc.weight"]
    assert not recwarn.list
    other = {f"other.{key}": state[key] for key in ("fc.weight", "fc.bias")}
    found = unwrapped({**beside, **other}, state, "f")  # which of two is the head is not told
    assert "fc.weight" not in found
    assert "also holds head.fc.weight and 3 more tensors" in str(recwarn.list[0].message)


@pytest.mark.parametrize(
    ("channels", "said"), [(4, ""), pytest.param(1, "", marks=pytest.mark.slow), (None, "--in-channels 4")]
)
def test_kernels_over_other_channels(channels: int | None, said: str, tmp_path: Path) -> None:
    from i3dconvert.backbones import Changes
    from i3dconvert.inflation import inflate_to_file
    from i3dconvert.verification import Settings, verify_file

    model = models.resnet18(num_classes=5)
    model.conv1 = nn.Conv2d(channels or 4, 64, 7, 2, 3, bias=False)
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    changes = Changes.asked(channels, None, None, "", 0)
    source = Source("resnet18", str(tmp_path / "tuned.pth"), size=32, changes=changes)
    if said:
        with pytest.raises(WeightsError, match=said):
            source.load()
        return
    inflate_to_file(source, tmp_path / "net.safetensors")
    network = i3dconvert.load(tmp_path / "net.safetensors")
    assert torch.equal(network.conv1.weight.sum(2), model.conv1.weight)
    assert verify_file(tmp_path / "net.safetensors", Settings(2, 32, (torch.float32,))).passed


def test_old_files_of_timm_are_brought_up_to_date() -> None:
    """The files come from before patches were embedded by a convolution."""
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    state = {key: torch.zeros(tensor.shape) for key, tensor in model.state_dict().items()}
    kernel = state.pop("patch_embed.proj.weight")
    old = {"patch_embed.proj.weight": kernel.flatten(1), "cls_token_old": torch.zeros(1), **state}
    found = LIBRARY.canonical("vit_tiny_patch16_224", {}, old, model)
    assert found["patch_embed.proj.weight"].shape == kernel.shape
