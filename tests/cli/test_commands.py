"""The command line on good input: the main job, its options, its three ways of speaking."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from i3dconvert import load
from i3dconvert.names import names
from tests.conftest import Run

COMMANDS = ("list", "inflate", "verify", "export", "inspect")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, run: Run) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert f"Example: i3dconvert {command}" in " ".join(result.out.split())
    assert {"--json", "--quiet"} <= set(result.out.replace(",", " ").split())


def test_help_and_completion_do_without_torch() -> None:
    script = (
        "import sys; from i3dconvert.cli import main; from i3dconvert.cli.options import complete_backbone;"
        "main(['--help']); assert 'resnet152' in complete_backbone('resnet15');"
        "assert 'timm/convnext_tiny' in complete_backbone('timm/convnext_t');"
        "assert not {'torch', 'timm', 'torchvision', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("i3dconvert 0.")


def test_names_read_from_the_sources_are_the_libraries_own() -> None:
    import timm
    from torchvision import models

    dense = models.list_models(module=models.segmentation)
    assert list(names("torchvision")) == sorted(models.list_models(module=models) + dense)
    assert len(names("torchvision")) == 80 + len(dense)
    assert list(names("timm")) == sorted(timm.list_models())


def test_list(run: Run) -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "*esnet18", "--json").out)}
    assert rows["resnet18"] == {
        "name": "resnet18",
        "parameters": 11689512,
        "weights": ["IMAGENET1K_V1"],
        "recipe": "resnet",
    }
    assert rows["timm/resnet18"]["parameters"] == 11689512
    assert "a1_in1k" in rows["timm/resnet18"]["weights"]
    assert "11,689,512" in run("list", "resnet18").out


@pytest.mark.slow
def test_the_main_job_by_default_names(run: Run, tmp_path: Path) -> None:
    inflated = run("inflate", "resnet18", "-w", "random", "-s", 64)
    assert inflated.code == 0, inflated.err
    assert "11,689,512 → 33,679,272" in inflated.out
    assert [path.name for path in tmp_path.iterdir()] == ["resnet18-i3d.safetensors"]
    verified = run("verify", "-f", "3", "--size", "64")
    assert verified.code == 0, verified.err
    assert verified.out.rstrip().endswith("equals its 2D network")
    exported = run("export", "--onnx", "-v")
    assert exported.code == 0, exported.err
    assert "clip (batch, 3, frames, height, width)" in exported.out
    assert "checking with onnxruntime" in exported.out
    assert run("verify", "resnet18-i3d.onnx", "-f", "5").code == 0
    inspected = run("inspect")
    assert "layer4.1.conv2" in inspected.out
    assert "arXiv" in run("inspect", "resnet18-i3d.onnx").out or "inflated_convnets" in inspected.out


def test_output_in_a_pipe_is_plain_and_quiet_is_quiet(run: Run, weight_file: Path) -> None:
    result = run("inflate", "resnet18", "-w", weight_file, "-o", "a.safetensors", "-v")
    assert "\x1b" not in result.out
    assert "layer3.0.downsample.0" in result.out
    assert run("inflate", "resnet18", "-w", weight_file, "-o", "b.safetensors", "-q").out == ""


def test_the_same_command_gives_the_same_bytes(run: Run, weight_file: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("inflate", "resnet18", "-w", weight_file, "-o", f"{name}.safetensors").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_json_of_every_command(run: Run, weight_file: Path) -> None:
    document = json.loads(run("inflate", "resnet18", "-w", weight_file, "--json").out)
    assert document["parameters3d"] == 33679272
    assert json.loads(run("verify", "-f", "2", "--size", "64", "--json").out)["passed"] is True
    assert json.loads(run("inspect", "--json").out)["metadata"]["recipe"]["name"] == "resnet"
    exported = json.loads(run("export", "--safetensors", "--dtype", "float16", "--json").out)
    with safe_open(exported["path"], framework="pt") as file:
        assert file.get_tensor("conv1.weight").dtype == torch.float16


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model", "model_state"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weight_files_as_people_save_them(wrapped: str | None, prefix: str, run: Run, weight_file: Path) -> None:
    state = {f"{prefix}{key}": value for key, value in torch.load(weight_file).items()}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, "saved.pt")
    result = run("inflate", "resnet18", "-w", "saved.pt", "--json")
    assert result.code == 0, result.err
    assert run("inflate", "resnet18", "-w", weight_file, "-o", "b.safetensors", "--json").code == 0
    with safe_open("b.safetensors", "pt") as plain, safe_open("resnet18-i3d.safetensors", "pt") as other:
        assert torch.equal(plain.get_tensor("fc.weight"), other.get_tensor("fc.weight"))


@pytest.mark.slow
def test_options_of_inflate_reach_the_network(run: Run) -> None:
    Path("mine.toml").write_text('name = "mine"\n[[rule]]\nkind = "spatial"\nkernel = 5\n')
    words = ("-w", "random", "--recipe", "mine.toml", "-t", "layer4.*.conv1=3", "-t", "conv1=7/2", "--init", "mean")
    document = json.loads(run("inflate", "resnet18", *words, "-s", 64, "--dtype", "bfloat16", "--json").out)
    kernels = {layer["name"]: layer["kernel3d"][0] for layer in document["layers"]}
    assert (kernels["layer1.0.conv1"], kernels["layer4.0.conv1"], kernels["conv1"]) == (5, 3, 7)
    assert document["padding"] == "replicate"
    assert run("verify", "-f", "4", "--size", "64").code == 0
    toml = run("inspect", "--toml").out
    Path("again.toml").write_text(toml)
    assert run("inflate", "resnet18", "-w", "random", "-r", "again.toml", "-s", 64, "-o", "again.safetensors").code == 0


def test_another_class_count_in_the_weights(run: Run) -> None:
    from torchvision import models

    torch.save(models.resnet18(num_classes=7).state_dict(), "seven.pth")
    assert run("inflate", "resnet18", "-w", "seven.pth").code == 0
    assert load("resnet18-i3d.safetensors").get_parameter("fc.weight").shape == (7, 512)


@pytest.mark.slow
def test_fine_tuned_weights_with_another_head_export(run: Run) -> None:
    assert run("inflate", "resnet18", "-w", "random", "-r", "c2d").code == 0
    network = load("resnet18-i3d.safetensors")
    network.fc = nn.Linear(512, 4)
    torch.save(network.state_dict(), "tuned.pth")
    result = run("export", "--onnx", "--weights", "tuned.pth")
    assert result.code == 0, result.err
    proved = run("verify", "resnet18-i3d.onnx")
    assert proved.code == 0
    assert "trained: 1 of 21 kernels moved; equality with the 2D network no longer applies" in proved.out


@pytest.mark.slow
def test_pictures(run: Run, weight_file: Path) -> None:
    Image.linear_gradient("L").convert("RGB").save("gradient.png")
    run("inflate", "resnet18", "-w", weight_file)
    result = run("verify", "-f", "2", "--images", "gradient.png")
    assert result.code == 0, result.err
    assert "ok   top classes, gradient.png" in result.out


@pytest.mark.slow
def test_factorised_convolutions_are_saved_verified_and_exported_like_the_rest(run: Run) -> None:
    done = run("inflate", "resnet18", "-w", "random", "--conv", "2plus1d", "-o", "net.safetensors", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["conv"] == "2plus1d"
    stem = next(layer for layer in told["layers"] if layer["name"] == "conv1")
    assert stem["operation"] == "Conv(2+1)d"
    assert stem["parameters2d"] == 64 * 3 * 7 * 7
    assert stem["parameters3d"] == stem["parameters2d"] + 64 * 64 * 3
    assert told["parameters3d"] - told["parameters2d"] == sum(
        layer["parameters3d"] - layer["parameters2d"] for layer in told["layers"]
    )
    assert run("verify", "net.safetensors", "-f", 4, "-s", 64).code == 0
    assert run("export", "net.safetensors", "--onnx").code == 0
    assert run("verify", "net.onnx", "-f", 4, "-s", 64).code == 0
