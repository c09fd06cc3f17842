"""Time embeddings: the order of frames that they add, and the lengths that they fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert import inflate
from i3dconvert.errors import RecipeError
from i3dconvert.lift.describe import describe, order_seen
from i3dconvert.lift.network import Network3d
from i3dconvert.recipes import preset
from i3dconvert.verification import Settings, verify
from tests.lift.test_attention import PROOF, STILL, Own, build


def shuffled(network: Network3d, size: int) -> float:
    """How far the scores of a moving clip are from those of its frames in another order."""
    clip = torch.randn(1, 3, 4, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return float((network(clip) - network(clip[:, :, [2, 0, 3, 1]])).abs().max())


@pytest.mark.parametrize("kind", ["zeros", "sinusoidal-learned"])
def test_order_is_told_by_a_time_embedding_once_it_is_trained(kind: str) -> None:
    model, size = build("vit_tiny_patch16_224")
    told = preset("c2d").with_rules(STILL.rules)
    blind = inflate(model, told, size=size)
    assert shuffled(blind, size) < 1e-4
    assert "can't tell their order" in order_seen(describe(blind), "none")
    network = inflate(model, told, size=size, time_embedding=kind)
    report = verify(model, network, PROOF)
    assert report.passed, report.reason
    assert network.state_dict().keys() - blind.state_dict().keys() == {"patch_embed.proj_time.table"}
    assert "a time embedding" in order_seen(describe(network), kind)
    network(torch.randn(1, 3, 4, size, size)).sum().backward()
    table = network.get_parameter("patch_embed.proj_time.table")
    assert table.shape == (192, 16)
    assert table.grad is not None
    assert table.grad.abs().sum() > 0
    with torch.no_grad():
        table.copy_(torch.randn(table.shape))
    assert shuffled(network, size) > 1e-2
    assert not verify(model, network, PROOF).passed


def test_sinusoids_are_those_of_the_frames_number() -> None:
    from i3dconvert.lift.modules import SinusoidalTime

    embedding = SinusoidalTime(2, 16).double()
    with torch.no_grad():
        embedding.table[0, 3] = 1.0  # the fourth sine
        embedding.table[1, 8] = 1.0  # the first cosine
        row = embedding(torch.zeros(1, 2, 40, 1, 1, dtype=torch.float64))[0, :, :, 0, 0]
    place = torch.arange(40.0, dtype=torch.float64)
    assert torch.allclose(row, torch.stack((torch.sin(place * 10000 ** (-3 / 8)), torch.cos(place))), atol=1e-12)


@pytest.mark.parametrize("frames", [1, 2, 16, 31, 40])
def test_a_time_embedding_is_stretched_over_the_clip(frames: int) -> None:
    from i3dconvert.lift.modules import TimeEmbedding

    embedding = TimeEmbedding(2, 16)
    with torch.no_grad():
        embedding.table.copy_(torch.arange(16.0).expand(2, 16))
        row = embedding(torch.zeros(1, 2, frames, 1, 1))[0, 0, :, 0, 0]
    expected = torch.linspace(0, 15, frames) if frames > 1 else torch.zeros(1)
    assert torch.allclose(row, expected, atol=1e-5)


def test_a_time_embedding_needs_a_layer_over_images() -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(12, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = F.unfold(x, 2, stride=2).transpose(1, 2)
            attended: Tensor = self.attend(tokens, tokens, tokens, need_weights=False)[0].mean(1)
            return attended

    model = Pixels().eval()
    assert verify(model, inflate(model, STILL, size=8), Settings(frames=3, size=8)).passed
    with pytest.raises(RecipeError, match="no layer over images before the attention"):
        inflate(model, STILL, size=8, time_embedding="zeros")


def test_a_time_embedding_goes_behind_a_layer_with_weights() -> None:
    model = Own("plain").eval()
    model.stem = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.MaxPool2d(2))  # type: ignore[assignment]
    network = inflate(model, STILL, size=16, time_embedding="zeros")
    assert "stem.0_time.table" in network.state_dict()
    report = verify(model, network, Settings(frames=3, size=16, dtypes=(torch.float64,)))
    assert report.passed, report.reason
