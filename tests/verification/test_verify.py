"""The checker can fail: each way of breaking a checkpoint or a network is caught, and the layer is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from i3dconvert import inflate, load
from i3dconvert.backbones import Origin, Source
from i3dconvert.errors import CheckpointError, VerificationError, WeightsError
from i3dconvert.inflation import inflate_loaded
from i3dconvert.verification import Report, Settings, verify, verify_file

QUICK = Settings(frames=4, size=64)
Tensors = dict[str, Tensor]


def one_weight(state: Tensors) -> str:
    state["layer3.1.conv1.weight"].view(-1)[state["layer3.1.conv1.weight"].abs().argmax()] *= 1.001
    return "layer3.1.conv1"


def two_taps(state: Tensors) -> str:
    state["layer2.0.conv2.weight"][:] = state["layer2.0.conv2.weight"][:, :, [1, 0, 2]]
    return "layer2.0.conv2"


def a_statistic(state: Tensors) -> str:
    state["layer1.1.bn2.running_mean"].zero_()
    return "layer1.1.bn2"


def equal_shaped_layers(state: Tensors) -> str:
    first, second = state["layer1.0.conv1.weight"], state["layer1.0.conv2.weight"]
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)
    return "layer1.0.conv1"


def two_filters(state: Tensors) -> str:
    weight = state["layer4.0.downsample.0.weight"]
    weight[[0, 1]] = weight[[1, 0]]
    return "layer4.0.downsample.0"


DAMAGES = (one_weight, two_taps, a_statistic, equal_shaped_layers, two_filters)


def test_a_sound_checkpoint_passes(checkpoint: Path, resnet18: tuple[nn.Module, Origin]) -> None:
    report = verify_file(checkpoint, replace(QUICK, layers=True))
    assert report.passed, report.reason
    assert [check.name.partition(",")[0] for check in report.checks] == [
        "integrity", "weight identity", "forward equality", "forward equality",
    ]  # fmt: skip
    names = [layer.name for layer in report.layers]
    assert names[0] == "conv1"
    assert names[-1] == "fc"
    assert set(names) == {name for name, module in resnet18[0].named_modules() if not list(module.children())}
    assert all(layer.error is not None and layer.error <= 1e-12 for layer in report.layers)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_a_file_is_caught_and_named(
    damage: Callable[[Tensors], str], checkpoint: Path, tmp_path: Path
) -> None:
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
        state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    where = damage(state)
    path = tmp_path / "damaged.safetensors"
    save_file(state, path, metadata)
    report = verify_file(path, QUICK)
    integrity, identity, *forward = report.checks
    assert not integrity.passed
    assert not identity.passed
    assert where in identity.detail
    assert ("other positions" in identity.detail) == (damage is two_taps)
    assert not all(check.passed for check in forward)
    assert report.first_divergence is not None
    assert report.first_divergence.name == where


@pytest.mark.parametrize("damage", DAMAGES)
def test_forward_equality_alone_catches_damage(
    damage: Callable[[Tensors], str], resnet18: tuple[nn.Module, Origin]
) -> None:
    network = inflate_loaded(*resnet18)
    where = damage(network.state_dict())
    report = verify(resnet18[0], network, QUICK)
    assert not report.checks[1].passed
    assert report.checks[1].name.startswith("forward equality, float64")
    assert report.first_divergence is not None
    assert report.first_divergence.name == where


def test_the_layer_of_a_transformer_that_differs_is_named() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64).eval()
    network = inflate(model, "divided", size=64)
    layer = network.get_submodule("blocks.1.mlp.fc1")
    assert isinstance(layer.bias, nn.Parameter)
    with torch.no_grad():
        layer.bias += 1
    report = verify(model, network, QUICK)
    assert not report.passed
    assert report.first_divergence is not None
    assert report.first_divergence.name == "blocks.1.mlp.fc1"
    assert [layer.name for layer in report.layers if layer.name.startswith("blocks.0")]


def test_a_dropped_stride_is_caught_and_named(resnet18: tuple[nn.Module, Origin]) -> None:
    network = inflate_loaded(*resnet18)
    conv, shortcut = network.get_submodule("layer3.0.conv1"), network.get_submodule("layer3.0.downsample.0")
    assert isinstance(conv, nn.Conv3d)
    assert isinstance(shortcut, nn.Conv3d)
    conv.stride = shortcut.stride = (2, 1, 1)
    report = verify(resnet18[0], network, QUICK)
    assert report.checks[0].passed
    assert not report.passed
    assert report.first_divergence is not None
    assert report.first_divergence.name == "layer3.0.conv1"
    assert "layer3.0.conv1" in report.reason


def test_a_network_that_gives_nothing_proves_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    report = verify(model, inflate(model, size=8), Settings(frames=2))
    assert not report.passed
    assert "proves nothing" in report.reason


def test_not_a_number_is_no_equality() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    network = inflate(model, size=8)
    network.get_parameter("0.bias").data[0] = float("nan")
    assert not verify(model, network, Settings(frames=2)).checks[1].passed


def test_the_networks_are_left_as_they_were(resnet18: tuple[nn.Module, Origin]) -> None:
    network = inflate_loaded(*resnet18).train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    verify(resnet18[0], network, replace(QUICK, dtypes=(torch.float64,)))
    assert network.training
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("init", ["center", "mean"])
def test_other_dtypes_are_held_to_the_same(dtype: torch.dtype, init: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(dtype)
    report = verify(model, inflate(model, init=init, size=16), Settings(frames=3))
    assert report.passed, report.reason


def test_the_reference_is_found_beside_a_checkpoint_that_moved(tmp_path: Path, weight_file: Path) -> None:
    from i3dconvert.inflation import inflate_to_file

    here = tmp_path / "here"
    here.mkdir()
    weight_file = weight_file.rename(here / "weights.pth")
    inflate_to_file(Source("resnet18", weights=str(weight_file)), here / "net.safetensors")
    moved = here.rename(tmp_path / "there")
    assert verify_file(moved / "net.safetensors", QUICK).passed
    away = (moved / "weights.pth").rename(tmp_path / "elsewhere.pth")
    with pytest.raises(WeightsError, match="--reference PATH"):
        verify_file(moved / "net.safetensors", QUICK)
    assert verify_file(moved / "net.safetensors", QUICK, reference=away).passed


def test_another_reference_is_refused(checkpoint: Path, weight_file: Path) -> None:
    with pytest.raises(WeightsError, match="not those that were inflated"):
        verify_file(checkpoint, QUICK, reference=weight_file)


@pytest.mark.slow
def test_fine_tuned_weights_have_no_reference(checkpoint: Path, tmp_path: Path) -> None:
    from i3dconvert import save

    save(load(checkpoint), tmp_path / "tuned.safetensors", finetuned=True)
    report = verify_file(tmp_path / "tuned.safetensors", QUICK)
    assert report.passed
    assert report.trained.startswith("trained: its weights were fine-tuned")
    with pytest.raises(VerificationError, match="omit --layout"):
        verify_file(tmp_path / "tuned.safetensors", QUICK, layout="monai")


def test_a_module_of_ones_own_goes_through_a_file(tmp_path: Path) -> None:
    from i3dconvert import save

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    save(inflate(model, size=224), tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match=r"load\(path, model\)"):
        load(tmp_path / "own.safetensors")
    assert verify(model, load(tmp_path / "own.safetensors", model), Settings(frames=2, size=16)).passed


def test_a_report_is_plain_data(checkpoint: Path) -> None:
    document = verify_file(checkpoint, QUICK).to_dict()
    assert document["passed"] is True
    assert [check["passed"] for check in document["checks"]] == [True] * 4
    assert not Report().passed


class Float(nn.Conv2d):
    """A convolution in float32 only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def test_a_network_in_float32_only_is_verified_in_it() -> None:
    model = nn.Sequential(Float(3, 4, 3), nn.Conv2d(4, 2, 3)).eval()
    network = inflate(model, size=16)
    with pytest.raises(VerificationError, match="verify in that: --dtype float32"):
        verify(model, network, Settings(frames=2, size=16))
    assert verify(model, network, Settings(frames=2, size=16, dtypes=(torch.float32,))).passed
