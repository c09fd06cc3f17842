"""Exported streams: checked step by step before they are put in place; `verify` and Triton's server know them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import pytest
import torch
from torch import nn

from i3dconvert.comparison.forward import outputs, relative_error
from i3dconvert.errors import CheckpointError, ExportError, FramesError, StreamError
from i3dconvert.recipes import Rule
from i3dconvert.streaming import onnx as exporter
from i3dconvert.streaming.onnx import ExportOptions, export_stream
from i3dconvert.streaming.runtime import Output, Spec, StateTensor, StreamRuntime, of_file, together
from i3dconvert.streaming.triton import config, write_repository
from tests.conftest import Made, Run
from tests.examples.test_examples import CLIP
from tests.streaming.test_stream import TEMPORAL, small


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


RULES = (TEMPORAL, Rule("2", kernel=3, stride=2, padding=0))


@pytest.fixture(scope="session")
def exported(made: Made) -> Path:
    """A small classifier's stream."""
    return made("small-stream.onnx", lambda path: export_stream(small(classifier(), *RULES).float(), path))


@pytest.mark.slow
def test_a_file_is_the_network_on_the_whole(exported: Path) -> None:
    network = small(classifier(), *RULES).float()
    runtime = StreamRuntime(exported)
    assert (runtime.frames, runtime.delay) == (2, 1)
    clip = torch.randn(2, 3, 14, 16, 16)
    with torch.no_grad():
        whole = outputs(network(clip))
    assert relative_error(whole[0], together(list(of_file(runtime, clip)), runtime.spec.leaves)[0]) < 1e-5


@pytest.mark.slow
def test_what_the_file_says_of_itself(exported: Path) -> None:
    model = onnx.load(exported)
    said = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "stream"))
    assert [one["name"] for one in said["outputs"]] == ["logits"]
    assert [one["input"] for one in said["state"]] == [value.name for value in model.graph.input][1:]
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input} == {"batch"}


@pytest.mark.slow
def test_bad_steps(exported: Path, tmp_path: Path) -> None:
    runtime = StreamRuntime(exported)
    state = runtime.start(1)
    with pytest.raises(FramesError, match="a step takes 2 frames"):
        runtime.step(torch.zeros(1, 3, 3, 16, 16), state)
    with pytest.raises(CheckpointError, match="onnxruntime fails"):
        runtime.step(torch.zeros(2, 3, 2, 16, 16), state)
    state["state_clock"][:, 1] = 1
    with pytest.raises(StreamError, match="the state was flushed"):
        runtime.flush(state)
    model = onnx.load(exported)
    next(entry for entry in model.metadata_props if entry.key == "stream").value = "{}"
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(CheckpointError, match="a damaged description of its stream"):
        StreamRuntime(tmp_path / "broken.onnx")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda said: said.update(delay=2.5), "a number is not whole"),
        (lambda said: said["outputs"][0].update(axis="1"), "a number is not whole"),
        (lambda said: said["state"][0].update(shape=[-4]), "a step or a state has no numbers"),
    ],
)
def test_damaged_descriptions(damage: Callable[[dict[str, Any]], None], says: str) -> None:
    spec = Spec(1, 2, None, (StateTensor("state_clock", "next_clock", (4,)),), (Output("logits", 1, 0, None),))
    assert Spec.loads(spec.dumps(), Path("net.onnx")) == spec
    damage(said := json.loads(spec.dumps()))
    with pytest.raises(CheckpointError, match=says):
        Spec.loads(json.dumps(said), Path("net.onnx"))


@pytest.mark.slow
def test_a_description_of_other_inputs(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    model.graph.input.append(onnx.helper.make_tensor_value_info("state_more", 1, ["batch", 3]))
    onnx.save(model, tmp_path / "more.onnx")
    with pytest.raises(CheckpointError, match="and its description of a stream differ in state_more"):
        StreamRuntime(tmp_path / "more.onnx")


@pytest.mark.slow
def test_a_disagreement_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = exporter.trace

    def wrong(*given: Any) -> Any:
        model = trace(*given)
        weight = next(value for name, value in model.graph.initializers.items() if name.endswith("5.bias"))
        weight.const_value = onnx_ir.tensor(weight.const_value.numpy() + 1)
        return model

    monkeypatch.setattr(exporter, "trace", wrong)
    with pytest.raises(ExportError, match="the exported stream differs from torch"):
        export_stream(small(classifier(), *RULES), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"top_k": 2}, {"window": 3}, {"int8": True}])
def test_options(options: dict[str, Any], tmp_path: Path) -> None:
    window = options.pop("window", None)
    done = export_stream(small(classifier(), *RULES).float(), tmp_path / "net.onnx", window, ExportOptions(**options))
    assert done.check.passed
    assert done.precision == ("int8" if "int8" in options else "float32")
    assert (done.agreement is None) == ("int8" not in options)
    assert StreamRuntime(tmp_path / "net.onnx").spec.window == window


@pytest.mark.slow
def test_dense_outputs(tmp_path: Path) -> None:
    network = small(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)), TEMPORAL, init="mean").float()
    export_stream(network, tmp_path / "net.onnx")
    runtime, clip = StreamRuntime(tmp_path / "net.onnx"), torch.randn(2, 3, 5, 16, 16)
    with torch.no_grad():
        whole = outputs(network(clip))
    assert relative_error(whole[0], together(list(of_file(runtime, clip)), runtime.spec.leaves)[0]) < 1e-5


