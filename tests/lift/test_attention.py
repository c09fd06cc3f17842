"""Attention over the tokens of several frames: what it computes, where it is found, that it is equal and sees them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors import safe_open
from torch import Tensor, fx, nn

from i3dconvert import export_onnx, inflate, load, save
from i3dconvert.errors import FramesError
from i3dconvert.export.runtime import Runtime
from i3dconvert.lift import layout
from i3dconvert.lift.attention import groups as attention
from i3dconvert.lift.describe import describe
from i3dconvert.lift.network import Network3d
from i3dconvert.lift.tree.blocks import Block
from i3dconvert.recipes import Recipe, Rule, parse_rule, preset, toml
from i3dconvert.verification import Settings, verify
from i3dconvert.weights import randomise
from tests.conftest import Run

PROOF = Settings(frames=4, dtypes=(torch.float64,))
STILL = Recipe("still", (Rule(kind="attention", span="all"),))
"""Attention over all frames, and nothing else over time."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("frames", "span"), [(6, attention.ALL), (6, 3), (6, 2), (2, 3), (1, attention.ALL)])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("masked", ["", "all", "row", "own"])
def test_both_ways_are_attention_over_the_tokens_of_a_group(frames: int, span: int, rows: int, masked: str) -> None:
    clips, heads, length, keys, depth = 2, 2, 4, 5, 8
    query, key, value = (drawn(clips * frames * rows, heads, n, depth, seed=n) for n in (length, keys, keys + 1))
    value = value[..., :keys, :]
    own = drawn(rows, heads, length, keys, seed=9)
    mask = {
        "": None,
        "all": own[:1],
        "row": drawn(1, 1, 1, keys),
        "own": own.repeat(clips * frames, 1, 1, 1),
    }[masked]
    grouping = attention.Groups(clips, rows, span)
    joint = attention.attend_jointly(query, key, value, mask, grouping)
    pairs = attention.score_pairs(query, key.transpose(-2, -1), grouping) * depth**-0.5
    if masked == "own":
        assert mask is not None
        pairs = pairs + attention.for_each_key(mask, grouping)
    elif mask is not None:
        pairs = pairs + mask
    shared = attention.softmax_of_pairs(pairs, query, grouping, rows)
    apart = attention.attend_pairs(shared, value, grouping, rows)
    assert torch.allclose(joint, apart, rtol=0, atol=1e-12)

    group = min(span or frames, frames)
    at = lambda tensor, clip, frame, row: tensor[(clip * frames + frame) * rows + row]  # noqa: E731
    for clip in range(clips):
        for frame in range(frames):
            for row in range(rows):
                others = range(frame // group * group, frame // group * group + group)
                one = None if mask is None else (own[row] if masked == "own" else mask[0])
                expected = F.scaled_dot_product_attention(
                    at(query, clip, frame, row),
                    torch.cat([at(key, clip, other, row) for other in others], dim=-2),
                    torch.cat([at(value, clip, other, row) for other in others], dim=-2),
                    None if one is None else one.expand(-1, length, -1).repeat(1, 1, group),
                )
                assert torch.allclose(at(joint, clip, frame, row), expected, rtol=0, atol=1e-12)


NETWORKS: dict[str, tuple[dict[str, Any], int, int]] = {
    "vit_tiny_patch16_224": ({"depth": 2, "img_size": 64}, 2, 2),
    "deit3_small_patch16_224": ({"depth": 1, "img_size": 64}, 1, 1),
    "vit_small_patch14_reg4_dinov2": ({"depth": 1, "img_size": 56}, 1, 1),
    "beit_base_patch16_224": ({"depth": 1, "img_size": 64}, 1, 1),
    "eva02_tiny_patch14_224": ({"depth": 2, "img_size": 56}, 2, 2),
    "cait_xxs24_224": ({"depth": 2, "img_size": 64}, 4, 4),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 2), "num_heads": (3, 6), "img_size": 56}, 3, 3),
    "swinv2_tiny_window8_256": ({"depths": (1, 2), "num_heads": (3, 6), "img_size": 64}, 3, 3),
    "levit_128s": ({"img_size": 64}, 11, 11),
    "mvitv2_tiny": ({"img_size": 64}, 10, 10),
    "gcvit_xxtiny": ({}, 12, 12),
    "xcit_nano_12_p16_224": ({"depth": 2}, 2, 4),
    "hiera_tiny_224": ({"stages": (1, 1, 2, 1)}, 5, 5),
    "coatnet_nano_rw_224": ({"img_size": 64}, 9, 9),
    "maxvit_pico_rw_256": ({"img_size": 64}, 22, 22),
    "pvt_v2_b0": ({}, 8, 8),
    "twins_svt_small": ({"depths": (2, 2, 2, 2)}, 8, 8),
    "torchvision/swin_t": ({}, 12, 12),
    "torchvision/swin_v2_t": ({}, 12, 12),
}
"""Arguments, attentions lifted, attentions found."""


