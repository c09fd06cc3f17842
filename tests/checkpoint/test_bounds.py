"""Small files that ask for much: each is refused in words, before the memory or the time is taken."""

from __future__ import annotations

import json
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from huggingface_hub import constants
from onnx import TensorProto, helper
from torch import nn

from i3dconvert.backbones.hf import LIBRARY as TRANSFORMERS
from i3dconvert.backbones.origin import Backbone, Origin, Weights
from i3dconvert.backbones.wrappers import unwrapped
from i3dconvert.checkpoint import Document
from i3dconvert.errors import BackboneError, CheckpointError, I3DError, I3DWarning, RecipeError, WeightsError
from i3dconvert.export import memory, runtime
from i3dconvert.export.memory import bounded
from i3dconvert.export.runtime import read_document
from i3dconvert.recipes import toml
from i3dconvert.recipes.rules import Recipe
from i3dconvert.streaming.runtime import Spec
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import fit, read_state
from tests.checkpoint.test_strangers import forged
from tests.conftest import Run

ZEROS = {"conv1.weight": torch.zeros(2**22)}


class Bytes:
    """A gigabyte that is in no file."""

    def __reduce__(self) -> Any:
        return bytearray, (2**30,)


def deflated(path: Path) -> None:
    torch.save(ZEROS, path.with_suffix(".plain"))
    with zipfile.ZipFile(path.with_suffix(".plain")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for record in plain.infolist():
            new.writestr(record.filename, plain.read(record))


def named(path: Path, **options: Any) -> None:
    name, tensor = "layer" * 8_000, torch.zeros(1)
    torch.save({f"{name}.{index}": tensor for index in range(300)}, path, **options)


def header(path: Path) -> None:
    text = json.dumps({f"l{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(150_000)})
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("deflated.pth", deflated, "unpacks to 16 MiB; nothing was unpacked"),
        ("names.pth", named, "MiB of names"),
        ("old.pth", lambda path: named(path, _use_new_zipfile_serialization=False), "MiB of names"),
        ("names.safetensors", header, "MiB of names"),
        ("index.json", lambda path: path.write_text(" " * 2**23 + "{}"), "MiB of names"),
        ("wide.pth", lambda path: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path), "and unpacks to"),
        ("meta.pth", lambda path: torch.save({"a": torch.zeros(3, device="meta")}, path), "holds a as a sparse"),
        ("sparse.pth", lambda path: torch.save({"a": torch.zeros(3).to_sparse()}, path), "holds a as a sparse"),
        ("bytes.pth", lambda path: torch.save({"a": torch.zeros(1), "b": Bytes()}, path), "allocates memory for bytes"),
    ],
)
def test_weights_that_would_fill_memory(name: str, make: Any, says: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(WeightsError, match=says):
        read_state(tmp_path / name)


def test_names_that_end_like_the_networks_take_no_time(tmp_path: Path) -> None:
    name, wanted = "x" * 10_000, {f"layer.{index}.weight": torch.zeros(1) for index in range(100)}
    state = {f"{name}{index}.layer.0.weight": torch.zeros(1) for index in range(3000)}
    start = time.process_time()
    with pytest.warns(I3DWarning):
        unwrapped(state, wanted, "net.pth")
    assert time.process_time() - start < 1  # 3,000 readings took 3.7 s, and 60,000 names 13 s
    with pytest.raises(WeightsError, match=r"3000 unexpected keys \(x{120}, x{120}, x{120}, …\)$"):
        fit(nn.Linear(1, 1), state, "net.pth")


def test_weights_that_hardly_shrank_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(100)}, tmp_path / "net.plain")
    with (
        zipfile.ZipFile(tmp_path / "net.plain") as plain,
        zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in plain.infolist():
            new.writestr(record.filename, plain.read(record))
    assert read_state(tmp_path / "net.pth").keys() == {"a"}


def test_recipes_without_end(tmp_path: Path) -> None:
    rule = {"layer": "conv1", "kernel": 3}
    many, long = {"rule": [rule] * 5000}, {"rule": [rule | {"layer": "a|" * 5000}]}
    for document, says in ((many, "5,000 rules"), (long, "10,000 characters")):
        with pytest.raises(RecipeError, match=says):
            Recipe.from_dict(document)
    (tmp_path / "long.toml").write_text("#" * 2**21)
    with pytest.raises(RecipeError, match="2 MiB of names"):
        toml.read(tmp_path / "long.toml")


def test_a_recipe_with_a_mark_of_its_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_text('[[rule]]\nlayer = "conv1"\nkernel = 3\n', encoding="utf-8-sig")
    assert toml.read(tmp_path / "marked.toml").rules[0].kernel == 3


@pytest.mark.parametrize(
    "config",
    [
        {"depths": [1_000_000] * 4},
        {"depths": [1e6]},
        {"num_labels": 1e9},
        {"num_labels": float("inf")},
        {"image_size": [1, 1e9]},
        {"image_size": [30_000, 30_000]},
        {"backbone_config": {"num_hidden_layers": 1_000_000}},
        {"depths": [900] * 100},
        {"model_args": {"checkpoint_path": "evil.pth"}},
        {"backbone": "resnet18", "use_timm_backbone": True},
        {"backbone_config": {"model_type": "timm_backbone"}},
    ],
)
def test_configurations_without_end_or_of_other_builders(config: dict[str, Any]) -> None:
    arguments = {"architecture": "ResNetForImageClassification", "config": config, "folder": False}
    with pytest.raises(BackboneError, match="the configuration "):
        TRANSFORMERS.check("x", arguments)


def test_a_folder_is_checked_before_its_weights_are_read(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    config = {"architectures": ["TimmWrapperForImageClassification"], "model_args": {"checkpoint_path": "evil.pth"}}
    (folder / "config.json").write_text(json.dumps(config))
    done = run("inflate", "hf/net")
    assert (done.code, "wraps a network of another library" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"minimum_frames": 10**9}, "no network has a size above"),
        ({"input": [3, 10**6, 10**6]}, "no network has a size above"),
        ({"input": [5, 4096, 4096]}, "larger than any network's"),
        ({"recipe": {"rule": [{"layer": "*"}] * 5000}}, "5,000 rules"),
        ({"version": "1" * 2**23}, "MiB of names"),
    ],
)
def test_documents_that_ask_for_much(change: dict[str, Any], says: str) -> None:
    recipe = {"rule": [{"layer": "*", "kernel": 3}]}
    document: dict[str, Any] = {"schema": 1, "init": "center", "padding": "zeros", "conv": "3d", "recipe": recipe}
    document |= {"input": [3, 8, 8], "minimum_frames": 1, "sha256": "", "finetuned": False, "seal": ""}
    for honest in ([3, 8, 8], [3, 4096, 4096], [200, 512, 512]):
        assert Document.loads(json.dumps(document | {"input": honest}), Path("a")).inflation.input == tuple(honest)
    with pytest.raises(I3DError, match=says):
        Document.loads(json.dumps(document | change), Path("a"))


