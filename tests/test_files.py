"""Files that were written stay readable, and the same command writes the same bytes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from i3dconvert import inflate, load
from i3dconvert.checkpoint import SCHEMA, filled, read
from i3dconvert.verification import Settings, verify
from tests.conftest import Run

DATA = Path(__file__).parent / "data"


class Tokens(nn.Module):
    """Patches that attend to one another."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv, self.head = nn.Conv2d(3, 8, 4, 32), nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens).unsqueeze(1).chunk(3, -1)
        scores: Tensor = self.head(scaled_dot_product_attention(query, key, value).flatten(1, 2).mean(1))
        return scores


def normed() -> nn.Module:
    """With a norm over space."""
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU())
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


def model(schema: int) -> nn.Module:
    """The 2D network of the kept files: what each of them holds is this, inflated with `mean`.

    In 2 with attention over all frames and a time embedding, in 3 with a norm within each frame, in 4 with a new head,
    in 5 from a module in memory that a name builds.
    """
    torch.manual_seed(0)
    if schema == 3:
        return normed()
    if schema == 2:
        return Tokens().eval()
    body = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4, 3 if schema == 4 else 2)).eval()


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_a_file_of_every_schema_still_loads(schema: int) -> None:
    path = DATA / f"schema{schema}.safetensors"
    document, state = read(path)
    assert document.schema == schema
    assert document.inflation.style.init == "mean"
    network = load(path, model(schema))
    assert verify(model(schema), network, Settings(frames=4)).passed
    state[min(state)] += 1
    assert not verify(model(schema), filled(network, state, path), Settings(frames=4)).passed


def test_a_file_from_before_norms_within_frames_keeps_its_meaning() -> None:
    """Which `c2d` with a GroupNorm had over all frames of a clip; by now the recipe in the file says otherwise."""
    clip = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    document, _ = read(DATA / "c2d_of_schema1.safetensors")
    assert document.schema == 1
    with torch.no_grad():
        found = load(DATA / "c2d_of_schema1.safetensors", normed())(clip)
        along_time = inflate(normed(), "uniform", size=16)(clip)  # whose taps beside the middle are zeros
        within = inflate(normed(), "c2d", size=16)(clip)
        assert torch.allclose(found, along_time, atol=1e-6)
        assert not torch.allclose(found, within, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["", "--int8 --static"])
def test_the_same_command_writes_the_same_bytes(words: str, run: Run) -> None:
    for name in ("a", "b"):
        inflated = run("inflate", "squeezenet1_1", "-w", "random", "-s", 64, "-o", f"{name}.safetensors")
        assert inflated.code == 0, inflated.err
        exported = run("export", f"{name}.safetensors", "--onnx", "-o", f"{name}.onnx", *words.split())
        assert exported.code == 0, exported.err
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
