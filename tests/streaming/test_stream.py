"""A stream is the network on the whole video: moving pictures, trained taps, float64, step by step and at both ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i3dconvert import Recipe, Stream, inflate, stream
from i3dconvert.comparison.forward import outputs, relative_error
from i3dconvert.errors import StreamError
from i3dconvert.lift.network import Network3d
from i3dconvert.recipes import InsertedPool, Rule, resolve

TEMPORAL = Rule(kind="spatial", kernel=3)


def with_all_taps(network: Network3d) -> Network3d:
    """As after training, in float64."""
    torch.manual_seed(0)
    for key in network.inflation.fillings:
        weight = network.get_parameter(key).data
        weight += 0.3 * weight.abs().mean() * torch.randn_like(weight)
    return network.double().eval()


def small(net: nn.Module, *rules: Rule, pools: tuple[InsertedPool, ...] = (), **options: Any) -> Network3d:
    return with_all_taps(inflate(net.eval(), Recipe("r", rules, pools), size=16, **options))


def stepped(flow: Stream, clip: Tensor, state: Any = None) -> tuple[list[Any], Any]:
    """The outputs of all steps, and the state behind them."""
    state = state or flow.start(clip.shape[0], *clip.shape[3:])
    found = []
    for frames in clip.split(flow.frames, 2):
        output, state = flow.step(frames, state)
        found.append(output)
    return found, state


def difference(network: Network3d, clips: int, steps: int, flow: Stream | None = None) -> float:
    """The relative error of what the stream gives of a moving video, beside the network on the whole."""
    flow = flow or stream(network)
    channels, height, width = network.inflation.input
    clip = torch.randn(clips, channels, steps * flow.frames, height, width, dtype=torch.float64)
    with torch.no_grad():
        whole = outputs(network(clip))
    found, state = stepped(flow, clip)
    given = [outputs(one) for one in [*found[flow.delay :], *flow.flush(state)]]
    errors = []
    for place, leaf in enumerate(flow.leaves):
        parts = [one[place] for one in given]
        value = parts[-1] if leaf is None or leaf.axis is None else torch.cat(parts, leaf.axis)
        assert value.shape == whole[place].shape
        errors.append(relative_error(whole[place], value))
    return max(errors)


class Branches(nn.Module):
    """Branches that look ahead by different numbers of frames."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.c, self.d = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = torch.relu_(self.c(torch.relu_(self.b(x))))
        return torch.cat([self.d(x), y + x, x], 1)


class Unequal(nn.Module):
    """Branches of which one has a frame more, which a clip of one step hides, as its frame is broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.MaxPool2d(3, 1, 1, ceil_mode=True), nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


class Outputs(nn.Module):
    """Maps at two paces, and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.a(x)
        return {"maps": x, "others": [self.b(x), x.mean((2, 3))]}


def behind(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.Conv2d(4, 2, 3))


def strided(kernel: int, stride: int, padding: Any = None, **more: Any) -> tuple[Rule, Rule]:
    return TEMPORAL, Rule("1", kernel=kernel, stride=stride, padding=padding, **more)


STRIDES = ((5, 2), (3, 3), (2, 2))
CONVOLUTIONS: dict[str, Callable[[str], Network3d]] = {
    "branches": lambda init: small(Branches(), TEMPORAL, init=init),
    "wide": lambda init: small(Branches(), TEMPORAL, Rule("b", kernel=5), Rule("c", kernel=4), init=init),
    "dilated": lambda init: small(Branches(), TEMPORAL, Rule("b", kernel=3, dilation=2), init=init),
    "in groups": lambda init: small(Branches(4), TEMPORAL, init=init),
    "2plus1d": lambda init: small(Branches(), TEMPORAL, init=init, conv="2plus1d"),
    "transposed": lambda init: small(behind(nn.ConvTranspose2d(4, 4, 2, 2)), TEMPORAL, init=init),
    "transposed over time": lambda init: small(
        behind(nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2)), TEMPORAL, Rule("1", kernel=3), init=init
    ),
    "two outputs": lambda init: small(Outputs(), TEMPORAL, Rule("b", kernel=3, stride=2), init=init),
    "no padding": lambda init: small(behind(nn.ReLU()), Rule(kind="spatial", kernel=3, padding=0), init=init),
    "strides": lambda init: small(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)),
        *(
            Rule(str(place), kernel=kernel, stride=stride)
            for place, (kernel, stride) in enumerate(((5, 2), (3, 3), (2, 2)))
        ),
        init=init,
    ),
}


def pool(kind: Any, ceil: bool, sizes: tuple[int, int, Any]) -> Network3d:
    return small(behind(kind(3, 2, 1, ceil_mode=ceil)), *strided(*sizes))


POOLS: dict[str, Callable[[], Network3d]] = {
    f"{kind.__name__} {ceil} {sizes}": partial(pool, kind, ceil, sizes)
    for kind in (nn.MaxPool2d, nn.AvgPool2d)
    for ceil in (False, True)
    for sizes in ((3, 2, "spatial"), (3, 1, None), (2, 2, 0), (3, 2, 0), (3, 3, "same"))
} | {
    "padding not counted": lambda: small(behind(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), *strided(3, 2)),
    "dilated": lambda: small(behind(nn.MaxPool2d(3, 1, 1, dilation=2)), *strided(3, 1, 1, dilation=2)),
    "dilated, ceil": lambda: small(
        behind(nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True)), *strided(3, 2, 1, dilation=2)
    ),
    **{
        f"inserted {kind}": lambda kind=kind: small(
            behind(nn.ReLU()), TEMPORAL, pools=(InsertedPool("0", 3, 2, 1, kind),)
        )
        for kind in ("max_pool", "avg_pool")
    },
}