@pytest.mark.parametrize("source", ["../../evil", "origin"])
def test_libraries_of_no_such_name(source: str, run: Run, checkpoint: Path, tmp_path: Path) -> None:
    done = run("verify", forged(checkpoint, tmp_path / "net.safetensors", source=source))
    assert (done.code, "unknown library of networks" in done.err) == (1, True)


def test_a_repository_that_a_file_names_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def resolve(name: str) -> None:
        asked.append(constants.HF_HUB_OFFLINE)
        raise OSError("not in the cache")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("i3dconvert.backbones.timm.load_model_config_from_hf", resolve)
    weights = Weights("pretrained", name="hf-hub:some/net")
    origin = Origin(Backbone("timm", "resnet18"), weights, Preprocessing(), (3, 64, 64), 1000)
    with pytest.raises(WeightsError, match="not in the cache"):
        origin.load()
    assert (origin.class_names(), origin.licence()) == ([], "")
    assert asked == [True] * 3
    assert not constants.HF_HUB_OFFLINE


def test_a_graph_that_may_run_without_end(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(exported)
    names = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")]
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "body", [count, names[0]], [names[1]])
    model.graph.initializer.append(helper.make_tensor("times", TensorProto.INT64, [], [2**60]))
    model.graph.node.append(helper.make_node("Loop", ["times", ""], [], body=body))
    onnx.save(model, tmp_path / "loop.onnx")
    with pytest.raises(CheckpointError, match="has Loop in its graph"):
        read_document(tmp_path / "loop.onnx")
    monkeypatch.setattr(runtime, "_MOST_PARTS", 10)
    with pytest.raises(CheckpointError, match="more than 10 parts"):
        read_document(exported)


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        ("ConstantOfShape", [[10**11]]),
        ("Expand", [[1], [3 * 10**9]]),
        ("Tile", [[1, 2], [10**9]]),
        ("Range", [0, 10**9, 1]),
        ("Pad", [[1, 2], [0, 2 * 10**9]]),
    ],
)
def test_a_graph_that_would_fill_memory(operator: str, inputs: list[Any], exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    names = [f"given{index}" for index in range(len(inputs))]
    for name, value in zip(names, inputs, strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
    model.graph.node.append(helper.make_node(operator, names, ["huge"]))
    onnx.save(model, tmp_path / "huge.onnx")
    with pytest.raises(CheckpointError, match=r"computes 'huge' of .* numbers, more than any network needs"):
        read_document(tmp_path / "huge.onnx")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems can't bound a process's memory")
def test_sizes_that_only_a_run_shows_are_bounded(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource  # which Windows lacks

    model = onnx.load(exported)
    model.graph.node.append(helper.make_node("NonZero", ["clip"], ["twice0"]))  # its size follows the values
    for index in range(26):
        model.graph.node.append(helper.make_node("Concat", [f"twice{index}"] * 2, [f"twice{index + 1}"], axis=1))
    model.graph.node.append(helper.make_node("Size", ["twice26"], ["count"]))
    model.graph.output.append(helper.make_tensor_value_info("count", TensorProto.INT64, []))
    path, before = tmp_path / "twice.onnx", resource.getrlimit(resource.RLIMIT_DATA)
    onnx.save(model, path)
    read_document(path)
    monkeypatch.setattr("i3dconvert.export.memory._OF_FILE", 1)
    file, clip = runtime.Runtime(path, trusted=False), torch.zeros(1, 3, 4, 32, 32)
    clip[0, 0, 0, 0, :8] = 1
    with pytest.raises(CheckpointError, match=r"takes more than 0\.5 GiB.*I3DCONVERT_MEMORY=16"):
        file(clip)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert file(torch.zeros(1, 3, 4, 32, 32))[1] == 0
    monkeypatch.setenv("I3DCONVERT_MEMORY", "64")
    assert memory.needed(path) == 2**36


@pytest.mark.parametrize("change", [{"delay": 10**9}, {"frames": 10**9}, {"state": 10**6}])
def test_streams_without_end_are_refused(change: dict[str, Any]) -> None:
    spec: dict[str, Any] = {"frames": 1, "delay": 1, "window": None, **change}
    spec["state"] = [{"input": "a", "output": "b", "shape": [spec.pop("state", 1)] * 2}]
    spec["outputs"] = [{"name": "logits", "frames": 1, "beyond": 0, "axis": None}]
    with pytest.raises(CheckpointError, match="larger than any network's"):
        Spec.loads(json.dumps(spec), Path("a.onnx"))


def test_biases_between_all_tokens_of_a_clip_are_read(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    for name, value in (("one", [0.0]), ("sizes", [16, 3152, 3152])):
        kind = np.float32 if name == "one" else np.int64
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, kind), name))
    model.graph.node.append(helper.make_node("Expand", ["one", "sizes"], ["biases"]))
    onnx.save(model, tmp_path / "large.onnx")
    read_document(tmp_path / "large.onnx")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_overlapping_runs_leave_the_limit_as_it_was() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    first, second = bounded(2**30), bounded(2**29)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    within = resource.getrlimit(resource.RLIMIT_DATA)
    second.__exit__(None, None, None)
    assert within != before == resource.getrlimit(resource.RLIMIT_DATA)
