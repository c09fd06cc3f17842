"""Each way that a 3D tensor comes about: its shape without making it is the shape of what is made."""

import pytest
import torch

from i3dconvert.lift.fillings import Copy, Filling, Identity, Phases, Repeated, Taps, Zeros
from i3dconvert.lift.kernels import mean

KERNEL = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
FILLINGS: tuple[tuple[Filling, torch.Tensor, int, int], ...] = (
    (Taps(5), KERNEL, 5, 1),
    (Phases(4, 1, 2), KERNEL, 4, 2),
    (Identity(4, 2, 3, like=("weight",)), KERNEL, 1, 1),
    (Zeros((7, 8), like=("weight",)), KERNEL, 1, 1),
    (Copy(like=("weight",)), KERNEL, 1, 1),
    (Repeated(3), torch.randn(5, 2), 3, 1),
)


@pytest.mark.parametrize(("filling", "tensor", "times", "copies"), FILLINGS)
@pytest.mark.parametrize("init", ["center", "mean"])
def test_shape_and_numbers(filling: Filling, tensor: torch.Tensor, times: int, copies: int, init: str) -> None:
    made = filling(tensor.half(), init)
    assert made.shape == filling.shape(tuple(tensor.shape))
    assert made.dtype == torch.float16
    assert (filling.times, filling.copies) == (times, copies)
    assert filling.is_new == bool(filling.like)
    assert filling.is_kernel == isinstance(filling, Taps)
    if not filling.is_new:
        assert made.numel() == times * tensor.numel()
    if filling.is_kernel:  # the taps hold the 2D kernel so many times
        assert torch.allclose(filling(tensor, init).sum(2), copies * tensor, atol=1e-5)


def test_what_is_made() -> None:
    assert torch.equal(Taps(3)(KERNEL, "mean"), mean(KERNEL, 3))
    assert not Zeros((2, 3), like=("a",))(KERNEL, "center").any()
    copy = Copy(like=("a",))(KERNEL, "center")
    assert torch.equal(copy, KERNEL)
    assert copy.data_ptr() != KERNEL.data_ptr()
    table = torch.randn(5, 2)
    assert torch.equal(Repeated(3)(table, "center"), torch.cat([table, table, table]))
    one = Identity(4, 2, 3, like=("a",))(KERNEL, "center")
    assert torch.equal(one[:, :, 1, 0, 0], torch.eye(2).repeat(2, 1))
    assert not one[:, :, [0, 2]].any()


def test_names_are_those_of_the_layer() -> None:
    assert Copy(like=("a", "b")).of("net.conv").like == ("net.conv.a", "net.conv.b")
