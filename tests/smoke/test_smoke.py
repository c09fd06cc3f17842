"""The main job from end to end, with nothing installed but what it needs: for other systems and other versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param("resnet18", marks=pytest.mark.sweep),  # README.md has it
        "shufflenet_v2_x0_5",
        pytest.param("timm/mobilenetv3_small_050", marks=pytest.mark.sweep),
        "timm/vit_tiny_patch16_224",
    ],
)
def test_inflate_verify_export_verify(backbone: str, run: Run) -> None:
    for words in (
        ("inflate", backbone, "-w", "random", "-o", "net.safetensors"),
        ("verify", "--frames", 8),
        ("inspect",),
        ("export", "--onnx"),
        ("verify", "net.onnx", "--frames", 8),
    ):
        result = run(*words)
        assert result.code == 0, (words, result.err)


def test_folder_report_and_a_film(run: Run) -> None:
    import av
    import numpy as np

    with av.open("film.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for index in range(24):
            picture = np.full((128, 160, 3), 10 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    for words in (
        ("inflate", "resnet18", "-w", "random", "-o", "net.safetensors"),
        ("export", "net.safetensors", "--hub", "net", "--uint8-input", "--top-k", 3),
        ("verify", "net", "--frames", 4),
        ("report", "net.safetensors", "net/model.onnx", "--frames", 4, "-o", "page.html"),
        ("classify", "net/model.onnx", "film.mp4", "--plot", "line.svg"),
        ("bench", "net/model.onnx", "--runtime", "onnx", "--frames", 4, "--runs", 2),
    ):
        result = run(*words)
        assert result.code == 0, (words, result.err)
    moments = json.loads(run("classify", "net/model.onnx", "film.mp4", "--json").out)[0]["moments"]
    assert len(moments) == 2
    assert "equal their 2D network" in Path("page.html").read_text(encoding="utf-8")
