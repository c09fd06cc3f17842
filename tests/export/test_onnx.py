"""ONNX: equal to the 2D network in onnxruntime, dynamic where it says so, and checked before it is put in place."""

import json
from pathlib import Path

import onnx
import onnx_ir
import pytest
import torch
from torch import nn

from i3dconvert import export_onnx, inflate
from i3dconvert.backbones import Origin, Source
from i3dconvert.comparison.forward import relative_error, replicated
from i3dconvert.errors import CheckpointError, ExportError
from i3dconvert.export import onnx as exporter
from i3dconvert.export.attention import ATTENTION, EXPLICIT, OPERATOR
from i3dconvert.export.runtime import CLASSES, Runtime, read_document
from i3dconvert.export.seal import SEAL, broken, seal
from i3dconvert.export.wire import add_metadata, read, write
from i3dconvert.inflation import Options, inflate_loaded
from i3dconvert.verification import Settings, verify_file
from tests.lift.test_attention import STILL
from tests.lift.test_fused_attention import Windows

SWEPT = (
    "googlenet resnet101 resnet152 densenet121 densenet161 densenet169 densenet201 convnext_tiny swin_t vit_b_32 "
    "mobilenet_v3_small vgg11 timm/tf_efficientnet_lite0"
).split()


@pytest.mark.parametrize(
    ("name", "optimize"),
    [
        pytest.param("resnet50", True, marks=pytest.mark.sweep),
        pytest.param("resnet18", False, marks=pytest.mark.slow),
        *(pytest.param(name, form, marks=pytest.mark.sweep) for name in SWEPT for form in (True, False)),
    ],
)
def test_onnxruntime_gives_what_the_2d_network_gives(name: str, optimize: bool, tmp_path: Path) -> None:
    model, origin = Source(name, "random").load()
    done = export_onnx(inflate_loaded(model, origin), tmp_path / "net.onnx", optimize=optimize)
    graph = onnx.load(done.path).graph
    axes = {tensor.name: len(tensor.dims) - 2 for tensor in graph.initializer}
    kernels = {axes[node.input[1]] for node in graph.node if node.op_type == "Conv"}
    assert kernels == ({2} if optimize else {3})
    assert done.shape[:3] == ("batch", 3, "frames")
    assert done.check.error is not None
    assert done.check.error <= 1e-5
    report = verify_file(done.path, Settings(frames=17))
    assert report.passed, report.reason


def test_batch_frames_and_size_are_dynamic(exported: Path, resnet18: tuple[nn.Module, Origin]) -> None:
    runtime = Runtime(exported)
    assert list(runtime.shape) == ["batch", 3, "frames", "height", "width"]
    operators = {node.op_type for node in onnx.load(exported).graph.node}
    assert "MaxPool" in operators
    assert "BatchNormalization" not in operators
    for batch, frames, size in ((1, 1, 64), (3, 17, 96)):
        images = torch.randn(batch, 3, size, size)
        (logits,) = runtime(replicated(images, frames))
        with torch.no_grad():
            assert relative_error(resnet18[0](images), logits) <= 1e-5


def test_metadata_says_what_a_runtime_needs(exported: Path) -> None:
    document = read_document(exported)
    assert document.origin is not None
    assert document.origin.preprocessing.size == 64
    metadata = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
    classes = json.loads(metadata[CLASSES])
    assert len(classes) == 1000
    assert "espresso" in classes


def test_no_path_of_this_machine_is_in_the_file(exported: Path) -> None:
    graph = onnx.load(exported).graph
    assert not any(node.metadata_props or node.doc_string for node in graph.node)
    assert b"site-packages" not in exported.read_bytes()


@pytest.mark.slow
def test_static_half_precision_and_opset(tmp_path: Path, resnet18: tuple[nn.Module, Origin]) -> None:
    network = inflate_loaded(*resnet18, Options("c2d"))
    done = export_onnx(network, tmp_path / "net.onnx", static=True, dtype=torch.float16, opset=21)
    assert done.shape == (1, 3, 16, 64, 64)
    assert done.opset == 21
    assert Runtime(done.path).dtype == torch.float16
    assert next(network.parameters()).dtype == torch.float32


