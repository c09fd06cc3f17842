"""Weight files of trainers: what they put before names is taken off, what they put beside a network is named."""

from pathlib import Path

import pytest
import torch
from torchvision import models

from i3dconvert import inflate, origin_of
from i3dconvert.backbones.wrappers import unwrapped
from i3dconvert.checkpoint import finetuned, read
from i3dconvert.errors import I3DWarning, WeightsError
from i3dconvert.weights import read_state
from tests.conftest import Run

STATE = {"conv1.weight": torch.zeros(4, 3, 3, 3), "fc.bias": torch.ones(2)}


@pytest.mark.parametrize(
    "prefix",
    ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod.", "model.", "module.encoder_q.",
     "teacher.backbone.", "backbone.", "model.module.backbone."],
)  # fmt: skip
def test_what_trainers_put_before_names_is_taken_off(prefix: str) -> None:
    stored = {f"{prefix}{key}": tensor for key, tensor in STATE.items()} | {"n_averaged": torch.tensor(3)}
    assert unwrapped(stored, STATE, "a.pth").keys() == STATE.keys()


def test_a_prefix_of_the_network_s_own_stays() -> None:
    for prefix in ("model.", "module.", "backbone."):
        own = {f"{prefix}{key}": tensor for key, tensor in STATE.items()}
        assert unwrapped(own, own, "a.pth").keys() == own.keys()
        assert unwrapped({f"module.{key}": tensor for key, tensor in own.items()}, own, "a.pth").keys() == own.keys()


def test_what_is_beside_the_network_is_left_and_named() -> None:
    stored = {f"module.{part}.{key}": tensor for part in ("encoder_q", "encoder_k") for key, tensor in STATE.items()}
    with pytest.warns(I3DWarning, match=r"also holds module\.encoder_k\.conv1\.weight and 1 more tensor; the tensors"):
        found = unwrapped(stored, STATE, "moco.pth")
    assert found.keys() == STATE.keys()


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", "ema"])
def test_an_average_beside_the_weights_is_left_and_named(average: str, tmp_path: Path) -> None:
    averaged = {key: tensor + 1 for key, tensor in STATE.items()}
    torch.save({"epoch": 3, average: averaged, "state_dict": STATE}, tmp_path / "both.pth")
    with pytest.warns(I3DWarning, match=rf"both\.pth also holds an average .* under '{average}'"):
        assert torch.equal(read_state(tmp_path / "both.pth")["fc.bias"], STATE["fc.bias"])
    torch.save({"epoch": 3, average: averaged}, tmp_path / "one.pth")
    assert torch.equal(read_state(tmp_path / "one.pth")["fc.bias"], averaged["fc.bias"])


@pytest.mark.parametrize("key", ["net", "params", "weights", 0])
def test_the_only_state_dict_of_a_file_is_found_under_any_key(key: object, tmp_path: Path) -> None:
    trainer = {"acc": torch.tensor(0.7), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}}
    torch.save({key: STATE, **trainer}, tmp_path / "net.pth")
    assert read_state(tmp_path / "net.pth").keys() == STATE.keys()
    torch.save({f"{key}_ema": STATE}, tmp_path / "average.pth")
    assert read_state(tmp_path / "average.pth").keys() == STATE.keys()
    torch.save({key: STATE, f"{key}_ema": STATE}, tmp_path / "both.pth")
    with pytest.warns(I3DWarning, match=rf"average .* under '{key}_ema'"):
        assert read_state(tmp_path / "both.pth").keys() == STATE.keys()
    torch.save({key: STATE, "discriminator": STATE}, tmp_path / "two.pth")
    with pytest.raises(
        WeightsError, match=rf"holds several state dicts: {key}, discriminator; save the network's alone"
    ):
        read_state(tmp_path / "two.pth")


def test_a_mapping_in_itself_ends(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state(tmp_path / "endless.pth")


def test_a_program_is_told_from_weights(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"is a TorchScript program, not weights; .*torch\.jit\.load\('net\.pt'\)"):
        read_state(tmp_path / "net.pt")


@pytest.mark.parametrize("neck", [True, False])
def test_the_head_beside_a_backbone_is_its_only_layer_there(neck: bool) -> None:
    wanted = STATE | {"fc.weight": torch.ones(2, 4)}
    stored = {f"backbone.{key}": tensor for key, tensor in wanted.items() if not key.startswith("fc")}
    stored |= {"head.fc.weight": torch.ones(2, 4), "head.fc.bias": torch.ones(2), "loss.weight": torch.ones(2)}
    stored |= {"data_preprocessor.mean": torch.zeros(3, 1, 1)}
    if neck:
        stored |= {"neck.weight": torch.ones(2, 4), "neck.bias": torch.ones(2)}
    with pytest.warns(I3DWarning, match="also holds"):
        found = unwrapped(stored, wanted, "a.pth")
    assert ("fc.weight" in found) is not neck
    assert neck or torch.equal(found["fc.weight"], torch.ones(2, 4))


def test_names_of_checkpoints_are_those_of_files(run: Run, weight_file: Path) -> None:
    state = {f"_orig_mod.module.{key}": tensor for key, tensor in torch.load(weight_file).items()}
    for name in ("net.ckpt", "net.pth.tar"):
        torch.save({"state_dict": state}, name)
        done = run("inflate", "resnet18", "-w", name, "-s", 32, "-o", f"{name}.safetensors")
        assert done.code == 0, done.err


@pytest.mark.parametrize("named", [True, False])
def test_weights_without_a_head_serve_where_it_is_replaced(named: bool, tmp_path: Path) -> None:
    model, path = models.resnet18(weights=None), tmp_path / "dino.pth"
    body = {f"module.backbone.{key}": one for key, one in model.state_dict().items() if not key.startswith("fc")}
    torch.save({"teacher": body}, path)
    source = "resnet18" if named else model
    with pytest.raises(WeightsError, match=r"2 missing keys \(fc.weight, fc.bias\)"):
        inflate(source, weights=str(path), size=64)
    for asked in ({"num_classes": 3}, {"head": "none"}):
        network = inflate(source, weights=str(path), size=64, **asked)
        assert torch.equal(network.conv1.weight.sum(2), model.conv1.weight)
        origin = origin_of(network)
        assert origin.load().conv1.weight.equal(model.conv1.weight)  # it is found again, for verify


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.", "_orig_mod.", "model._orig_mod.module."])
def test_trained_weights_come_back_from_trainers(prefix: str, checkpoint: Path, tmp_path: Path) -> None:
    document, state = read(checkpoint)
    tuned = {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    trainer = {"optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}], "epoch": 3, "callbacks": {}}
    torch.save({"state_dict": {f"{prefix}{key}": one for key, one in tuned.items()}} | trainer, tmp_path / "a.ckpt")
    found = finetuned(document, tmp_path / "a.ckpt", state).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in tuned.items())


def test_tensors_in_a_mapping_beside_the_networks_do_not_replace_them(tmp_path: Path) -> None:
    torch.save({**STATE, "statistics": {"mean": torch.zeros(3)}}, tmp_path / "beside.pth")
    torch.save({"net": STATE, "best": torch.ones(())}, tmp_path / "below.pth")
    for file in ("beside.pth", "below.pth"):
        assert torch.equal(read_state(tmp_path / file)["fc.bias"], STATE["fc.bias"])
