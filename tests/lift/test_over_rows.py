"""Convolutions over windows and heads: several images for each frame, each with its own time."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert import inflate, optimize, stream
from i3dconvert.comparison.forward import relative_error
from i3dconvert.lift.network import inflation_of
from i3dconvert.recipes import Recipe, Rule
from tests.lift.anybody import Net, clip_of, framewise

HEADS = 2


def by_heads(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    z = y.reshape(len(y) * HEADS, -1, *y.shape[2:])
    z = F.max_pool2d(net.own(z) + F.conv2d(z, net.kernel, padding=1), 3, 1, 1)
    return net.d(z.reshape(y.shape))


def by_groups(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(F.max_pool2d(net.own(y) + F.conv2d(y, net.kernel, padding=1, groups=HEADS), 3, 1, 1))


def by_windows(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    b, c, h, w = y.shape
    z = y.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
    z = net.d(net.norm(z).relu())
    return z.reshape(b, h // 4, w // 4, -1, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h, w)


def with_heads() -> Any:
    kernel = nn.Parameter(torch.randn(2, 2, 3, 3))
    return Net(by_heads, own=nn.Conv2d(2, 2, 3, padding=1), kernel=kernel)


def with_windows() -> Any:
    return Net(by_windows, c=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4))


def trained(network: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        if parameter.dim() == 5:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += 0.1 * noise
    return network


@pytest.mark.parametrize("model", [with_heads(), with_windows()], ids=["heads", "windows"])
def test_each_frame_alone_gives_what_it_gives_in_2d(model: nn.Module) -> None:
    for clip in (clip_of(2, 3, 16), clip_of(1, 2, 24)):
        assert relative_error(framewise(model, clip), inflate(model, "c2d", size=16)(clip)) <= 1e-12


def test_heads_are_groups_with_equal_kernels() -> None:
    model = with_heads()
    network = trained(inflate(model, "uniform", size=16))
    grouped = inflate(Net(by_groups, own=nn.Conv2d(4, 4, 3, padding=1, groups=HEADS), kernel=nn.Parameter(
        torch.randn(4, 2, 3, 3))), "uniform", size=16)  # fmt: skip
    for name, tensor in network.state_dict().items():
        shared = name.startswith(("own", "kernel"))
        grouped.state_dict()[name].copy_(tensor.repeat(HEADS, *[1] * (tensor.dim() - 1)) if shared else tensor)
    assert str(inflation_of(network).convolutions) == "4 of 4 convolutions became 3D"
    for clip in (clip_of(2, 4, 16), clip_of(1, 3, 20)):
        assert relative_error(grouped(clip), network(clip)) <= 1e-12


def test_a_window_is_a_small_image() -> None:
    network = trained(inflate(with_windows(), "uniform", size=16))
    assert str(inflation_of(network).convolutions) == "2 of 2 convolutions became 3D"
    clip = clip_of(2, 4, 16)
    alone = network(clip[..., 4:8, 8:12])
    assert relative_error(alone, network(clip)[..., 4:8, 8:12]) <= 1e-12


@pytest.mark.parametrize("size", [16, 24])
def test_windows_stay_windows_where_time_is_strided(size: int) -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        z = net.c(x).reshape(b, 4, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 4, 4, 4)
        z = net.d(net.own(z).relu())
        return z.reshape(b, h // 4, w // 4, -1, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h, w)

    strided = Recipe("strided", (Rule(kind="spatial", kernel=3), Rule("own", stride=2)))
    model = Net(body, c=nn.Conv2d(3, 4, 1), own=nn.Conv2d(4, 4, 3, padding=1))
    network = trained(inflate(model, strided, size=16))
    clip = clip_of(2, 8, size)
    expected = network(clip)
    assert relative_error(network(clip[..., 4:8, 8:12]), expected[..., 4:8, 8:12]) <= 1e-12
    assert relative_error(expected, optimize(network)(clip)) <= 1e-12


def filled(x: Tensor) -> Tensor:
    halves = x.new_zeros(2 * len(x), *x.shape[1:])
    halves[: len(x)], halves[len(x) :] = x, x.flip(3)
    return halves


def filled_anew(x: Tensor) -> Tensor:
    halves = torch.zeros_like(torch.stack([x, x.flip(3)], 1).flatten(0, 1))
    halves[: len(x)], halves[len(x) :] = x, x.flip(3)
    return halves


def gathered(x: Tensor) -> Tensor:
    pairs = torch.stack([x, x.flip(3)], 1).flatten(0, 1)
    return pairs.gather(0, halves_of_pairs(x).reshape(-1, 1, 1, 1).expand(pairs.shape))


def written_by_index(x: Tensor) -> Tensor:
    pairs = torch.stack([x, x.flip(3)], 1).flatten(0, 1)
    halves = x.new_zeros(pairs.shape)
    halves[halves_of_pairs(x).argsort()] = pairs
    return halves


def halves_of_pairs(x: Tensor) -> Tensor:
    return torch.arange(2 * len(x)).reshape(-1, 2).t().flatten()


HALVES: dict[str, Callable[[Tensor], Tensor]] = {
    "concatenate": lambda x: torch.concatenate([x, x.flip(3)]),
    "view of a clone": lambda x: torch.stack((x, x.flip(3))).clone().view(-1, *x.shape[1:]),
    "index": lambda x: torch.stack([x, x.flip(3)], 1).flatten(0, 1)[halves_of_pairs(x)],
    "index_select": lambda x: torch.stack([x, x.flip(3)], 1).flatten(0, 1).index_select(0, halves_of_pairs(x)),
    "gather": gathered,
    "new_zeros": filled,
    "index of a write": written_by_index,
    "zeros_like": filled_anew,
}


@pytest.mark.parametrize("halves", HALVES.values(), ids=HALVES)
def test_rows_that_may_not_be_grouped_by_frame_stay_2d(halves: Callable[[Tensor], Tensor]) -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        left, right = net.own(halves(net.c(x))).chunk(2)
        return net.d(left - right.flip(3))

    model = Net(body, own=nn.Conv2d(4, 4, 3, padding=1))
    network = inflate(model, Recipe("own", (Rule("own", kernel=3),)), init="mean", size=16)
    assert str(inflation_of(network).convolutions).startswith("2 of 3 convolutions became 3D")
    clip = clip_of(2, 3, 16)
    assert relative_error(framewise(model, clip), network(clip)) <= 1e-12


def by_attention(net: Any, x: Tensor) -> Tensor:
    rows = net.arrange(net.c(x)).flatten(2).mT
    tokens = torch.cat([net.token.expand(len(rows), -1, -1), rows], 1)
    query, key, value = net.qkv(tokens).chunk(3, -1)
    left, right = net.apart(F.scaled_dot_product_attention(query, key, value)[:, 0])
    return left - 2 * right


def attending(arrange: Callable[[Tensor], Tensor], apart: Callable[[Tensor], Any]) -> tuple[Any, Any, bool]:
    """A network that attends within an image and its mirror image, its 3D form, and whether that sees all frames."""
    token = nn.Parameter(torch.zeros(1, 1, 4))
    model = Net(by_attention, c=nn.Conv2d(3, 4, 4, 4), qkv=nn.Linear(4, 12), token=token)
    model.arrange, model.apart = arrange, apart
    network = inflate(model, Recipe("still", (Rule(kind="attention", span="all"),)), size=16)
    (attention,) = (layer for layer in inflation_of(network).layers if layer.geometry.kind == "attention")
    assert attention.lifted or "rows" in attention.refusal
    return model, network, attention.lifted


@pytest.mark.parametrize("halves", HALVES.values(), ids=HALVES)
def test_attention_over_rows_that_may_not_be_grouped_by_frame_stays_within_one(
    halves: Callable[[Tensor], Tensor],
) -> None:
    model, network, lifted = attending(halves, lambda scores: scores.chunk(2))
    assert not lifted
    clip = clip_of(2, 3, 16)
    assert relative_error(framewise(model, clip), network(clip)) <= 1e-12


def pairs_of(x: Tensor) -> Tensor:
    return torch.stack([x, x.flip(3)], 1).flatten(0, 1)


def written_into_pairs(x: Tensor) -> Tensor:
    pairs = torch.zeros_like(pairs_of(x))
    pairs[:, torch.arange(3, -1, -1)] = pairs_of(x)
    return pairs


def tokens_repeated(x: Tensor) -> Tensor:
    """Each half of an image with the same row, which does not depend on it, as RF-DETR's windows have class tokens."""
    row = x.new_ones(1, 1, 1, 1).expand(len(x), x.shape[1], 1, x.shape[3])
    both = torch.cat([row, x], 2) * 0.5
    halves = both[:, :, 1:].unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1)
    return torch.cat([both[:, :, :1].repeat(2, 1, 1, 1), halves], 2)