@pytest.mark.parametrize("opset", [7, 99])
def test_an_opset_that_is_not_to_be_had_is_refused(opset: int, tmp_path: Path) -> None:
    network = inflate(nn.Sequential(nn.Conv2d(3, 4, 3)), size=16)
    with pytest.raises(ExportError, match=f"no opset {opset}"):
        export_onnx(network, tmp_path / "net.onnx", opset=opset)


@pytest.mark.slow
def test_uneven_and_replicated_padding_export(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.AvgPool2d(3, 1, 1))
    network = inflate(model, "volumetric", "mean", size=32).eval()
    assert export_onnx(network, tmp_path / "net.onnx").check.passed


class Spectrum(nn.Conv2d):
    """Adds nothing to a spectrum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.fft.rfft2(super().forward(x))
        return torch.fft.irfft2(found + torch.zeros_like(found)).mean((2, 3))


class Middle(nn.Conv2d):
    """The median over each map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).flatten(2).median(dim=2).values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "said"), [(Spectrum, "no ONNX form of zeros_like for complex numbers; use"), (Middle, "of median; use")]
)
def test_an_operation_that_onnx_lacks_is_named(layer: type[nn.Conv2d], said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        export_onnx(inflate(layer(3, 4, 3), size=16), tmp_path / "net.onnx")


def test_a_disagreement_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = exporter.trace

    def wrong(network: nn.Module, *rest: object) -> object:
        program = trace(network, *rest)  # type: ignore[arg-type]
        bias = next(value for key, value in program.graph.initializers.items() if key.endswith("bias"))
        bias.const_value = onnx_ir.tensor(bias.const_value.numpy() + 1)
        return program

    monkeypatch.setattr(exporter, "trace", wrong)
    with pytest.raises(ExportError, match="does not agree"):
        export_onnx(inflate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tensors_past_the_limit_go_beside_the_graph(
    tmp_path: Path, resnet18: tuple[nn.Module, Origin], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = inflate_loaded(*resnet18, Options("c2d"))
    first = export_onnx(network, tmp_path / "net.onnx", static=True, external_data=True)
    assert first.path.stat().st_size < 1 << 20
    assert verify_file(first.path, Settings()).passed
    with pytest.raises(ExportError, match="combined with --external-data"):
        export_onnx(network, tmp_path / "int8.onnx", int8=True, external_data=True)
    mine = tmp_path / "net.onnx.mine.data"
    mine.write_text("kept")
    network.get_parameter("fc.bias").data += 1
    monkeypatch.setattr("i3dconvert.export.placing._EXTERNAL_BYTES", 1 << 20)
    second = export_onnx(network, tmp_path / "net.onnx", static=True, force=True, finetuned=True)
    assert first.files[0] != second.files[0]
    assert sorted(tmp_path.iterdir()) == sorted([*second.files, mine])


def test_tensors_outside_the_folder_are_refused(
    tmp_path: Path, resnet18: tuple[nn.Module, Origin], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("i3dconvert.export.placing._EXTERNAL_BYTES", 1 << 20)
    done = export_onnx(inflate_loaded(*resnet18, Options("c2d")), tmp_path / "net.onnx", static=True)
    inside = done.files[0].name
    (tmp_path / "model").mkdir()
    model = onnx.load(done.path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = f"../{inside}" if entry.key == "location" else entry.value
    onnx.save(model, tmp_path / "model" / "net.onnx")
    with pytest.raises(CheckpointError, match="not a valid ONNX file"):
        verify_file(tmp_path / "model" / "net.onnx")


def test_verify_sees_a_damaged_onnx_file(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    tensor = next(t for t in model.graph.initializer if t.name == "fc.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values *= 1.001
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    model.metadata_props.remove(next(entry for entry in model.metadata_props if entry.key == SEAL))
    onnx.save(model, tmp_path / "damaged.onnx")
    seal(tmp_path / "damaged.onnx")
    report = verify_file(tmp_path / "damaged.onnx", Settings(frames=2, size=64))
    assert report.reason.startswith("forward equality")


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "form"), [(None, EXPLICIT), (23, OPERATOR)])
def test_a_file_says_how_it_computes_attention_which_follows_from_its_opset(
    opset: int | None, form: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = inflate(Windows("all").eval(), STILL, size=16)
    done = export_onnx(network, tmp_path / "net.onnx", opset=opset)
    graph = onnx.load(done.path)
    assert {entry.key: entry.value for entry in graph.metadata_props}[ATTENTION] == form
    assert ("Attention" in {node.op_type for node in graph.graph.node}) is (form == OPERATOR)
    assert "the graph is only for height 16, width 16" in str(done.warning)
    assert done.check.error is not None
    assert done.check.error <= 1e-5
    for frames in (3, 8):
        clip = torch.randn(2, 3, frames, 16, 16)
        with torch.no_grad():
            assert relative_error(network(clip), Runtime(done.path)(clip)[0]) <= 1e-5


def test_a_file_is_written_and_read_tensor_by_tensor(tmp_path: Path) -> None:
    """onnx reads what we write, we read what onnx writes, and a file that ends early is an error, not a hang."""
    kinds = [torch.float32, torch.float16, torch.int64, torch.bool]
    values = {f"tensor{i}": torch.arange(300 * i).reshape(i, 300).to(kind) for i, kind in enumerate(kinds)}
    graph = onnx_ir.Graph([], [], nodes=[], name="graph", opset_imports={"": 20})
    for name, value in values.items():
        graph.register_initializer(onnx_ir.Value(name=name, const_value=onnx_ir.tensor(value)))
    write(onnx_ir.Model(graph, ir_version=10), tmp_path / "ours.onnx")
    add_metadata(tmp_path / "ours.onnx", "key", "x" * 300)
    model = onnx.load(tmp_path / "ours.onnx")
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("key", "x" * 300)]
    for tensor in model.graph.initializer:
        assert (onnx.numpy_helper.to_array(tensor) == values[tensor.name].numpy()).all()
    onnx.save(model, tmp_path / "theirs.onnx")
    rest, tensors = read(tmp_path / "theirs.onnx")
    assert not rest.graph.initializer
    assert {name: bytes(one) for name, one in tensors.items()} == {
        tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer
    }
    whole = (tmp_path / "ours.onnx").read_bytes()
    for length in (1, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"."):
            read(tmp_path / "cut.onnx")


def stored_in_one_tensor(folder: Path, tensor: onnx.TensorProto) -> Path:
    graph = onnx.GraphProto(name="graph", initializer=[tensor])
    onnx.save(onnx.ModelProto(ir_version=10, graph=graph), folder / "net.onnx")
    seal(folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize("before", [1, 0], ids=["the length of a name", "a name"])
def test_garbage_in_a_tensor_is_an_error_of_ours(before: int, tmp_path: Path) -> None:
    place = onnx.StringStringEntryProto(key="location", value="net.data")
    tensor = onnx.TensorProto(name="tensor", data_location=onnx.TensorProto.EXTERNAL, external_data=[place])
    (tmp_path / "net.data").write_bytes(b"values")
    path = stored_in_one_tensor(tmp_path, tensor)
    assert broken(path) == []
    inside = path.read_bytes()
    at = inside.index(b"net.data") - before
    path.write_bytes(inside[:at] + b"\xff" + inside[at + 1 :])
    with pytest.raises(CheckpointError, match="can't be read"):
        broken(path)


def test_a_sealed_file_can_be_written_again(tmp_path: Path) -> None:
    """By onnx and by onnx_ir, which sort what they write in their own ways."""
    network = inflate(nn.Sequential(nn.Conv2d(3, 4, 3)), size=16)
    path, again = export_onnx(network, tmp_path / "net.onnx", static=True).path, tmp_path / "again.onnx"
    onnx.save(onnx.load(path), again)
    assert broken(again) == []
    onnx_ir.save(onnx_ir.load(path), again)
    assert broken(again) == []
