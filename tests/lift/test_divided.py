"""TimeSformer: attention over time at each place, in front of that over space, which starts as the 2D network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from i3dconvert import export_onnx, inflate, load, save
from i3dconvert.backbones import hf
from i3dconvert.checkpoint import filled, rebuild
from i3dconvert.checkpoint.adoption import adopt
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LayoutError, RecipeError
from i3dconvert.export.runtime import Runtime
from i3dconvert.frameworks import framework_of
from i3dconvert.lift.describe import describe, order_seen
from i3dconvert.lift.network import Network3d
from i3dconvert.recipes import Recipe, Rule, parse_rule, preset
from i3dconvert.verification import Settings, verify
from i3dconvert.weights import randomise
from tests.conftest import Run

SIZE = 64
VIT: dict[str, Any] = {"depth": 2, "img_size": SIZE, "num_classes": 5}


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    model = timm.create_model(name, **{**VIT, **options}).eval()
    randomise(model, 0, (3, SIZE, SIZE))
    return model


def of_transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = hf._giving_logits(transformers.ViTForImageClassification(config).eval())
    randomise(model, 0, (3, SIZE, SIZE))
    return model


def of_torchvision() -> nn.Module:
    model = torchvision.models.VisionTransformer(SIZE, 16, 2, 4, 32, 64, num_classes=5).eval()
    randomise(model, 0, (3, SIZE, SIZE))
    return model


def moving(frames: int, clips: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(clips, 3, frames, SIZE, SIZE, generator=generator, dtype=torch.float64)


def trained(network: Network3d) -> Network3d:
    """The network with something in what starts as zeros."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if "_time.dense" in name or name.endswith("_time.table"):
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return network


NETWORKS = {
    "timm": vit,
    "distilled": lambda: vit("deit_tiny_distilled_patch16_224"),
    "registers": lambda: vit("vit_small_patch14_reg4_dinov2", img_size=56, embed_dim=32, num_heads=4),
    "no class token": lambda: vit("vit_base_patch16_siglip_gap_224", embed_dim=32, num_heads=4),
    "torchvision": of_torchvision,
    "transformers": of_transformers,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_on_a_still_clip_and_sees_other_frames(name: str) -> None:
    model, size = NETWORKS[name](), 56 if name == "registers" else SIZE
    network = inflate(model, "divided", size=size, time_embedding="zeros")
    report = verify(model, network, Settings(frames=4, dtypes=(torch.float64,)))
    assert report.passed, report.reason
    assert [check.name for check in report.checks][-1] == "attention over time"
    rows = [layer for layer in describe(network) if layer.operation == "Attention (all frames, divided)"]
    assert len(rows) == 2
    assert all(layer.receptive_field is None and layer.parameters3d > 0 for layer in rows)


def test_the_time_embedding_alone_tells_the_order_of_frames() -> None:
    blind, seeing = (inflate(vit(), "divided", size=SIZE, time_embedding=kind) for kind in ("none", "zeros"))
    with torch.no_grad():
        for network, told in ((blind, False), (seeing, True)):
            trained(network).double()
            other = relative_error(network(moving(4)), network(moving(4).flip(2)))
            assert (other > 1e-6) == told
            told_so = order_seen(describe(network), network.inflation.style.time_embedding)
            assert ("a time embedding" in told_so) == told


def test_what_is_added_starts_as_copies_and_zeros() -> None:
    model = of_torchvision()
    state = inflate(model, "divided", size=SIZE).state_dict()
    name = "encoder.layers.encoder_layer_1"
    assert torch.equal(state[f"{name}.self_attention_time.qkv.weight"], state[f"{name}.self_attention.in_proj_weight"])
    assert torch.equal(state[f"{name}.self_attention_time.norm.weight"], state[f"{name}.ln_1.weight"])
    assert torch.equal(state[f"{name}.self_attention_time.proj.bias"], state[f"{name}.self_attention.out_proj.bias"])
    assert not state[f"{name}.self_attention_time.dense.weight"].any()
    apart = inflate(of_transformers(), "divided", size=SIZE).state_dict()
    name = "vit.layers.0.attention"
    own = [apart[f"{name}.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(apart[f"{name}_time.qkv.weight"], torch.cat(own))


def test_transformers_video_network_computes_the_same_on_moving_clips() -> None:
    """With everything that is new drawn at random: TimesformerForVideoClassification is the reference."""
    transformers = pytest.importorskip("transformers")
    network = trained(inflate(vit(num_heads=3), "divided", size=SIZE, time_embedding="zeros")).double()
    config = transformers.TimesformerConfig(
        image_size=SIZE, hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=768,
        num_frames=16, num_labels=5,
    )  # fmt: skip
    theirs = transformers.TimesformerForVideoClassification(config).double().eval()
    known = framework_of("transformers")
    theirs.load_state_dict(known.state(known.network("timesformer"), network.state_dict()), strict=True)
    with torch.no_grad():
        expected = theirs(moving(16).transpose(1, 2)).logits
        assert relative_error(expected, network(moving(16))) <= 1e-12
        name = "blocks.1.attn_time.qkv.weight"
        network.get_parameter(name).data = network.get_parameter(name).data.roll(1, 0)
        assert relative_error(expected, network(moving(16))) > 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("frames", [2, 8, 12, 16, 96])
def test_transformers_own_files_are_read(frames: int, tmp_path: Path) -> None:
    """`facebook/timesformer-base-finetuned-k400` is for 8 frames."""
    transformers = pytest.importorskip("transformers")
    config = transformers.TimesformerConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768,
        num_frames=frames, num_labels=5,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.TimesformerForVideoClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "time" in name or "temporal" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path)
    if frames in (12, 96):
        with pytest.raises(LayoutError, match=f"its time embedding is for {frames} frames"):
            adopt(tmp_path, "transformers")
        return
    document, state = adopt(tmp_path, "transformers")
    assert document.origin is not None
    assert document.origin.backbone.name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224")  # which are one
    ours = filled(rebuild(document, document.origin.build()), state, tmp_path).eval()
    clip = torch.randn(1, 3, frames, 224, 224, generator=generator)
    with torch.no_grad():
        assert relative_error(theirs(clip.transpose(1, 2)).logits, ours(clip)) <= 1e-5


@pytest.mark.slow
def test_files_of_it_are_read_to_the_bit_and_exported(tmp_path: Path) -> None:
    model = vit()
    network = trained(inflate(model, "divided", size=SIZE, time_embedding="zeros"))
    save(network, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", model)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in network.state_dict().items())
    exported = export_onnx(network, tmp_path / "net.onnx")
    runtime = Runtime(exported.path)
    for frames in (1, 3, 8):
        clip = moving(frames).float()
        with torch.no_grad():
            assert relative_error(network(clip), runtime(clip)[0]) <= 1e-5


def test_weight_identity_sees_a_copy_that_differs() -> None:
    model = vit()
    network = inflate(model, "divided", size=SIZE)
    network.get_parameter("blocks.0.attn_time.qkv.weight").data[3, 3] += 1
    report = verify(model, network, Settings(frames=2, dtypes=(torch.float64,)))
    assert "blocks.0.attn_time.qkv.weight" in str(report.reason)


@pytest.mark.parametrize("part", ["dense.weight", "dense.bias"])
def test_a_branch_that_does_not_start_as_zeros_is_not_equal(part: str) -> None:
    model = vit()
    network = inflate(model, "divided", size=SIZE)
    network.get_parameter(f"blocks.0.attn_time.{part}").data += 0.1
    assert not verify(model, network, Settings(frames=2, dtypes=(torch.float64,))).passed


def test_an_attention_that_sees_no_frame_fails_the_check() -> None:
    model = vit("vit_base_patch16_siglip_gap_224", embed_dim=32, num_heads=4)
    network = inflate(model, "divided", size=SIZE)
    for module in ("blocks.0.attn_time", "blocks.1.attn_time"):
        network.get_submodule(module).forward = lambda frames, clips: frames  # type: ignore[method-assign, misc]
    report = verify(model, network, Settings(frames=2, dtypes=(torch.float64,)))
    assert report.checks[-1].name == "attention over time"
    assert not report.checks[-1].passed


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "num_heads": (3, 6)}, "is not added to its input"),
        ("vit_base_patch16_rpn_224", {"embed_dim": 32, "num_heads": 4}, "there is no LayerNorm with weights before it"),
        ("beit_base_patch16_224", {"embed_dim": 32, "num_heads": 4}, "do not come from one linear layer"),
    ],
)
def test_other_blocks_are_refused_by_name(name: str, options: dict[str, Any], why: str) -> None:
    arguments = {"img_size": 56 if "swin" in name else SIZE, **options}
    arguments |= {} if "swin" in name else {"depth": 1}
    with pytest.raises(RecipeError, match=f"does not fit .*attn: .*{why}"):
        inflate(timm.create_model(name, **arguments).eval(), "divided", size=arguments["img_size"])


