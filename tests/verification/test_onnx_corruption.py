"""An exported file that changed since it was written is caught, and the tensor named."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy
import onnx
import pytest
from onnx import numpy_helper

from i3dconvert import export_onnx
from i3dconvert.backbones import Source
from i3dconvert.errors import CheckpointError
from i3dconvert.export.seal import SEAL
from i3dconvert.inflation import inflate_loaded
from i3dconvert.verification import Settings, verify_file

NETWORKS = (
    "squeezenet1_1",
    pytest.param("resnet50", marks=pytest.mark.slow),
    pytest.param("densenet121", marks=pytest.mark.sweep),
)
QUICK = Settings()

Array = numpy.ndarray
Corruption = Callable[[Array, random.Random], None]


def one_element(array: Array, chance: random.Random) -> None:
    flat = array.reshape(-1)
    flat[chance.choice(flat.nonzero()[0].tolist())] *= 1.001


def one_bit(array: Array, chance: random.Random) -> None:
    data = array.reshape(-1).view(numpy.uint8)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def two_filters(array: Array, chance: random.Random) -> None:
    first, second = chance.sample(range(len(array)), 2)
    array[[first, second]] = array[[second, first]]


def two_columns(array: Array, chance: random.Random) -> None:
    first, second = chance.sample(range(array.shape[1]), 2)
    array[:, [first, second]] = array[:, [second, first]]


def another_seed(array: Array, chance: random.Random) -> None:
    array[:] = numpy.random.default_rng(chance.randrange(99)).normal(size=array.shape)


CORRUPTIONS: tuple[Corruption, ...] = (one_element, one_bit, two_filters, two_columns, another_seed)


@pytest.fixture(scope="module", params=NETWORKS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, origin = Source(request.param, "random", size=32).load()
    path = tmp_path_factory.mktemp(request.param) / "net.onnx"
    return export_onnx(inflate_loaded(model, origin), path, static=True).path


def caught(path: Path) -> str:
    report = verify_file(path, QUICK)
    assert not report.passed
    return report.reason


def corrupted(sound: Path, corruption: Corruption, chance: random.Random) -> tuple[str, str]:
    """The initialiser that was changed, and what was said."""
    model = onnx.load(sound)
    tensor = chance.choice([tensor for tensor in model.graph.initializer if min((*tensor.dims, 0)[:2]) > 1])
    array = numpy_helper.to_array(tensor).copy()
    corruption(array, chance)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = sound.with_name("corrupted.onnx")
    onnx.save(model, path)
    return tensor.name, caught(path)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_corruption_is_caught_and_named(corruption: Corruption, sound: Path) -> None:
    name, said = corrupted(sound, corruption, random.Random(0))
    assert name in said


@pytest.mark.sweep
def test_five_hundred_of_each_network_are_caught(sound: Path) -> None:
    chance = random.Random(1)
    for index in range(500):
        name, said = corrupted(sound, CORRUPTIONS[index % len(CORRUPTIONS)], chance)
        assert name in said


def test_sound_files_pass(sound: Path) -> None:
    report = verify_file(sound, QUICK)
    assert report.passed, report.reason


def test_the_graph_and_its_metadata_are_sealed(sound: Path) -> None:
    path = sound.with_name("corrupted.onnx")
    model = onnx.load(sound)
    node = next(node for node in model.graph.node if node.op_type in ("MaxPool", "AveragePool", "Relu"))
    node.name += "!"
    onnx.save(model, path)
    assert "the graph or its metadata" in caught(path)
    model = onnx.load(sound)
    entry = next(entry for entry in model.metadata_props if entry.key == "precision")
    entry.value = "float16"
    onnx.save(model, path)
    assert "the graph or its metadata" in caught(path)


def test_a_file_without_a_seal_is_refused(sound: Path) -> None:
    path = sound.with_name("unsealed.onnx")
    model = onnx.load(sound)
    for entry in [entry for entry in model.metadata_props if entry.key == SEAL]:
        model.metadata_props.remove(entry)
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="has no seal"):
        verify_file(path, QUICK)


@pytest.mark.slow
def test_tensors_beside_the_graph_are_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("i3dconvert.export.placing._EXTERNAL_BYTES", 0)
    network = inflate_loaded(*Source("resnet18", "random", size=32).load())
    done = export_onnx(network, tmp_path / "net.onnx", static=True)
    (data,) = (file for file in done.files if file.suffix == ".data")
    assert verify_file(done.path, QUICK).passed
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    tensors = onnx.load(done.path, load_external_data=False).graph.initializer
    spans = {t.name: [int(e.value) for e in t.external_data if e.key in ("offset", "length")] for t in tensors}
    (hit,) = (name for name, span in spans.items() if span and span[0] <= len(content) // 2 < span[0] + span[1])
    assert hit in caught(done.path)
