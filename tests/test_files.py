"""Files that were written stay readable, and the same command writes the same bytes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from i3dconvert import load
from i3dconvert.checkpoint import SCHEMA, filled, read
from i3dconvert.verification import Settings, verify
from tests.conftest import Run

DATA = Path(__file__).parent / "data"


def model() -> nn.Module:
    """The 2D network of the kept files: what each of them holds is this, inflated with `mean`."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_a_file_of_every_schema_still_loads(schema: int) -> None:
    path = DATA / f"schema{schema}.safetensors"
    document, state = read(path)
    assert document.inflation.style.init == "mean"
    network = load(path, model())
    assert verify(model(), network, Settings(frames=4)).passed
    state["0.bias"] += 1
    assert not verify(model(), filled(network, state, path), Settings(frames=4)).passed


@pytest.mark.parametrize("words", ["", "--no-optimize", "--int8 --static"])
def test_the_same_command_writes_the_same_bytes(words: str, run: Run) -> None:
    for name in ("a", "b"):
        inflated = run("inflate", "squeezenet1_1", "-w", "random", "-s", 64, "-o", f"{name}.safetensors")
        assert inflated.code == 0, inflated.err
        exported = run("export", f"{name}.safetensors", "--onnx", "-o", f"{name}.onnx", *words.split())
        assert exported.code == 0, exported.err
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