def test_attentions_in_no_such_block_stay_within_a_frame_and_say_so() -> None:
    model = timm.create_model("cait_xxs24_224", depth=1, img_size=SIZE).eval()
    rows = {row.name: row.operation for row in describe(inflate(model, "divided", size=SIZE))}
    assert rows["blocks.0.attn"] == "Attention (all frames, divided)"
    assert rows["blocks_token_only.0.attn"].startswith("Attention (one frame: there is no LayerNorm")


def test_rules() -> None:
    assert parse_rule("blocks.*=divided") == Rule("blocks.*", "attention", span="all", divided=True)
    assert Recipe.from_dict(preset("divided").to_dict()) == preset("divided")
    network = inflate(vit(), Recipe("one", (parse_rule("blocks.1.attn=divided"),)), size=SIZE)
    assert {key.partition("_time")[0] for key in network.state_dict() if "_time." in key} == {"blocks.1.attn"}
    with pytest.raises(RecipeError, match="divided attention needs the span 'all'"):
        inflate(vit(), Recipe("two", (Rule("*", "attention", span=2, divided=True),)), size=SIZE)
    within = inflate(vit(), "factorised", size=SIZE)
    assert {row.operation for row in describe(within)[1:]} == {"Attention (one frame)"}


@pytest.mark.slow
def test_a_folder_that_transformers_loads(run: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "timesformer"
    told = ("timm/vit_tiny_patch16_224", "-w", "random", "--layout", "transformers", "-o", str(folder))
    assert run("inflate", *told).code == 0
    assert not [file for file in tmp_path.iterdir() if file != folder]
    theirs, info = transformers.TimesformerForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    config = json.loads((folder / "config.json").read_text())
    assert (config["id2label"]["0"], len(config["id2label"])) == (theirs.config.id2label[0], 1000)
    processor = transformers.AutoVideoProcessor.from_pretrained(folder)
    assert (type(processor).__name__, list(processor.image_mean)) == ("TimesformerVideoProcessor", [0.5, 0.5, 0.5])
    assert "only clips of 16 frames" in run("verify", str(folder), "--layout", "transformers", "-f", "8").err
    again = run("inflate", *told)
    assert again.code == 1
    assert "already exists" in again.err
    assert run("inspect", str(folder), "--from-layout", "transformers", "-q").code == 0
    broken = tmp_path / "broken"
    broken.mkdir()
    result = run("inspect", str(broken), "--from-layout", "transformers")
    assert (result.code, "is a directory" in result.err) == (1, True)