@pytest.mark.slow
def test_a_file_keeps_types(tmp_path: Path) -> None:
    class Typed(nn.Module):
        """Flags and float64 values, which wait for a branch that looks ahead further."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = self.a(x)
            return self.b(x).double() + x.double(), x > 0

    network = small(Typed(), TEMPORAL).float()
    export_stream(network, tmp_path / "net.onnx")
    runtime, clip = StreamRuntime(tmp_path / "net.onnx"), torch.randn(2, 3, 5, 16, 16)
    with torch.no_grad():
        whole = outputs(network(clip))
    found = together(list(of_file(runtime, clip)), runtime.spec.leaves)
    assert [value.dtype for value in found] == [torch.float64, torch.bool]
    assert relative_error(whole[0], found[0]) < 1e-5
    assert torch.equal(whole[1], found[1])
    assert "TYPE_FP64" in config("typed", onnx.load(tmp_path / "net.onnx").graph, runtime.spec, False)


@pytest.mark.slow
def test_the_command_line(run: Run, tmp_path: Path) -> None:
    words = "inflate timm/test_resnet -r uniform --init mean -w random --size 32 -q -o net.safetensors"
    assert run(*words.split()).code == 0
    done = run(*"export net.safetensors --onnx --stream --uint8-input -o net.onnx --triton served".split())
    assert (done.code, "step by step" in done.out or "against the network" in done.out) == (0, True), done.err
    assert sorted(path.name for path in (tmp_path / "served").rglob("*") if path.is_file()) == [
        "config.pbtxt", "labels.txt", "model.onnx",
    ]  # fmt: skip
    assert "net.onnx equals its 2D network" in run("verify", "net.onnx").out
    assert "classify --stream" in run("classify", "net.onnx", "net.onnx").err
    assert "net.onnx averages all outputs" in run(*"classify net.onnx net.onnx --stream --window 3".split()).err
    assert "bench can't measure a stream" in run("bench", "net.onnx").err


@pytest.mark.slow
def test_a_checkpoint_and_its_file_name_the_same_classes(run: Run, tmp_path: Path) -> None:
    words = "inflate timm/test_resnet -r uniform --init mean -w random --size 32 --num-classes 3 -q -o net.safetensors"
    assert run(*words.split()).code == 0
    assert run(*"export net.safetensors --onnx --stream -q -o net.onnx".split()).code == 0
    (tmp_path / "classes.txt").write_text("left\nright\nstill\n")
    asked = ("--stream", "--classes", "classes.txt", "--fps", "3", "--top", "3", "--json")

    def best(*words: str) -> dict[str, float]:
        moments = json.loads(run("classify", *words).out)[0]["moments"]
        return {one["class"]: one["probability"] for one in moments[-1]["best"]}

    found = best("net.safetensors", CLIP, *asked)
    assert {*found} == {"left", "right", "still"}
    assert best("net.onnx", CLIP, *asked) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("export net.safetensors --safetensors --stream", "--stream needs --onnx"),
        ("export net.safetensors --onnx --stream --static", "--stream needs --onnx"),
        ("export net.safetensors --onnx --window 3", "--window needs --stream"),
        ("export net.safetensors --safetensors --triton served", "--triton needs --onnx"),
        ("classify net.safetensors clip.mp4 --window 3", "--window needs --stream"),
        ("classify net.safetensors clip.mp4 --stream --frames 3", "--frames can't be used with --stream"),
    ],
)
def test_wrong_usage(words: str, says: str, run: Run) -> None:
    done = run(*words.split())
    assert done.code == 2
    assert says in done.err


@pytest.mark.slow
def test_a_model_repository(exported: Path, tmp_path: Path) -> None:
    files = write_repository(exported, tmp_path / "small")
    assert [path.relative_to(tmp_path).as_posix() for path in files] == ["small/config.pbtxt", "small/1/model.onnx"]
    said = files[0].read_text()
    assert 'name: "small"' in said
    assert said.count("zero_data: true") == len(StreamRuntime(exported).spec.state)
    StreamRuntime(files[1])


@pytest.mark.outside
def test_the_server_would_read_it(exported: Path, tmp_path: Path) -> None:
    """By the protobuf definition of its configuration; the server itself does not run here."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    definition = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    spec = StreamRuntime(exported).spec
    graph = onnx.load(exported).graph
    read = text_format.Parse(config("small", graph, spec, True), definition.ModelConfig())
    assert (read.name, read.backend, read.max_batch_size) == ("small", "onnxruntime", 32)
    assert [list(one.dims) for one in read.input] == [[3, 2, 16, 16]]
    assert [(one.name, one.label_filename) for one in read.output] == [("logits", "labels.txt")]
    states = read.sequence_batching.state
    assert [one.input_name for one in states] == [one.input for one in spec.state]
    assert all(one.initial_state[0].zero_data and one.initial_state[0].dims == one.dims for one in states)
    plain = text_format.Parse(config("plain", graph, None, False), definition.ModelConfig())
    assert plain.HasField("dynamic_batching")
    assert len(plain.input) == len(graph.input)