def build(name: str) -> tuple[nn.Module, int]:
    arguments = NETWORKS[name][0]
    if name.startswith("gcvit") and "repeat_interleave" not in inspect.getsource(timm.models.gcvit):
        pytest.skip("before 1.0.27 or so, timm's GC ViT mixes the images of a batch up")
    if name.startswith("torchvision/"):
        model, size = torchvision.models.get_model(name.partition("/")[2]), 64
    else:
        model = timm.create_model(name, **arguments)
        size = arguments.get("img_size") or model.default_cfg["input_size"][-1]
    randomise(model.eval(), 0, (3, size, size))
    return model, size


def features(network: Network3d, clip: Tensor) -> Tensor:
    """What is averaged over time at the end, of one clip: `(T, K)`."""

    class Keeping(fx.Interpreter):
        kept: Tensor

        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if any(user.target is layout.mean_over_time for user in node.users) and isinstance(value, Tensor):
                self.kept = value
            return value

    keeping = Keeping(network)
    with torch.no_grad():
        keeping.run(clip)
    return keeping.kept


SMALL = {name for name in NETWORKS if name.startswith(("vit", "deit", "beit", "eva", "cait", "swin_tiny"))}


MARKS = {
    "gcvit_xxtiny": pytest.mark.sweep,
    "twins_svt_small": pytest.mark.sweep,
    "maxvit_pico_rw_256": pytest.mark.sweep,
}


@pytest.mark.parametrize(
    "name",
    [name if name in SMALL else pytest.param(name, marks=MARKS.get(name, pytest.mark.slow)) for name in NETWORKS],
)
def test_equal_on_a_still_clip_and_seeing_every_frame_of_a_moving_one(name: str) -> None:
    model, size = build(name)
    network = inflate(model, STILL, size=size)
    found = [layer for layer in network.inflation.layers if layer.geometry.kind == "attention"]
    assert (sum(layer.lifted for layer in found), len(found)) == NETWORKS[name][1:]
    report = verify(model, network, PROOF)
    assert report.passed, report.reason
    assert report.checks[-1].name == "attention over time"
    clip = torch.randn(1, 3, 4, size, size)
    other = clip.clone()
    other[:, :, 3] = torch.randn(3, size, size)
    before, after = features(network, clip), features(network, other)
    assert (before[0] - after[0]).abs().max() > 1e-4 * before[0].abs().max()
    alone = inflate(model, "c2d", size=size)
    assert torch.equal(features(alone, clip)[0], features(alone, other)[0])


def test_why_an_attention_stays_within_a_frame_is_said() -> None:
    model, size = build("xcit_nano_12_p16_224")
    operations = [row.operation for row in describe(inflate(model, STILL, size=size)) if row.name.endswith("attn")]
    assert operations.count("Attention (one frame: it is over channels)") == 2
    assert operations.count("Attention (all frames)") == 2


def test_groups_see_their_own_frames_alone() -> None:
    model, size = build("vit_tiny_patch16_224")
    network = inflate(model, preset("c2d").with_rules((parse_rule("blocks.*.attn=span:2"),)), size=size)
    assert verify(model, network, PROOF).passed
    clip = torch.randn(1, 3, 4, size, size)
    other = clip.clone()
    other[:, :, 3] = torch.randn(3, size, size)
    before, after = features(network, clip), features(network, other)
    assert torch.equal(before[:2], after[:2])
    assert not torch.allclose(before[2], after[2])
    with pytest.raises(FramesError, match=r"blocks\.0\.attn attends to groups of 2 frames; 5 is not a multiple"):
        network.frames_left(5)
    assert network.frames_left(1) == 1


