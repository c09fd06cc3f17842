"""Casts in hand-written networks: their values, and what shares memory with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from i3dconvert import inflate
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LiftError
from tests.lift.anybody import framewise
from tests.lift.test_code_at_home import Forward, Net, clip_of


def test_a_bias_of_another_dtype_than_the_scores() -> None:
    """torch's fused attention reads such a mask wrongly."""

    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.c(x).flatten(2).transpose(1, 2)
        query, key, value = net.qkv(tokens).chunk(3, -1)
        far = -(torch.arange(tokens.shape[1]).unsqueeze(1) - torch.arange(tokens.shape[1])).abs() * torch.tensor(0.25)
        return ((query @ key.mT + far).softmax(-1) @ value).mean(1)

    model, clip = Net(forward), clip_of(2, 1, 8, 8).expand(-1, -1, 3, -1, -1)
    with torch.no_grad():
        assert relative_error(framewise(model, clip), inflate(model, "joint", size=8)(clip)) <= 1e-12


def after_a_cast(code: str) -> Forward:
    """A forward pass that casts, writes and reads; `x` and `y` share memory where the cast changes nothing."""

    def forward(net: Any, x: Tensor) -> Tensor:
        names = {"x": net.c(x), "w": torch.zeros((), dtype=x.dtype), "dtype": x.dtype}
        exec(code, names)
        return net.d(names["out"])

    return forward


@pytest.mark.parametrize(
    "code",
    [
        "y = x.double(); y.mul_(2); out = x",
        "y = x.double(); x[:, 0] = 0; out = y",
        "y = x.type_as(w); x[:, 0] = 0; out = y",
        "y = x.to(dtype); x[:, :2].mul_(0); out = y",
        "y = x.double(); v = y[:, :]; x[:, 0] = 0; out = v",
        "v = x[:, :]; y = x.double(); v.zero_(); out = y",
        "v = x[:, :]; y = x.double(); y[:, 0] = 0; out = v",
        "z = x.double().double(); z[:, 0] = 0; out = x",
    ],
)
def test_what_shares_memory_behind_a_cast_is_not_read_after_a_write(code: str) -> None:
    with pytest.raises(LiftError, match=r"a tensor that \w+ wrote into in the same dtype; clone it first"):
        inflate(Net(after_a_cast(code)), "c2d", size=8)


@pytest.mark.parametrize("code", ["out = x.type_as(w); out.mul_(2)", "out = x.to(dtype); out[:, 0] = 0"])
def test_the_result_of_a_cast_may_be_written_to(code: str) -> None:
    model, clip = Net(after_a_cast(code)), clip_of(2, 3, 8, 8)
    with torch.no_grad():
        assert relative_error(framewise(model, clip), inflate(model, "c2d", size=8)(clip)) <= 1e-12
