"""The check of the weights: bits for `center`, rounding for `mean`, places for both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from i3dconvert import inflate
from i3dconvert.comparison.report import Check
from i3dconvert.lift.network import Network3d
from i3dconvert.verification.tensors import check_weights


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)


@pytest.fixture(scope="module", params=["center", "mean"])
def made(request: pytest.FixtureRequest) -> tuple[Small, Network3d, str]:
    torch.manual_seed(0)
    model = Small()
    return model, inflate(model, "uniform", init=request.param, size=8), request.param


def checked(model: Small, network: Network3d, **changed: Tensor) -> Check:
    state = dict(network.state_dict()) | {f"conv.{key}": tensor for key, tensor in changed.items()}
    return check_weights(network.inflation, model.state_dict(), state)


def test_the_last_bit_counts_where_taps_are_copies(made: tuple[Small, Network3d, str]) -> None:
    model, network, init = made
    kernel = network.state_dict()["conv.weight"].clone()
    equal = checked(model, network, weight=kernel)
    assert (equal.passed, "bit for bit" in equal.detail) == (True, init == "center")
    next_number = torch.nextafter(kernel, torch.tensor(torch.inf))
    assert checked(model, network, weight=next_number).passed == (init == "mean")
    bias = network.state_dict()["conv.bias"]
    assert not checked(model, network, bias=torch.nextafter(bias, torch.tensor(torch.inf))).passed
    assert not checked(model, network, weight=kernel * 1.001).passed


def test_a_key_too_many_or_too_few_is_seen(made: tuple[Small, Network3d, str]) -> None:
    model, network, _ = made
    more = checked(model, network, more=torch.zeros(1))
    assert not more.passed
    assert more.detail == "1 keys are in only one of the networks, such as conv.more"
    assert not check_weights(network.inflation, model.state_dict(), {}).passed


def test_what_differs_is_said(made: tuple[Small, Network3d, str]) -> None:
    model, network, init = made
    kernel = network.state_dict()["conv.weight"]
    if init == "center":
        elsewhere = checked(model, network, weight=kernel.roll(1, 2)).detail
        assert "conv.weight (its taps sum to the 2D kernel, but are at other positions) differs" in elsewhere
    one_tap = checked(model, network, weight=kernel.sum(2, keepdim=True)).detail
    assert "conv.weight (shape (4, 3, 1, 3, 3) instead of (4, 3, 3, 3, 3)) differs" in one_tap
    both = checked(model, network, weight=kernel + 1, bias=torch.zeros(4)).detail
    assert "conv.weight (off by up to 1 in 324 of 324 values) and 1 more differ from" in both