PAIRS: dict[str, Callable[[Tensor], Tensor]] = {
    "stack": pairs_of,
    "index": lambda x: pairs_of(x)[:, torch.arange(3, -1, -1)],
    "gather": lambda x: pairs_of(x).gather(1, pairs_of(x).argsort(1)),
    "write": written_into_pairs,
    "tokens repeated": tokens_repeated,
    "constants": lambda x: pairs_of(x) + torch.ones(2 * len(x), 1, 1, 1).to(x),
}


@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
def test_attention_over_rows_that_are_grouped_by_frame_sees_all_frames(pairs: Callable[[Tensor], Tensor]) -> None:
    model, network, lifted = attending(pairs, lambda scores: scores.unflatten(0, (-1, 2)).unbind(1))
    assert lifted
    clip = clip_of(2, 3, 16)
    assert relative_error(torch.cat([network(one[None]) for one in clip]), network(clip)) <= 1e-12
    still = clip[:, :, :1].expand_as(clip)
    assert relative_error(framewise(model, still), network(still)) <= 1e-12
    assert relative_error(framewise(model, clip), network(clip)) > 1e-4


@pytest.mark.parametrize("model", [with_heads(), with_windows()], ids=["heads", "windows"])
def test_its_other_forms_compute_the_same(model: nn.Module) -> None:
    network = trained(inflate(model, "uniform", init="mean", size=16))
    clip = clip_of(2, 4, 16)
    expected = network(clip)
    assert torch.equal(pickle.loads(pickle.dumps(network))(clip), expected)
    assert relative_error(expected, optimize(network)(clip)) <= 1e-12
    steps = stream(network)
    state, found = steps.start(2, 16, 16), []
    for frame in clip.unbind(2):
        output, state = steps.step(frame.unsqueeze(2), state)
        found.append(output)
    found += steps.flush(state)
    assert relative_error(expected, torch.cat(found[steps.delay :], 2)) <= 1e-12


def test_a_layer_over_heads_can_be_exchanged() -> None:
    model = with_heads()
    network: Any = inflate(model, "c2d", size=16)
    clip = clip_of(2, 3, 16)
    for layer in (nn.Identity(), nn.Conv2d(2, 2, 3, padding=1).double()):
        model.own = network.own = layer
        assert relative_error(framewise(model, clip), network(clip)) <= 1e-12