@pytest.mark.parametrize("init", ["center", "mean"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, init: str) -> None:
    network = CONVOLUTIONS[name](init)
    least = 5 if name == "no padding" else 1
    for clips, steps in ((1, least), (3, least + 1), (1, 8)):
        assert difference(network, clips, steps) < 1e-12


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str) -> None:
    network = POOLS[name]()
    for clips, steps in ((1, 3), (3, 4), (1, 8)):
        assert difference(network, clips, steps) < 1e-12


class Tokens(nn.Module):
    """Attention of each frame's tokens, by torch's function or its module, behind convolutions."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.a, self.b, self.qkv = nn.Conv2d(3, 8, 3, 4), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 24)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True) if module else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = (y + self.b(y)).flatten(2).transpose(1, 2)
        if self.attn is not None:
            return (y + self.attn(y, y, y, need_weights=False)[0]).mean(1)
        q, k, v = self.qkv(y).reshape(len(y), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return (y + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("module", [False, True])
def test_attention_in_groups_makes_its_group_a_step(module: bool) -> None:
    network = small(Tokens(module), TEMPORAL, Rule("*", kind="attention", span=4))
    assert stream(network).frames == 4
    assert max(difference(network, clips, 3) for clips in (1, 3)) < 1e-12


@pytest.mark.parametrize(
    ("net", "rules", "says"),
    [
        (behind(nn.GroupNorm(2, 4)), (TEMPORAL,), '1 normalises over all frames; .*kind = "norm", span = 1'),
        (behind(nn.InstanceNorm2d(4)), (TEMPORAL,), "1 normalises over all frames"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1)),
            (Rule(kind="global", span="all"),),
            '1 is pooled over all frames; .*kind = "global", span = 1',
        ),
        (
            behind(nn.ConvTranspose2d(4, 4, 2, 2)),
            (Rule("1", kernel=2, stride=2),),
            "1 increases the number of frames; inflate with --temporal '1=1'",
        ),
        (Unequal(), (Rule("a", kernel=3, stride=3), Rule("b", stride=3)), "add joins branches with different numbers"),
        (
            Tokens(module=True),
            (Rule("a", kernel=3, padding=0), Rule("*", kind="attention", span=4)),
            "attn attends to groups of 4 frames, but gets -2 of them for a whole video; leave `padding` out",
        ),
    ],
)
def test_what_looks_at_all_of_time_is_refused(net: nn.Module, rules: tuple[Rule, ...], says: str) -> None:
    network = small(net, *rules)
    with pytest.raises(StreamError, match=f"the network can't be streamed: {says}"):
        stream(network)


def test_norms_of_each_frame_stream() -> None:
    network = small(behind(nn.GroupNorm(2, 4)), TEMPORAL, Rule(kind="norm", span=1))
    assert difference(network, 2, 6) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("joint", r"blocks.0.attn attends to all frames; inflate with --temporal 'blocks.0.attn=span:8'"),
        ("divided", "blocks.0.attn attends to all frames at its place; inflate with --recipe factorised"),
    ],
)
def test_attention_to_all_frames_is_refused(recipe: str, says: str) -> None:
    network = inflate("timm/test_vit", recipe, weights="random")
    with pytest.raises(StreamError, match=says):
        stream(network)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe", "init", "size"),
    [
        ("resnet18", "resnet", "mean", 32),
        ("resnet18", "uniform", "center", 32),
        ("resnet50", "i3d-resnet", "mean", 64),
        ("resnet50", "slow", "center", 64),
        ("resnet18", "c2d", "center", 64),
        ("googlenet", "i3d", "mean", 64),
        ("mobilenet_v3_small", "uniform", "mean", 64),
        ("timm/convnext_atto", "uniform", "center", 64),
        ("timm/resnetblur18", "uniform", "center", 64),
        ("timm/nf_resnet26", "uniform", "center", 64),
        ("lraspp_mobilenet_v3_large", "uniform", "center", 64),
        ("swin_t", "factorised", "center", 64),
        ("timm/deit_tiny_patch16_224", "tubelet", "center", None),
        ("timm/test_vit", "joint+", "center", None),
    ],
)
def test_networks(name: str, recipe: str, init: str, size: int | None) -> None:
    rules = resolve(recipe.rstrip("+")).with_rules([Rule("*", kind="attention", span=4)] * recipe.endswith("+"))
    network = with_all_taps(inflate(name, rules, init, weights="random", size=size))
    assert difference(network, 1, 3) < 1e-12
    assert name != "swin_t" or difference(network, 3, 2) < 1e-12


@pytest.mark.outside
@pytest.mark.parametrize(
    ("name", "recipe"),
    [("densenet121", "densenet"), ("timm/hrnet_w18_small", "uniform"), ("timm/coatnet_nano_rw_224", "uniform")],
)
def test_larger_networks(name: str, recipe: str) -> None:
    network = with_all_taps(inflate(name, recipe, weights="random", size=None if "224" in name else 64))
    assert difference(network, 1, 2) < 1e-12
