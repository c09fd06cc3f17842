"""What is written for whom: our own file in any dtype, another framework's as its library reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from i3dconvert.backbones import Source
from i3dconvert.checkpoint.reading import finetuned, load, read
from i3dconvert.checkpoint.writing import write_inflated
from i3dconvert.errors import CheckpointError, OutputError, WeightsError
from i3dconvert.inflation import Options, inflate_to_file


def test_the_dtype_is_for_what_only_copies_numbers(tmp_path: Path) -> None:
    source = Source("resnet18", weights="random", size=32)
    ours = inflate_to_file(source, tmp_path / "half.safetensors", Options(dtype=torch.bfloat16))
    with safe_open(ours.path, "pt") as file:
        assert file.get_tensor("conv1.weight").dtype == torch.bfloat16
        assert file.get_tensor("bn1.num_batches_tracked").dtype == torch.int64
    content = ours.path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    assert end % 8 == 0
    header = json.loads(content[8:end])
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    assert names == sorted(names, key=lambda name: (header[name]["dtype"] != "I64", name))
    with pytest.raises(OutputError, match="exists"):
        inflate_to_file(source, ours.path)
    document, state = read(ours.path)
    with pytest.raises(OutputError, match="exists"):
        write_inflated(ours.path, document, state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_loaded_network_does_not_depend_on_its_file(suffix: str, tmp_path: Path) -> None:
    """Another program may overwrite or truncate the file, as `torch.save` to the same path does."""
    path = tmp_path / f"net{suffix}"
    inflate_to_file(Source("resnet18", weights="random", size=32), path)
    network = load(path)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in network.state_dict().values())


def test_transformers_folder(tmp_path: Path) -> None:
    folder = tmp_path / "timesformer"
    inflate_to_file(Source("timm/deit_tiny_patch16_224", "random"), folder, Options(layout="transformers"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    assert (folder / "config.json").read_text().startswith('{\n  "')
    assert json.loads((folder / "config.json").read_text())["model_type"] == "timesformer"


def test_2d_weights_are_told_from_damaged_ones(checkpoint: Path, tmp_path: Path) -> None:
    document, state = read(checkpoint)
    for kernel, hint in ((state["conv1.weight"].sum(2), True), (state["conv1.weight"].flatten(), False)):
        torch.save(dict(state) | {"conv1.weight": kernel}, tmp_path / "weights.pth")
        with pytest.raises(WeightsError) as caught:
            finetuned(document, tmp_path / "weights.pth", state)
        assert ("these are 2D weights: i3dconvert inflate resnet18 -w" in str(caught.value)) == hint


def test_weights_with_another_head_say_how_to_save_it(checkpoint: Path, tmp_path: Path) -> None:
    document, state = read(checkpoint)
    tuned = {f"model.{key.replace('fc.', 'fc.1.')}": tensor for key, tensor in state.items()}
    torch.save({"state_dict": tuned}, tmp_path / "tuned.ckpt")
    with pytest.raises(
        WeightsError, match=r"another module at fc: put it there in Python, load them, and call i3dconv"
    ):
        finetuned(document, tmp_path / "tuned.ckpt", state)


def test_a_file_of_a_version_that_left_a_layer_2d_says_how_to_make_it_again(checkpoint: Path, tmp_path: Path) -> None:
    with safe_open(checkpoint, "pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    older = tmp_path / "older.safetensors"
    kernels = ("layer1.0.conv1.weight", "layer1.0.conv2.weight")
    for flat, said in ((kernels[:1], ""), (kernels, " and 1 more")):
        save_file(state | {name: state[name].sum(2) for name in flat}, older, metadata)
        with pytest.raises(CheckpointError, match=rf"left {kernels[0]}{said} 2D\. .*inflate resnet18 -r recipe\.toml"):
            load(older)


def test_trained_weights_may_have_other_classes(checkpoint: Path, tmp_path: Path) -> None:
    document, state = read(checkpoint)
    head = {"fc.weight": torch.ones(7, 512), "fc.bias": torch.zeros(7)}
    torch.save(dict(state) | head, tmp_path / "weights.pth")
    assert finetuned(document, tmp_path / "weights.pth", state).get_submodule("fc").out_features == 7