class Own(nn.Module):
    """One attention over the pixels of an image, spelt out, and changed by `how`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 3)
        self.mix = nn.Conv2d(2, 2, 3, padding=1)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        batch, length, _ = tokens.shape
        query, key, value = self.qkv(tokens).reshape(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.how == "channels":
            query, key, value = (part.transpose(-2, -1) for part in (query, key, value))
        if self.how == "causal":
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            pair = [[query, key]] if self.how == "einsum of a list" else [query, key]
            spelt = torch.einsum("bhqd,bhkd->bhqk", *pair) if self.how.startswith("einsum") else query @ key.mT
            weights = (spelt * 0.5).softmax(dim=-2 if self.how == "queries" else -1)
            if self.how == "mixed":
                weights = weights + self.mix(weights)
            if self.how == "weights last":
                attended = (value.mT @ weights.transpose(-2, -1)).mT
            else:
                attended = torch.einsum("bhqk,bhkd->bhqd", weights, value) if self.how == "einsum" else weights @ value
        if self.how == "channels":
            attended = attended.transpose(-2, -1)
        scores = self.head(attended.transpose(1, 2).reshape(batch, length, 8).mean(1))
        return (scores, weights.flatten(1)) if self.how == "given out" else scores


@pytest.mark.parametrize(
    ("how", "lifted"),
    [
        *(("plain", 1), ("einsum", 1), ("einsum of a list", 1), ("weights last", 1), ("channels", 0)),
        *(("causal", 0), ("queries", None), ("mixed", 0), ("given out", 0)),
    ],
)
def test_what_is_no_softmax_over_tokens_stays_within_a_frame(how: str, lifted: int | None) -> None:
    model = Own(how).eval()
    network = inflate(model, preset("c2d").with_rules(STILL.rules), size=16)
    found = [layer.lifted for layer in network.inflation.layers if layer.geometry.kind == "attention"]
    assert found == ([] if lifted is None else [bool(lifted)])
    report = verify(model, network, Settings(frames=3, size=16, dtypes=(torch.float64,)))
    assert report.passed, report.reason


def test_a_network_whose_attention_lost_the_other_frames_fails() -> None:
    model, size = build("vit_tiny_patch16_224")
    network = inflate(model, STILL, size=size)
    for code in {module._i3d_code for module in network.modules() if isinstance(module, Block) and module._i3d_code}:
        for node in code.graph.nodes:
            if node.target is attention.attend_jointly:
                node.args = (*node.args[:4], node.args[4]._replace(span=1), *node.args[5:])
        code.changed()
    report = verify(model, network, PROOF)
    assert [check.name for check in report.checks if not check.passed] == ["attention over time"]


def test_reach_is_in_the_table_of_layers() -> None:
    model, size = build("vit_tiny_patch16_224")
    rows = {row.name: row for row in describe(inflate(model, "joint", size=size))}
    assert rows["patch_embed.proj"].receptive_field == 3
    assert rows["blocks.1.attn"].receptive_field is None
    assert rows["blocks.1.attn"].operation == "Attention (all frames)"
    alone = {row.name: row for row in describe(inflate(model, "uniform", size=size))}
    assert alone["blocks.1.attn"].receptive_field == 3
    assert alone["blocks.1.attn"].operation == "Attention (one frame)"


def test_files_say_so_and_older_ones_stay_as_they_are(tmp_path: Path) -> None:
    model, size = build("vit_tiny_patch16_224")

    def schema(path: Path) -> int:
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["i3dconvert"])["schema"])

    network = inflate(model, "joint", size=size, time_embedding="zeros").eval()
    save(network, tmp_path / "joint.safetensors")
    again = load(tmp_path / "joint.safetensors", model)
    clip = torch.randn(1, 3, 4, size, size)
    assert torch.equal(network(clip), again(clip))
    assert again.inflation.style.time_embedding == "zeros"
    assert schema(tmp_path / "joint.safetensors") == 2
    save(inflate(model, "uniform", size=size), tmp_path / "alone.safetensors")
    assert schema(tmp_path / "alone.safetensors") == 1
    rules = toml.loads(toml.dumps(preset("joint")))
    assert rules == preset("joint")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "span", "optimize"),
    [
        ("vit_tiny_patch16_224", "span:2", True),
        ("vit_tiny_patch16_224", "span:2", False),
        ("swin_tiny_patch4_window7_224", "all", True),
        pytest.param("swin_tiny_patch4_window7_224", "all", False, marks=pytest.mark.sweep),
    ],
)
def test_exported_it_is_the_same_on_moving_clips(name: str, span: str, optimize: bool, tmp_path: Path) -> None:
    model, size = build(name)
    told = preset("uniform").with_rules((parse_rule(f"*.attn={span}"),))
    network = inflate(model, told, init="mean", size=size, time_embedding="zeros").eval()
    with torch.no_grad():
        network.get_parameter("patch_embed.proj_time.table").normal_()
    done = export_onnx(network, tmp_path / "net.onnx", optimize=optimize)
    runtime = Runtime(done.path)
    for frames in (4, 6, 10):
        clip = torch.randn(2, 3, frames, size, size)
        with torch.no_grad():
            expected = network(clip)
        (found,) = runtime(clip)
        assert torch.allclose(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-t", "blocks.*.attn=span:0"), "span must lie between 1 and 1024"),
        (("-t", "blocks.*.attn=span:many"), "is not GLOB=KERNEL"),
        (("-t", "layers.*=all"), "matches no layer"),
        (("-r", "wrong.toml"), "belong in rules of kind 'attention'"),
        (("-r", "kernel.toml"), "belong in rules of kind 'attention'"),
    ],
)
def test_bad_input_is_one_line(run: Run, words: tuple[str, ...], message: str) -> None:
    Path("wrong.toml").write_text('[[rule]]\nkind = "spatial"\nspan = 2\n')
    Path("kernel.toml").write_text('[[rule]]\nkind = "attention"\nkernel = 2\n')
    done = run("inflate", "timm/vit_tiny_patch16_224", "-w", "random", *words)
    assert done.code == 1
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.slow
def test_groups_that_no_clip_for_tracing_has_two_of_fix_the_number_of_frames(tmp_path: Path) -> None:
    model, size = build("vit_tiny_patch16_224")
    network = inflate(model, Recipe("long", (Rule(kind="attention", span=129),)), size=size)
    exported = export_onnx(network, tmp_path / "net.onnx")
    assert exported.shape[2] == 16
    assert "for frames 16" in exported.warning
    assert "several groups of frames in every attention" in exported.warning
