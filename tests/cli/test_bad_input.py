"""Every bad input ends in one clear line, the right exit code, and no file."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from i3dconvert.backbones import Source
from tests.conftest import Run


def files() -> dict[str, float]:
    """All but the user's cache, where onnxruntime leaves things of its own when it is first imported."""
    cache = Path.cwd() / "cache"
    return {str(path): path.stat().st_mtime for path in Path.cwd().rglob("*") if cache not in (path, *path.parents)}


def refused(run: Run, *words: object, code: int = 1, says: str) -> None:
    """The command fails with `code` and one line that says `says`; nothing is written, nothing is changed."""
    before = files()
    result = run(*words)
    assert result.code == code, result.err
    assert says in result.err
    assert "Traceback" not in result.err
    if code == 1:
        assert result.err.startswith("error: ")
        assert len(result.err.splitlines()) == 1
        assert result.out == "" or words[0] == "verify"
    assert files() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("inflate", "resnet51"), "did you mean resnet50"),
        (("inflate", "convnext_atto"), "timm/convnext_atto"),
        (("inflate", "keras/resnet50"), "unknown source 'keras'"),
        (("inflate", "tim/resnet18"), "did you mean timm/resnet18"),
        (("inflate", "timm/resnet18.nonsense", "-w", "nonsense"), "no weights 'nonsense'; available: a1_in1k"),
        (("inflate", "resnet18", "-w", "IMAGENET1K_V7"), "available: IMAGENET1K_V1"),
        (("inflate", "resnet18", "-w", "none.pth"), "there is no file none.pth"),
        (("inflate", "resnet18", "-w", "."), "has no weights '.'"),
        (("inflate", "resnet18", "-w", "./folder.pth"), "is a directory"),
        (("inflate", "resnet18", "-w", "random", "-r", "rsenet"), "unknown preset 'rsenet'"),
        (("inflate", "resnet18", "-w", "random", "-r", "none.toml"), "there is no file none.toml"),
        (("inflate", "resnet18", "-w", "random", "-r", "i3d"), "matches no layer"),
        (("inflate", "resnet18", "-w", "random", "-t", "layer9.*=3"), "the rule 'layer9.*: kernel 3' matches no layer"),
        (("inflate", "resnet18", "-w", "random", "-t", "layer4"), "is not GLOB=KERNEL"),
        (("inflate", "resnet18", "-w", "random", "-t", "layer3.0.conv1=3/1"), "different numbers of frames"),
        (("inflate", "resnet18", "-w", "random", "-o", "nowhere/net.safetensors"), "there is no directory nowhere"),
        (("inflate", "resnet18", "-w", "random", "-o", "folder.pth"), "is a directory"),
        (("list", "resnext9*"), "no backbone matches"),
        (("verify",), "there is no i3dconvert checkpoint here"),
        (("verify", "none.safetensors"), "there is no file"),
        (("verify", "none.onnx"), "there is no file"),
        (("export", "--onnx"), "there is no i3dconvert checkpoint here"),
        (("inspect", "folder.pth"), "is a directory"),
    ],
)
def test_words_that_name_nothing(words: tuple[str, ...], says: str, run: Run) -> None:
    Path("folder.pth").mkdir()
    refused(run, *words, says=says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("inflate",), "BACKBONE"),
        (("inflate", "resnet18", "--init", "middle"), "middle"),
        (("export",), "--onnx, --safetensors and --hub"),
        (("export", "--onnx", "--safetensors"), "--onnx, --safetensors and --hub"),
        (("verify", "--frames", "0"), "--frames"),
        (("deflate",), "deflate"),
    ],
)
def test_wrong_usage_is_code_2(words: tuple[str, ...], says: str, run: Run) -> None:
    refused(run, *words, code=2, says=says)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def lying_safetensors(path: Path, offsets: dict[str, list[int]], length: int | None = None) -> None:
    """A header that says what its file does not hold."""
    entries = {
        key: {"dtype": "U8", "shape": [span[1] - span[0]], "data_offsets": span} for key, span in offsets.items()
    }
    header = json.dumps(entries).encode()
    path.write_bytes((length or len(header)).to_bytes(8, "little") + header + b"\0" * 16)


