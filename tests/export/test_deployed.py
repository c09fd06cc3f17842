"""What deployment puts around a network: decoded frames, best classes, narrower weights."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from i3dconvert import export_onnx, inflate, save
from i3dconvert.backbones import Origin, Source
from i3dconvert.checkpoint import KEY
from i3dconvert.errors import ExportError, MediaError, VerificationError
from i3dconvert.export.runtime import PRECISION, Runtime
from i3dconvert.inflation import inflate_loaded
from i3dconvert.lift.network import Network3d
from i3dconvert.verification import Settings, verify_file
from i3dconvert.video.media import read_clips
from i3dconvert.video.preprocessing import Preprocessing
from tests.conftest import Run

SIZE = 64


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Origin]:
    return Source("squeezenet1_1", "random", size=SIZE).load()


@pytest.fixture
def network(small: tuple[nn.Module, Origin]) -> Network3d:
    return inflate_loaded(*small)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


def video(path: Path, count: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(count):
            pixels = np.full((96, 128, 3), 10 * index % 256, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("optimize", [False, True])
def test_decoded_frames_in_best_classes_out(
    optimize: bool, network: Network3d, small: tuple[nn.Module, Origin], tmp_path: Path
) -> None:
    done = export_onnx(network, tmp_path / "net.onnx", optimize=optimize, uint8_input=True, top_k=3)
    assert (done.input, done.shape[::4]) == ("frames", ("batch", 3))
    images = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    scores, classes = Runtime(done.path)(images.unsqueeze(1).repeat(1, 5, 1, 1, 1))
    mean, std = (torch.tensor(values) for values in (small[1].preprocessing.mean, small[1].preprocessing.std))
    with torch.no_grad():
        best = small[0](((images / 255 - mean) / std).permute(0, 3, 1, 2)).softmax(-1).topk(3)
    assert torch.equal(classes, best.indices)
    assert torch.allclose(scores, best.values, rtol=1e-4)
    (cat,) = pictures(tmp_path / "pictures", 1).iterdir()
    report = verify_file(done.path, Settings(frames=4, images=(cat,)))
    assert report.passed, report.reason
    assert len(report.pictures[0].classes3d) == 3


@pytest.mark.slow
def test_a_wrong_normalisation_is_seen(network: Network3d, tmp_path: Path) -> None:
    done = export_onnx(network, tmp_path / "net.onnx", static=True, uint8_input=True, top_k=3)
    model = onnx.load(done.path)
    entry = next(entry for entry in model.metadata_props if entry.key == KEY)
    document = json.loads(entry.value)
    document["origin"]["preprocessing"]["mean"] = [0.5, 0.5, 0.5]
    entry.value = json.dumps(document)
    onnx.save(model, tmp_path / "other.onnx")
    assert verify_file(done.path).passed
    assert not verify_file(tmp_path / "other.onnx").passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"top_k": 3}, "it returns the best classes only"),
        ({}, "no checkpoint with its weights is in the same folder"),
        ({"int8": True}, "int8 has no tolerance; set --tolerance"),
    ],
)
def test_why_a_trained_file_is_not_compared(
    options: dict[str, Any], why: str, network: Network3d, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    done = export_onnx(network, tmp_path / "net.onnx", static=True, finetuned=True, **options)
    if options:
        save(network, tmp_path / "net.safetensors", finetuned=True)
    assert f"not compared with torch: {why}" in verify_file(done.path).notes


@pytest.mark.slow
def test_bfloat16_halves_the_file_and_computes_in_float32(network: Network3d, tmp_path: Path) -> None:
    full = export_onnx(network, tmp_path / "full.onnx", static=True)
    half = export_onnx(network, tmp_path / "half.onnx", static=True, dtype=torch.bfloat16)
    assert half.path.stat().st_size < 0.55 * full.path.stat().st_size
    graph = onnx.load(half.path).graph
    assert {t.data_type for t in graph.initializer if len(t.dims) > 3} == {onnx.TensorProto.BFLOAT16}
    assert half.check.error is not None
    assert 1e-4 < half.check.error <= 5e-2
    assert verify_file(half.path).passed
    assert not verify_file(half.path, Settings(tolerance=1e-5)).passed


@pytest.mark.slow
def test_int8_on_frames_of_ones_own(network: Network3d, tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures", 32)
    done = export_onnx(network, tmp_path / "net.onnx", optimize=True, int8=True, calibrate=source)
    assert done.warning is None
    assert done.agreement is not None
    model = onnx.load(done.path)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert {t.data_type for t in model.graph.initializer if len(t.dims) == 4} == {onnx.TensorProto.INT8}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata[PRECISION] == "int8"
    assert KEY in metadata
    assert not [file for file in tmp_path.iterdir() if file not in (source, done.path)]
    with pytest.raises(VerificationError, match="computes in int8"):
        verify_file(done.path)
    assert verify_file(done.path, Settings(tolerance=0.5)).passed
    assert not verify_file(done.path, Settings(tolerance=1e-6)).passed


@pytest.mark.slow
def test_int8_of_features_is_told_by_their_cosine(tmp_path: Path, run: Run) -> None:
    words = "inflate resnet18 -w random --no-head --size 64 -o net.safetensors -q"
    assert run(*words.split()).code == 0
    pictures(tmp_path / "pictures", 16)
    said = run(*"export net.safetensors --onnx --int8 --calibrate pictures -o net.onnx".split()).out
    found = re.search(
        r"cosine similarity to float32's is (0\.\d{4}|1\.0000) on the calibration clips", said.replace("\n", " ")
    )
    assert found is not None
    assert 0.9 < float(found[1]) <= 1
    assert "top class" not in said


def test_clips_are_consecutive_frames(tmp_path: Path) -> None:
    plain = Preprocessing(64, 64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    clips = read_clips(video(tmp_path / "ramp.mp4", 25), plain, frames=8, most=2)
    assert clips.shape == (2, 3, 8, 64, 64)
    means = (clips.mean((1, 3, 4)) * 25.5).flatten()
    assert means.round().tolist() == list(range(16))
    assert read_clips(pictures(tmp_path / "pictures", 9), plain, frames=4, most=9).shape == (2, 3, 4, 64, 64)


def test_frames_that_can_not_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    short = pictures(tmp_path / "short", 3)
    for source, message in (
        (tmp_path / "empty", "no pictures in"),
        (tmp_path / "text.mp4", r"can't read the video .*text\.mp4"),
        (tmp_path / "absent.mp4", "there is no file"),
        (short, "has 3 frames; a clip needs 16"),
    ):
        with pytest.raises(MediaError, match=message):
            read_clips(source, Preprocessing(), frames=16, most=1)


def test_what_does_not_go_together_is_refused(network: Network3d, tmp_path: Path) -> None:
    dense = inflate(nn.Sequential(nn.Conv2d(3, 4, 3)), size=16)
    for net, options, message in (
        (dense, {"top_k": 1}, "only a classifier"),
        (network, {"top_k": 1001}, "top_k must be from 1 to 1000, not 1001"),
        (dense, {"uint8_input": True}, "no preprocessing"),
        (network, {"int8": True, "dtype": torch.float16}, "with int8"),
    ):
        with pytest.raises(ExportError, match=message):
            export_onnx(net, tmp_path / "net.onnx", **options)
    assert not any(tmp_path.iterdir())


def test_preprocessing_decodes_what_it_encodes() -> None:
    frames = torch.randint(0, 256, (2, 3, 5, 6, 3), dtype=torch.uint8)
    assert torch.equal(Preprocessing().decode(Preprocessing().encode(frames)), frames)
    other = dataclasses.replace(Preprocessing(), mean=(0.6, 0.456, 0.406))
    assert not torch.equal(other.decode(Preprocessing().encode(frames)), frames)


@pytest.mark.slow
def test_the_command_line_says_what_it_did(run: Run, checkpoint: Path) -> None:
    for words, code, message in (
        (("--calibrate", "x.mp4"), 2, "--calibrate needs --int8"),
        (("--int8", "--calibrate", "x.mp4"), 1, "there is no file x.mp4"),
        (("--top-k", 0), 2, "--top-k"),
    ):
        done = run("export", checkpoint, "--onnx", "-o", "net.onnx", *words)
        assert (done.code, "Traceback" in done.err) == (code, False)
        assert message in done.err
    done = run("export", checkpoint, "--safetensors", "--int8", "-o", "net.safetensors")
    assert done.code == 2
    done = run("export", checkpoint, "--onnx", "-o", "net.onnx", "--static", "--int8", "--top-k", 2)
    assert done.code == 0, done.err
    assert "warning: calibrated on noise" in done.err
    assert "int8: the top class equals float32's on" in done.out
