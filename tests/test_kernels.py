"""The inits, and that their taps sum to the 2D kernel exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3dconvert.kernels import center, deflate, mean

floats = st.floats(-(2.0**60), 2.0**60, width=32).map(lambda x: x if abs(x) > 2.0**-60 else 0.0)
kernels = hnp.arrays(np.float32, (2, 3, 1, 2), elements=floats).map(torch.from_numpy)


@given(kernels, st.integers(1, 9))
def test_center_puts_the_kernel_at_the_middle_tap(kernel: torch.Tensor, taps: int) -> None:
    inflated = center(kernel, taps)
    assert inflated.shape == (2, 3, taps, 1, 2)
    assert torch.equal(inflated[:, :, taps // 2], kernel)
    assert inflated.count_nonzero() == kernel.count_nonzero()
    assert torch.equal(deflate(inflated), kernel.double())


@given(kernels, st.integers(1, 9))
def test_mean_taps_are_shares_that_sum_exactly(kernel: torch.Tensor, taps: int) -> None:
    inflated = mean(kernel, taps)
    assert torch.equal(deflate(inflated), kernel.double())
    share = (kernel.double() / taps).unsqueeze(2)
    assert torch.all((inflated.double() - share).abs() <= 1e-6 * share.abs())


@pytest.mark.parametrize("taps", [3, 5, 7])
def test_mean_is_exact_at_the_top_of_a_binade(taps: int) -> None:
    near = torch.tensor(1.0) * taps
    steps = torch.arange(-200, 200, dtype=torch.float64) * float(torch.finfo(torch.float32).eps)
    kernel = (near.double() * (1 + steps)).float().reshape(-1, 1, 1, 1)
    inflated = mean(kernel, taps)
    assert torch.equal(deflate(inflated), kernel.double())
    naive = (kernel / taps).unsqueeze(2).repeat_interleave(taps, 2)
    assert not torch.equal(deflate(naive), kernel.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mean_is_exact_in_half_precision(dtype: torch.dtype) -> None:
    kernel = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(deflate(mean(kernel, 3)), kernel.double())
