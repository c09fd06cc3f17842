"""`bench` measures what it says it measures."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from i3dconvert.progress import Timed
from tests.conftest import Run

FACTORY = """
import torch
def net():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
"""


@pytest.mark.slow
def test_runtimes_side_by_side(run: Run) -> None:
    Path("nets.py").write_text(FACTORY)
    words = "bench nets.py:net --runtime eager,onnx --batch 2 -f 4 -s 32 --runs 3 --json --plot bars.svg".split()
    done = run(*words)
    assert done.code == 0, done.err
    eager, onnx = json.loads(done.out)
    assert [eager["case"]["runtime"], onnx["case"]["runtime"]] == ["eager", "onnx"]
    for result in (eager, onnx):
        assert result["gflops"] == pytest.approx(2 * 8 * 3 * 27 * 2 * 4 * 32 * 32 / 1e9)
        assert result["clips_per_second"] == pytest.approx(2 / result["seconds"])
        assert result["frames_per_second"] == pytest.approx(8 / result["seconds"])
        assert result["peak_memory"] > 0
    chart = ElementTree.parse("bars.svg").getroot()
    assert chart.tag.endswith("svg")
    assert "milliseconds" in Path("bars.svg").read_text()
    again = run("bench", "nets.py:net", "--plot", "bars.svg")
    assert (again.code, "bars.svg already exists" in again.err) == (1, True)


ATTENDING = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 56, 56)
        self.attend = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = torch.nn.Linear(8, 2)
    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.attend(tokens, tokens, tokens, need_weights=False)[0].mean(1))
"""


def test_what_attention_over_time_costs_stands_beside_its_arithmetic(run: Run) -> None:
    Path("nets.py").write_text(ATTENDING)
    done = run(*"bench nets.py:Net --attention 3 --attention 5 --runtime eager --runs 1 --json".split())
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(one["recipe"], one["frames"]) for one in found] == [("joint", 3), ("joint", 5)]
    tokens, channels = 16, 8
    products = 2 * 2 * tokens * tokens * channels
    layers = 2 * (tokens * channels * (3 * 56 * 56 + 4 * channels) + channels * 2)
    for one in found:
        assert one["arithmetic"] == pytest.approx(1 + (one["frames"] - 1) * products / (products + layers))
        assert one["ratio"] == pytest.approx(one["seconds"] / one["seconds_per_frame"])
        assert one["over"] == pytest.approx(one["ratio"] / one["arithmetic"])
    table = run(*"bench nets.py:Net --attention 3 --runtime eager --runs 1".split())
    assert "arithmetic: 1 + (T - 1) · A / F" in table.out
    assert run(*"bench net.onnx --attention 3".split()).code == 2


def test_attention_is_timed_at_the_size_that_is_given(run: Run) -> None:
    Path("nets.py").write_text(ATTENDING)
    words = "bench nets.py:Net --attention 3 --runtime eager --size 112 --runs 1 --json"
    (whole,) = json.loads(run(*words.split()).out)
    tokens, channels = 4, 8
    products = 2 * 2 * tokens * tokens * channels
    layers = 2 * (tokens * channels * (3 * 56 * 56 + 4 * channels) + channels * 2)
    assert whole["arithmetic"] == pytest.approx(1 + 2 * products / (products + layers))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("resnet18 --runtime eager,abacus", 2, "unknown runtime 'abacus'"),
        pytest.param(
            "absent.safetensors --runtime eager",
            1,
            "absent.safetensors in eager: there is no file",
            marks=pytest.mark.slow,
        ),
        ("resnet18 --plot bars.pdf", 1, "its name must end in .svg or .png"),
        ("resnet18 --attention 3 --runtime frames", 2, "the runtimes eager, compile, onnx"),
        ("resnet18 --attention 3 --dtype bfloat16", 2, "--attention runs onnx in float32"),
        ("resnet18 --attention 3 --plot bars.svg", 2, "--attention has no chart"),
        ("resnet18 --attention 3 --device cuda", 1, "torch finds no CUDA device"),
        ("resnet18 --device cuda", 1, "torch finds no CUDA device"),
        pytest.param("nonsense --runtime eager", 1, "nonsense in eager: there is no backbone", marks=pytest.mark.slow),
    ],
)
def test_what_is_refused(run: Run, words: str, code: int, message: str) -> None:
    done = run("bench", *words.split())
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_step_that_is_told_of_again_takes_the_sum_of_its_times() -> None:
    told: list[str] = []
    timed = Timed(lambda step, share=None: told.append(step))
    for step in ("tracing", "checking", "checking", "tracing"):
        timed(step)
    assert told == ["tracing", "checking", "checking", "tracing"]
    assert list(timed.seconds()) == ["tracing", "checking"]
    assert sum(timed.seconds().values()) > 0
