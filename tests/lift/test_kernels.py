"""The inits, and that their taps sum to the 2D kernel exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3dconvert.errors import RecipeError
from i3dconvert.lift.kernels import Style, center, deflate, identity, mean, phased

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
    nearest = (kernel.double() / taps).float()
    rest = kernel.double() - (taps - 1) * nearest.double()
    if taps > 1:  # the nearest float, wherever the middle tap can hold what it leaves over
        assert torch.equal(inflated[:, :, 0][rest.float().double() == rest], nearest[rest.float().double() == rest])


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


def test_phases_are_the_kernel_at_consecutive_taps() -> None:
    kernel = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    inflated = phased(kernel, 5, 1, 2)
    assert inflated.shape == (2, 3, 5, 4, 5)
    assert [torch.equal(tap, kernel) for tap in inflated.unbind(2)] == [False, True, True, False, False]
    assert all(not tap.any() for tap in inflated[:, :, [0, 3, 4]].unbind(2))


@pytest.mark.parametrize(("outputs", "inputs"), [(4, 4), (6, 2), (3, 1)])
def test_the_identity_of_grouped_convolutions_changes_nothing(outputs: int, inputs: int) -> None:
    weight = identity(outputs, inputs, torch.float64)
    assert (weight.shape, weight.dtype) == ((outputs, inputs, 1, 1), torch.float64)
    image = torch.randn(2, outputs, 3, 4, dtype=torch.float64)
    assert torch.equal(torch.nn.functional.conv2d(image, weight, groups=outputs // inputs), image)


def test_a_style_takes_the_padding_of_its_init() -> None:
    assert Style("center").checked().padding == "zeros"
    assert Style("mean").checked().padding == "replicate"
    assert Style("mean", "zeros").checked().padding == "zeros"
    for style, complaint in (
        (Style("median"), "unknown init 'median'; known: center, mean"),
        (Style(conv="4d"), "unknown form of convolution '4d'"),
        (Style(temporal_pool="sum"), "unknown temporal pool 'sum'"),
        (Style(time_embedding="ones"), "unknown time embedding 'ones'"),
        (Style(padding="same"), "unknown temporal padding 'same'"),
    ):
        with pytest.raises(RecipeError, match=complaint):
            style.checked()