def test_weight_files_that_are_none(run: Run, weight_file: Path) -> None:
    state = torch.load(weight_file)
    Path("empty.pth").write_bytes(b"")
    Path("page.pth").write_text("<!doctype html><title>404</title>")
    Path("bomb.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save({"state_dict": {"a": Bomb()}}, "zipped.pth")
    Path("cut.pth").write_bytes(weight_file.read_bytes()[:100_000])
    Path("cut.safetensors").write_bytes(b"\xff" * 64)
    torch.save([1, 2], "list.pth")
    torch.save({key: value for key, value in state.items() if "layer4" not in key}, "missing.pth")
    torch.save(state | {"extra": torch.zeros(1)}, "unexpected.pth")
    torch.save(state | {"layer1.0.conv1.weight": torch.zeros(2, 2)}, "shape.pth")
    torch.save(state | {"conv1.weight": state["conv1.weight"].unsqueeze(2)}, "volumes.pth")
    torch.save(state | {"fc.bias": torch.full((1000,), torch.nan)}, "nan.pth")
    torch.save(state | {"fc.bias": torch.zeros(1000, dtype=torch.int64)}, "whole.pth")
    torch.save(state | {"fc.bias": torch.zeros(1000, dtype=torch.complex64)}, "complex.pth")
    torch.save(Source("resnet34", "random").load()[0].state_dict(), "other.pth")
    os.mkfifo("pipe.pth")
    lying_safetensors(Path("vast.safetensors"), {"a": [0, 4]}, length=1 << 45)
    lying_safetensors(Path("outside.safetensors"), {"a": [0, 1 << 45]})
    lying_safetensors(Path("overlap.safetensors"), {"a": [0, 8], "b": [4, 12]})
    for name, says in {
        "empty.pth": "empty.pth is empty",
        "page.pth": "is a web page, not weights",
        "bomb.pth": "it would call ",
        "zipped.pth": "nothing in it was run",
        "cut.pth": "not a readable PyTorch file",
        "cut.safetensors": "not a readable safetensors file",
        "list.pth": "holds no state dict",
        "missing.pth": " missing keys (layer4.0.conv1.weight, layer4.0.bn1.weight, ",
        "unexpected.pth": "1 unexpected key (extra)",
        "nan.pth": "holds NaN or infinite values, first in fc.bias; --allow-nonfinite accepts them",
        "whole.pth": "fc.bias in int64",
        "complex.pth": "fc.bias in complex64",
        "other.pth": "; it has as many parameters as resnet34: i3dconvert inflate resnet34 -w",
        "pipe.pth": "is a pipe or a device",
        "vast.safetensors": "not a readable safetensors file",
        "outside.safetensors": "not a readable safetensors file",
        "overlap.safetensors": "not a readable safetensors file",
        "volumes.pth": "volumes.pth holds 3D weights; give those of the 2D network",
        "shape.pth": "1 mis-shaped key (layer1.0.conv1.weight (2, 2) instead of (64, 64, 3, 3))",
    }.items():
        refused(run, "inflate", "resnet18", "-w", f"./{name}", says=says)
    assert not Path("exploded").exists()
    assert run("inflate", "resnet18", "-w", "./nan.pth", "--allow-nonfinite").code == 0


def test_checkpoints_that_are_none(run: Run, checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    Path("cut.safetensors").write_bytes(content[: len(content) // 2])
    save_file({"a": torch.zeros(1)}, "plain.safetensors")
    save_file({"a": torch.zeros(1)}, "newer.safetensors", {"i3dconvert": '{"schema": 99}'})
    save_file({"a": torch.zeros(1)}, "damaged.safetensors", {"i3dconvert": "{"})
    Path("text.onnx").write_text("not ONNX")
    for name, says in {
        "cut.safetensors": "not a readable i3dconvert checkpoint",
        "plain.safetensors": "is not an i3dconvert checkpoint",
        "newer.safetensors": "newer i3dconvert",
        "damaged.safetensors": "damaged i3dconvert metadata",
        "text.onnx": "not a readable ONNX file",
    }.items():
        refused(run, "verify", name, says=says)


def test_several_checkpoints_are_listed(run: Run, checkpoint: Path) -> None:
    for name in ("a", "b"):
        Path(f"{name}.safetensors").symlink_to(checkpoint)
    refused(run, "verify", says="a.safetensors, b.safetensors")


def test_an_existing_output_is_kept(run: Run, checkpoint: Path) -> None:
    Path("resnet18-i3d.safetensors").write_bytes(checkpoint.read_bytes())
    refused(run, "inflate", "resnet18", "-w", "random", says="--force overwrites it")
    Path("resnet18-i3d.onnx").write_text("mine")
    refused(run, "export", "--onnx", says="--force overwrites it")
    refused(run, "inflate", "resnet18", "-w", "none.pth", "--force", says="there is no file")


def test_too_few_frames_and_bad_pictures(run: Run) -> None:
    assert run("inflate", "resnet18", "-w", "random", "-t", "conv1=9", "-r", "c2d", "-s", 64).code == 0
    Path("recipe.toml").write_text('[[rule]]\nlayer = "conv1"\nkernel = 5\npadding = 0\n')
    assert run("inflate", "resnet18", "-w", "random", "-r", "recipe.toml", "-s", 64, "-o", "long.safetensors").code == 0
    refused(run, "verify", "long.safetensors", "-f", "4", says="4 frames is too short: 'conv1'")
    Path("page.png").write_text("<html>")
    refused(run, "verify", "long.safetensors", "--images", "page.png", says="page.png: not a picture")
    refused(run, "verify", "long.safetensors", "--images", "none.png", says="none.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place(run: Run) -> None:
    Path("locked").mkdir(mode=0o500)
    refused(run, "inflate", "resnet18", "-w", "random", "-o", "locked/net.safetensors", says="no permission")


def test_an_unwritable_file_system(run: Run) -> None:
    refused(run, "inflate", "resnet18", "-w", "random", "-o", "/proc/net.safetensors", says="/proc")


def test_a_failed_verification_is_one_line_and_code_1(run: Run) -> None:
    assert run("inflate", "resnet18", "-w", "random", "--init", "mean", "--padding", "zeros", "-s", 64).code == 0
    result = run("verify", "-f", "4", "--size", "64")
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1
    assert "the first layer that diverges is conv1" in result.err
