"""Sizes, and decisions on them: what is computed anew, checked at each call, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert import inflate, save
from i3dconvert.checkpoint import read
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import FramesError, LiftError
from tests.lift.anybody import Forward, Net, clip_of, framewise


def test_a_decision_on_a_size_is_checked_at_each_call() -> None:
    def pools_until_small(net: Any, x: Tensor) -> Tensor:
        y = net.c(x)
        while y.shape[2] > 8:
            y = F.max_pool2d(y, 2)
        return net.d(y).mean((2, 3))

    model = Net(pools_until_small)
    network = inflate(model, "c2d", size=16)
    assert not network.inflation.any_size
    clip = clip_of(2, 2, 16)
    with torch.no_grad():
        assert relative_error(framewise(model, clip), network(clip)) <= 1e-12


def test_arithmetic_that_gives_the_same_at_small_sizes_is_computed_anew() -> None:
    model = Net(lambda net, x: net.d(net.c(x)) * (1 + x.shape[2] // 100))
    network = inflate(model, "c2d", size=16)
    with torch.no_grad():
        for size in (16, 120):
            clip = clip_of(1, 2, size)
            assert relative_error(framewise(model, clip), network(clip)) <= 1e-12


def test_a_decision_that_falls_otherwise_is_refused_with_its_line() -> None:
    def odd_ones_are_padded(net: Any, x: Tensor) -> Tensor:
        return net.d(F.pad(net.c(x), (0, 1)) if x.shape[3] % 2 else net.c(x))

    network = inflate(Net(odd_ones_are_padded), "c2d", size=16)
    with torch.no_grad(), pytest.raises(LiftError, match=r"test_sizes\.py:\d+: .* depends on 1 != 0 here"):
        network(clip_of(1, 2, 17))


def rows_of_the_input_beside_a_pooled_map(net: Any, x: Tensor) -> Tensor:
    rows, pooled = x.size(0), net.p(net.c(x))
    ramp = torch.linspace(-1, 1, pooled.size(2)).view(1, 1, -1, 1).repeat(rows, 1, 1, pooled.size(3))
    return net.d(pooled * ramp.to(pooled))


@pytest.mark.parametrize("frames", [4, 5])
def test_a_batch_size_read_before_a_stride_and_used_behind_it(frames: int) -> None:
    model = Net(rows_of_the_input_beside_a_pooled_map, p=nn.MaxPool2d(2))
    network = inflate(model, "volumetric", size=16)
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        still = network(image.unsqueeze(2).repeat(1, 1, frames, 1, 1))
        assert relative_error(model(image).unsqueeze(2).expand_as(still), still) <= 1e-12


def windows_of_four(net: Any, x: Tensor) -> Tensor:
    first, *_, last = net.c(x).split(4, 2)
    return net.d(first + last)


def a_threshold_that_forgets(net: Any, x: Tensor) -> Tensor:
    return net.d(net.c(x) * (2 if int(x.shape[2]) > 20 else 1))


def a_loop_that_grows_late(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    for _ in range(x.shape[2] // 60):
        y = y * 2
    return net.d(y)


@pytest.mark.parametrize("forward", [windows_of_four, a_threshold_that_forgets, a_loop_that_grows_late])
def test_a_size_that_would_be_wrong_is_refused(forward: Forward) -> None:
    model = Net(forward)
    network = inflate(model, "c2d", size=16)
    assert "only clips of 16×16" in network.inflation.sizes()
    assert relative_error(framewise(model, clip_of(2, 3, 16)), network(clip_of(2, 3, 16))) <= 1e-12
    with pytest.raises(FramesError, match="the clip is 64×64; the network was inflated only for 16×16"):
        network(clip_of(1, 2, 64))
    larger = inflate(model, "c2d", size=64)
    assert relative_error(framewise(model, clip_of(1, 2, 64)), larger(clip_of(1, 2, 64))) <= 1e-12


def test_sizes_beyond_those_that_were_tried_are_warned_of_once(
    recwarn: pytest.WarningsRecorder, tmp_path: Path
) -> None:
    network = inflate(Net(lambda net, x: net.d(net.c(x))), "c2d", size=16)
    assert network.inflation.sizes() == "heights 8 to 64 and widths 4 to 64 were tried"
    network(clip_of(1, 1, 64))
    assert not recwarn.list
    for _ in range(2):
        network(clip_of(1, 1, 65))
    assert [str(found.message) for found in recwarn.list] == [
        "the clip is 65×65; heights 8 to 64 and widths 4 to 64 were tried: compare the networks at this size"
    ]
    save(network, tmp_path / "net.safetensors")
    assert read(tmp_path / "net.safetensors")[0].inflation.tried == ((8, 64), (4, 64))


class Warped(nn.Module):
    """A spatial transformer, whose grid is made of the whole shape: torch compares its sizes with one another."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.conv = nn.Linear(3, 6), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.turn(x.mean((2, 3))).view(-1, 2, 3)
        return self.conv(F.grid_sample(x, F.affine_grid(theta, x.size(), align_corners=True), align_corners=True))


def test_what_torch_decides_by_sizes_inside_a_function_fixes_nothing() -> None:
    model = Warped().double()
    network = inflate(model, "c2d", size=16)
    clip = torch.randn(2, 3, 7, 24, 20, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([model(clip[:, :, t]) for t in range(7)], 2)
        assert relative_error(expected, network(clip)) <= 1e-12


class OddUnet(nn.Module):
    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 3, 3, stride, 1), nn.Upsample(scale_factor=stride)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))[:, :, : x.size(2), : x.size(3)]


def test_a_length_at_which_branches_are_out_of_step_is_said_with_those_that_go_through() -> None:
    network = inflate(OddUnet(), "volumetric", size=16)
    assert network(torch.randn(1, 3, 6, 16, 16)).shape == (1, 3, 6, 16, 16)
    with pytest.raises(FramesError, match="a clip of 5 frames does not fit, one of 4 or 6 does"):
        network(torch.randn(1, 3, 5, 16, 16))
    with pytest.raises(FramesError, match="a clip of 6 frames does not fit, one of 4 or 8 does"):
        inflate(OddUnet(4), "volumetric", size=16)(torch.randn(1, 3, 6, 16, 16))
