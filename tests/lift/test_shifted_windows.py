"""Video Swin: windows over time, shifted by half, with tables of relative positions repeated over time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import SwinTransformer
from torchvision.models.video import SwinTransformer3d

from i3dconvert import export_onnx, inflate, load, save
from i3dconvert.backbones import hf
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import FramesError, RecipeError
from i3dconvert.export.runtime import Runtime
from i3dconvert.frameworks import framework_of
from i3dconvert.lift.attention import groups as attention
from i3dconvert.lift.describe import describe, order_seen
from i3dconvert.recipes import Recipe, Rule, parse_rule, preset
from i3dconvert.verification import Settings, verify
from i3dconvert.weights import randomise

SIZE = 56
SHAPE = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 5}
SHIFTED = preset("video-swin")


def images() -> nn.Module:
    model = SwinTransformer([4, 4], window_size=[7, 7], **SHAPE)  # type: ignore[arg-type]
    randomise(model.eval(), 0, (3, SIZE, SIZE))
    return model


def moving(frames: int, clips: int = 2) -> torch.Tensor:
    return torch.randn(clips, 3, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def without(field: str) -> Recipe:
    nothing: dict[str, Any] = {field: None}
    kept = [rule for rule in SHIFTED.rules if field != "shift" or rule.shift is None]
    return Recipe("without", tuple(replace(rule, **nothing) for rule in kept))


@pytest.mark.parametrize("frames", [2, 16, 32, 48])
def test_torchvisions_video_network_computes_the_same_on_moving_clips(frames: int) -> None:
    ours = inflate(images(), SHIFTED, size=SIZE).double().eval()
    for name, parameter in ours.named_parameters():
        if name.endswith("relative_position_bias_table") or name == "features.0.0.weight":
            nn.init.normal_(parameter)
    theirs = SwinTransformer3d([2, 4, 4], window_size=[8, 7, 7], **SHAPE).double().eval()  # type: ignore[arg-type]
    known = framework_of("torchvision-video")
    theirs.load_state_dict(known.state(known.network("swin3d_t"), ours.state_dict()), strict=True)
    with torch.no_grad():
        assert relative_error(theirs(moving(frames)), ours(moving(frames))) <= 1e-12


@pytest.mark.parametrize(
    "name", ["torchvision", *(pytest.param(name, marks=pytest.mark.slow) for name in ("timm", "transformers"))]
)
def test_equal_on_a_still_clip(name: str) -> None:
    model = images()
    if name == "timm":
        options = {"img_size": SIZE, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16, "num_classes": 5}
        model = timm.create_model("swin_tiny_patch4_window7_224", **options)
        randomise(model.eval(), 0, (3, SIZE, SIZE))
    elif name == "transformers":
        transformers = pytest.importorskip("transformers")
        config = transformers.SwinConfig(
            image_size=SIZE, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=7
        )
        model = hf._giving_logits(transformers.SwinForImageClassification(config).eval())
        randomise(model, 0, (3, SIZE, SIZE))
    network = inflate(model, SHIFTED, size=SIZE)
    report = verify(model, network, Settings(frames=32, dtypes=(torch.float64,)))
    assert report.passed, report.reason
    assert report.checks[-1].name == "attention over time"
    key = next(key for key in network.state_dict() if key.endswith("bias_table"))
    assert len(network.state_dict()[key]) == 15 * len(model.state_dict()[key])
    network.state_dict()[key][0] += 1e-3
    (broken, *_) = verify(model, network, Settings(frames=32, dtypes=(torch.float64,))).checks
    assert not broken.passed
    assert key in broken.detail


@pytest.mark.parametrize("field", ["shift", "relative"])
def test_what_the_recipe_says_is_what_it_computes(field: str) -> None:
    model = images()
    whole, part = (inflate(model, recipe, size=SIZE).double().eval() for recipe in (SHIFTED, without(field)))
    if field == "relative":
        for name, parameter in whole.named_parameters():
            if name.endswith("relative_position_bias_table"):
                nn.init.normal_(parameter)
    with torch.no_grad():
        apart = relative_error(whole(moving(32)), part(moving(32)))
        one_group = relative_error(whole(moving(16)), part(moving(16)))
    assert apart > 1e-6
    assert (one_group <= 1e-12) == (field == "shift")


@pytest.mark.slow
def test_written_read_and_exported(tmp_path: Path) -> None:
    path = tmp_path / "swin.safetensors"
    model = images()
    network = inflate(model, SHIFTED, size=SIZE).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter)
    save(network, path, finetuned=True)
    again = load(path, model)
    export_onnx(network, tmp_path / "swin.onnx")
    runtime = Runtime(tmp_path / "swin.onnx")
    for frames in (2, 14, 16, 32):
        clip = moving(frames).float()
        with torch.no_grad():
            assert torch.equal(again(clip), network(clip))
            assert relative_error(network(clip), runtime(clip)[0]) <= 1e-5


@pytest.mark.slow
def test_the_receptive_field_and_what_does_not_fit() -> None:
    model = images()
    layers = describe(inflate(model, SHIFTED, size=SIZE))
    assert "relative positions in time" in order_seen(layers, "none")
    assert "relative" not in order_seen(describe(inflate(model, without("relative"), size=SIZE)), "none")
    rows = {row.name: row for row in layers}
    assert [rows[f"features.1.{block}.attn"].receptive_field for block in (0, 1)] == [2 + 14 * 2, 2 + 28 * 2]
    assert inflate(model, SHIFTED, size=SIZE).frames_left(32) == 16
    with pytest.raises(FramesError, match="attends to groups of 8 frames; 9 is not"):
        inflate(model, SHIFTED, size=SIZE).frames_left(18)
    with pytest.raises(FramesError, match="groups of 8 frames: 9 is not a multiple"):
        inflate(model, SHIFTED, size=SIZE)(moving(18).float())
    with pytest.raises(RecipeError, match="a shift of 8 frames needs larger groups"):
        inflate(model, SHIFTED.with_rules([parse_rule("*.attn=span:8/8")]), size=SIZE)
    with pytest.raises(RecipeError, match="relative positions in time need a span in frames"):
        inflate(model, SHIFTED.with_rules([parse_rule("*.attn=all"), Rule("*", "attention", shift=0)]), size=SIZE)
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    with pytest.raises(RecipeError, match="no table of relative positions of its own"):
        inflate(vit, Recipe("r", (Rule(kind="attention", span=2, relative=True),)), size=32)


@pytest.mark.parametrize("masked", ["", "float", "bool"])
@pytest.mark.parametrize(("frames", "shift"), [(4, 0), (4, 2), (12, 0), (12, 1), (12, 3)])
def test_fused_and_explicit_attention_are_one(frames: int, shift: int, masked: str) -> None:
    clips, rows, heads, length, depth, span = 2, 3, 2, 4, 8, 4
    drawn = [torch.randn(clips * frames * rows, heads, length, depth, dtype=torch.float64) for _ in range(3)]
    grouping = attention.Groups(clips, rows, span, shift)
    query, key, value = (attention.shifted(part, grouping) for part in drawn)
    bias = torch.randn(2 * span - 1, heads, length, length, dtype=torch.float64)
    mask = {"": None, "float": torch.randn(1, heads, length, length, dtype=torch.float64)}.get(masked)
    if masked == "bool":
        mask = torch.eye(length).bool().logical_not()
    fused = attention.attend_jointly(query, key, value, mask, grouping, bias)
    pairs = attention.score_pairs(query, key.transpose(-2, -1), grouping) * depth**-0.5
    if mask is not None:
        pairs = pairs.masked_fill(~mask, float("-inf")) if masked == "bool" else pairs + mask
    weights = attention.softmax_of_pairs(pairs, query, grouping, rows, bias)
    explicit = attention.attend_pairs(weights, value, grouping, rows)
    assert relative_error(explicit, fused) <= 1e-12
    unshifted = attention.attend_jointly(query, key, value, mask, grouping._replace(shift=0), bias)
    assert (relative_error(unshifted, fused) > 1e-3) == (frames > span and shift > 0)
    assert torch.equal(attention.shifted(query, grouping._replace(shift=-shift)), drawn[0])
