"""Networks with adapters of peft: nothing unreadable is written, and merged ones come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from i3dconvert import Network3d, export_onnx, inflate, load, save
from i3dconvert.errors import CheckpointError


@pytest.fixture
def network() -> Network3d:
    torch.manual_seed(0)
    return inflate("resnet18", weights="random", size=64, num_classes=5)


def test_adapters_are_saved_once_they_are_merged(network: Network3d, tmp_path: Path) -> None:
    tuned = get_peft_model(network, LoraConfig(r=2, target_modules=["layer1.0.conv1", "layer4.1.conv2", "fc"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    clip, path = torch.randn(1, 3, 16, 64, 64), tmp_path / "net.safetensors"
    for unmerged in (tuned, tuned.base_model.model, network):
        with pytest.raises(CheckpointError, match=r"merge_and_unload\(\)"):
            save(unmerged, path)
    with pytest.raises(CheckpointError, match=r"merge_and_unload\(\)"):
        export_onnx(tuned, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    expected = tuned.eval()(clip)
    merged = tuned.merge_and_unload()
    save(merged, path)
    assert torch.equal(load(path)(clip), merged(clip))
    torch.testing.assert_close(load(path)(clip), expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))
