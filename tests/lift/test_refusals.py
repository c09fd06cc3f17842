"""What no graph can follow is refused with one line that says what to write instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert import inflate
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LiftError
from tests.lift.anybody import Forward, Net, clip_of


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda net, x: net.c(x) * net.c(x).sum().item(), "item"),
        (lambda net, x: net.c(x) if x.mean() > 0 else -net.c(x), "depends on the data"),
        (
            lambda net, x: torch.stack([net.d(net.c(x))[i] for i in range(len(x))]),
            "loops over the images of a batch",
        ),
        (lambda net, x: net.c(x["image"]), "looks up 'image' in its input: wrap it so that it takes an image"),
        (lambda net, x: torch.vmap(lambda one: one * 2)(net.c(x)), r"torch\.func and torch\.vmap hide theirs"),
        (lambda net, x: net.c(x) + net.d.weight.mul_(2).sum(), r"writes into d\.weight|leaf"),
        (
            lambda net, x: (setattr(net.d.weight, "data", net.d.weight.data * 2), net.d(net.c(x)))[1],
            r"assigns to data of d\.weight, which a graph can't do; compute a new tensor instead",
        ),
        (lambda net, x: (y := net.c(x), nn.Flatten()(y).relu_(), net.f(y).relu_(), net.d(y))[-1], "clone it first"),
    ],
)
def test_what_no_graph_can_follow_is_refused_by_name(forward: Forward, said: str) -> None:
    with pytest.raises(LiftError, match=said):
        inflate(Net(forward, f=nn.Flatten()), size=16)


def heads_in_front(net: Any, x: Tensor) -> Tensor:
    tokens = net.c(x).flatten(2).transpose(1, 2)
    heads = torch.cat(tokens.split(2, dim=-1), dim=0)
    attended = F.scaled_dot_product_attention(heads, heads, heads)
    return net.f(torch.cat(attended.split(len(x), dim=0), dim=-1)).mean(1)


def of_keys_of_its_own(net: Any, x: Tensor) -> Tensor:
    tokens = net.c(x).flatten(2).transpose(1, 2)
    return net.f(net.own(tokens, tokens, tokens)[0]).mean(1)


def of_padded_keys(net: Any, x: Tensor) -> Tensor:
    tokens = net.c(x).flatten(2).transpose(1, 2)
    return net.f(net.plain(tokens, tokens, tokens, key_padding_mask=tokens.mean(2) > 0.5)[0]).mean(1)


@pytest.mark.parametrize("forward", [heads_in_front, of_keys_of_its_own, of_padded_keys])
def test_attention_that_can_not_see_other_frames_says_so(forward: Forward) -> None:
    own = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
    plain = nn.MultiheadAttention(4, 2, batch_first=True)
    model = Net(forward, f=nn.Linear(4, 3), own=own, plain=plain)
    network, clip = inflate(model, "joint", size=8), clip_of(2, 3, 8)[:, :, :1].expand(-1, -1, 3, -1, -1)
    (attention,) = (layer for layer in network.inflation.layers if layer.geometry.kind == "attention")
    assert attention.refusal
    with torch.no_grad():
        assert relative_error(model(clip[:, :, 0]), network(clip)) <= 1e-12
        assert relative_error(network(clip[:1]), network(clip)[:1]) <= 1e-12


def beside(table: Tensor) -> nn.Module:
    """Return a network with a buffer that it does not use."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.register_buffer("table", table)
    return model


class Scripted(torch.jit.ScriptModule):
    @torch.jit.script_method
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.LazyConv2d(4, 3)), "lazy layers without weights"),
        (torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), "inflate the network before scripting"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), Scripted()), "make its class Scripted an nn.Module"),
        (beside(torch.eye(4).to_sparse()), r"tensor table that is not dense .*table\.to_dense\(\)"),
        (beside(torch.eye(4).to_sparse_csr()), r"tensor table that is not dense .*table\.to_dense\(\)"),
        (beside(torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.quint8)), r"table\.dequantize\(\)"),
    ],
)
def test_what_can_not_be_read_at_all(model: nn.Module, said: str) -> None:
    with pytest.raises(LiftError, match=said):
        inflate(model, size=16)


def with_other_memory(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    y.set_(torch.zeros_like(y))
    return net.d(y)


def of_a_sparse_table(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(torch.sparse.mm(net.table[0], y.transpose(0, 1).flatten(1)).view_as(y))


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (with_other_memory, "d uses a tensor that set_ freed or gave other memory; assign a new tensor instead"),
        (of_a_sparse_table, r"a tensor that is not dense \(torch.sparse_coo\): use to_dense\(\) of it"),
    ],
)
def test_tensors_whose_memory_is_not_known(forward: Any, said: str) -> None:
    with pytest.raises(LiftError, match=said):
        inflate(Net(forward, table=[torch.eye(8).to_sparse()]), size=16)
