"""Fused attention over several frames: it is the explicit form, drops in training, and says where it can't be."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from i3dconvert import inflate
from i3dconvert.errors import FramesError
from i3dconvert.lift.attention import groups as attention
from i3dconvert.lift.attention import joint
from i3dconvert.lift.describe import describe
from i3dconvert.lift.memory import COPIES, check_room
from i3dconvert.recipes import Recipe, Rule
from i3dconvert.verification import Settings, verify
from i3dconvert.weights import randomise
from tests.lift.test_attention import STILL, drawn


class Windows(nn.Module):
    """Attention in windows, as Swin spells it out, with what `how` names between the products."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.stem, self.qkv, self.head = how, nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 3)
        self.bias, self.heat = nn.Parameter(torch.randn(2, 5, 5)), nn.Parameter(torch.rand(2, 1, 1))
        self.token, self.drop = nn.Parameter(torch.randn(1, 1, 8)), nn.Dropout(0.5)
        self.register_buffer("mask", torch.randn(4, 5, 5) - 100.0 * (torch.rand(4, 5, 5) > 0.6))

    def forward(self, x: Tensor) -> Tensor:
        image = self.stem(x)
        batch, channels, height, width = image.shape
        windows = image.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
        windows = windows.reshape(-1, 4, channels)
        windows = torch.cat((self.token.expand(windows.shape[0], -1, -1), windows), 1)
        query, key, value = self.qkv(windows).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.how == "rotary":
            angle = torch.arange(5.0, dtype=query.dtype, device=query.device)[:, None] * 0.3
            query, key = (
                torch.cat((p[..., :2] * angle.cos() - p[..., 2:] * angle.sin(), p[..., 2:] * angle.cos()), -1)
                for p in (query, key)
            )
        kept = 3 if self.how == "fewer keys" else 5
        scores = query @ key[:, :, :kept].transpose(-2, -1) * 0.5
        if self.how in ("head scales", "all"):
            scores = scores * self.heat.clamp(max=0.9).exp()
        if self.how in ("bias", "all"):
            scores = scores + self.bias
        if self.how in ("window masks", "all"):
            scores = scores.view(batch, 4, 2, 5, 5) + self.mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, 2, 5, 5)
        if self.how == "filled":
            scores = scores.masked_fill(self.mask[0] < -50, float("-inf"))
        if self.how == "filled with a number":
            scores = scores.masked_fill(self.mask[0] < -50, -2.0)
        if self.how == "capped":
            scores = torch.tanh(scores)
        if self.how == "divided by":
            scores = 2.0 / (scores + 50)
        weights = scores.softmax(-1)
        if self.how == "dropout":
            weights = self.drop(weights)
        attended = (weights @ value[:, :, :kept]).transpose(1, 2).reshape(batch, -1, 8)
        result: Tensor = self.head(attended.mean(1))
        return result


@pytest.mark.parametrize(
    "how", ["plain", "bias", "head scales", "window masks", "filled", "all", "fewer keys", "rotary", "dropout"]
)
@pytest.mark.parametrize("span", ["all", 2])
def test_fused_is_the_explicit_form_on_moving_clips(how: str, span: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Windows(how).double().eval()
    recipe = Recipe("still", (Rule(kind="attention", span=span),))
    network = inflate(model, recipe, size=16).eval()
    (layer,) = (layer for layer in network.inflation.layers if layer.geometry.kind == "attention")
    assert not layer.apart
    with monkeypatch.context() as patch:
        patch.setattr(joint, "steps_of", lambda *_: (_ for _ in ()).throw(joint.NotFusedError("told so")))
        explicit = inflate(model, recipe, size=16).eval()
    assert [row.operation for row in describe(explicit) if "not fused: told so" in row.operation]
    clip = drawn(2, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.allclose(network(clip), explicit(clip), rtol=0, atol=1e-12)
    still = drawn(1, 3, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(network(still.expand(1, 3, 4, 16, 16)), model(still[:, :, 0]), rtol=0, atol=1e-12)
    for one in (network, explicit):
        one.zero_grad()
        one(clip).square().sum().backward()
    for name, parameter in explicit.named_parameters():
        found = network.get_parameter(name).grad
        if parameter.grad is not None and found is not None:
            assert torch.allclose(found, parameter.grad, rtol=0, atol=1e-11 * float(parameter.grad.abs().max() + 1))
        else:
            assert found is None or not found.any()
            assert parameter.grad is None or not parameter.grad.any()
    copied = pickle.loads(pickle.dumps(network))
    assert torch.equal(copied(clip), network(clip))


def test_fused_attention_drops_in_training_as_its_module_says() -> None:
    network = inflate(Windows("dropout").eval(), STILL, size=16)
    clip = torch.randn(1, 3, 2, 16, 16)
    assert torch.equal(network.eval()(clip), network(clip))
    network.train()
    assert not torch.equal(network(clip), network(clip))
    network.drop.p = 0.0
    assert torch.equal(network(clip), network(clip))
    network.drop = nn.Identity()
    assert torch.equal(network(clip), network.eval()(clip))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("capped", "tanh of its scores"),
        ("filled with a number", "its scores are filled with a value that is not negligible"),
        ("divided by", "truediv of its scores"),
    ],
)
def test_what_is_not_fused_says_so_and_is_exact(how: str, reason: str) -> None:
    model = Windows(how).double().eval()
    network = inflate(model, STILL, size=16)
    (row,) = (row for row in describe(network) if "Attention" in row.operation)
    assert row.operation == f"Attention (all frames, not fused: {reason})"
    still = drawn(1, 3, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(network(still.expand(1, 3, 4, 16, 16)), model(still[:, :, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["plain", "all"])
def test_a_fused_attention_holds_no_scores_of_all_pairs_of_frames(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **kwargs or {})
            for one in found if isinstance(found, tuple | list) else (found,):
                if isinstance(one, Tensor):
                    self.seen = max(self.seen, one.untyped_storage().nbytes() // one.element_size())
            return found

    frames, windows, heads, tokens = 32, 4, 2, 5
    scores = windows * heads * (frames * tokens) ** 2
    monkeypatch.setattr(attention, "_MASKED_AT_ONCE", scores // frames)
    network = inflate(Windows(how).eval(), STILL, size=16).eval()
    with torch.inference_mode(), Largest() as largest:
        network(torch.randn(1, 3, frames, 16, 16))
    assert largest.seen < scores // 8


def test_a_clip_too_long_for_memory_is_refused_before_it_is_tried() -> None:
    model = timm.create_model("cait_xxs24_224", depth=1, img_size=64)
    randomise(model.eval(), 0, (3, size := 64, size))
    network = inflate(model, STILL, size=size)
    (node,) = (node for node in network.graph.nodes if node.meta.get("scores"))
    assert node.meta["scores"] == 4 * 16 * 16  # heads, queries, keys
    wanted = COPIES * 2 * 64 * 64 * node.meta["scores"] * 8
    check_room(network, 64, 2, None, torch.float64, room=wanted)
    with pytest.raises(FramesError, match=r"blocks\.0\.attn over clips of 64 frames needs about .* GiB.*span:8"):
        check_room(network, 64, 2, None, torch.float64, room=wanted - 1)
    with pytest.raises(FramesError, match="GiB are free; reduce --frames"):
        verify(model, network, Settings(frames=20_000, dtypes=(torch.float64,)))
    grouped = inflate(model, Recipe("groups", (Rule(kind="attention", span=8),)), size=size)
    check_room(grouped, 64, 2, None, torch.float64, room=wanted // 8)
