"""examples/many_videos.py with Ray Data: killed half way and started again, each video is done once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import i3dconvert

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("ray")

ROOT = Path(__file__).parent.parent.parent
VIDEOS = 100
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def video(path: Path, grey: int) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rows(output: Path) -> Counter[str]:
    """How often each video stands in files that are whole."""
    found: Counter[str] = Counter()
    for file in output.glob("*.parquet"):
        try:
            found.update(Path(name).name for name in pq.read_table(file)["source"].to_pylist())
        except (ValueError, OSError):  # being written, or cut off
            continue
    return found


def test_killed_half_way_and_started_again_each_video_is_done_once(tmp_path: Path) -> None:
    videos, output, network = tmp_path / "videos", tmp_path / "out", tmp_path / "net.onnx"
    videos.mkdir()
    for index in range(VIDEOS):
        video(videos / f"{index:03}.mp4", 2 * index)
    (videos / "050.mp4").write_bytes(b"no video")
    (tmp_path / "nets.py").write_text(NET)
    i3dconvert.export_onnx(i3dconvert.inflate(f"{tmp_path / 'nets.py'}:net", weights="random", size=32), network)
    words = [ROOT / "examples" / "many_videos.py", network, videos, output, "--workers", "2", "--at-once", "2"]
    command = [sys.executable, *map(str, words)]

    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 240
    while sum(rows(output).values()) < VIDEOS // 2 and first.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    half = sum(rows(output).values())
    assert VIDEOS // 2 <= half < VIDEOS
    (output / "cut.parquet").write_bytes(b"PAR1")  # as a kill in the middle of writing leaves it

    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    told = int(again.stdout.partition(" videos, ")[2].split()[0])
    assert half <= told < VIDEOS
    assert rows(output) == {f"{index:03}.mp4": 1 for index in range(VIDEOS)}
    table = pq.read_table(output).to_pylist()
    failed = [row for row in table if row["error"]]
    assert [Path(row["source"]).name for row in failed] == ["050.mp4"]
    assert all(len(row["classes"]) == 3 for row in table if not row["error"])
    third = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert third.stdout == f"{VIDEOS} videos, {VIDEOS} of them done before\n"
