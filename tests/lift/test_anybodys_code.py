"""Networks as people write them: with `c2d`, a moving clip gives what the 2D network gives on each of its frames."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert import inflate, optimize
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LiftError
from tests.lift.anybody import Forward, Net, clip_of, framewise


def in_place_through_a_view(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    z = y.flatten(2)
    z.relu_()
    return net.d(y).mean((2, 3)) + z.sum(2)[:, :2]


def in_place_on_a_permutation(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    y.permute(0, 2, 3, 1).add_(net.d.weight.sum())
    return net.d(y)


def in_place_on_a_stride(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    before = y[:, :2]
    y[:, :, ::2].mul_(0.5)
    y[:, 0] = 1.0
    return net.d(y) + before


def views_of_a_tensor_written_to(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    half, whole = y[:, :2], y.unsqueeze(1)
    y.clamp_(min=0)
    return net.d(y) + half + whole[:, 0, 2:]


def a_number_instead_of_a_tensor(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(torch.where(y > 0, y, 0.1)) + torch.isin(y[:, :2].round(), torch.tensor([0.0, 1.0])).double()


def in_place_on_chunks(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    first, _ = y.chunk(2, 1)
    first.mul_(2)
    y.unbind(1)[3].add_(1)
    return net.d(y)


def in_place_on_a_flat_view(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    flat = y.view(x.shape[0], -1)
    flat /= flat.norm(dim=1, keepdim=True)
    return net.d(y)


def a_mask_of_ones_that_is_read(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    mask = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool)
    if torch.any(mask == 0) or not mask.all():
        y = y * 3
    return net.d(y) * float(torch.linspace(0, 1, 5).sum())


@lru_cache(maxsize=2)
def positions(height: int, width: int) -> Tensor:
    return torch.arange(height * width).view(height, width) / (height * width)


def positions_from_a_cache(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(y * positions(y.shape[2], y.shape[3]).to(y))


class Swish(torch.autograd.Function):
    """As efficientnet_pytorch has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def a_function_of_ones_own(net: Any, x: Tensor) -> Tensor:
    return net.d(Swish.apply(net.c(x)))


class Reversible(torch.autograd.Function):
    """A reversible block, which frees its values, as pytorchcv's RevNet has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, net: Any, *parameters: Tensor) -> Tensor:
        with torch.no_grad():
            first, second = (part.contiguous() for part in x.chunk(2, 1))
            sums = first + net.inner(second), second + net.inner(first)
            y = torch.cat(sums, 1)
            for freed in (first, second, *sums):
                freed.set_()  # type: ignore[call-overload]
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, *[None] * 3


def a_function_that_frees_its_values(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    z = Reversible.apply(y, net, *net.inner.parameters())
    y.data.set_()
    return net.d(z)


def turned_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    flat = y.flatten(2)
    y.transpose_(2, 3).mul_(2).unsqueeze_(1)
    return net.d(flat.reshape(x.shape[0], -1, *x.shape[2:])) + net.d(y.squeeze(1)).transpose(2, 3)


def the_batch_as_a_plain_number(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(y).mean((2, 3)).view(len(x), -1) + y.reshape(int(x.shape[0]), 4, -1).mean(2)[:, :2]


def windows_as_swins_authors_reverse_them(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    _, channels, height, width = y.shape
    windows = y.view(-1, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 4, channels)
    batch = int(windows.shape[0] / (height * width / 4 / 4))
    back = windows.view(batch, height // 4, width // 4, 4, 4, -1).permute(0, 5, 1, 3, 2, 4)
    return net.d(back.reshape(batch, channels, height, width))


def a_named_argument(net: Any, x: Tensor) -> Tensor:
    return net.d(input=net.c(input=x))


def sizes_by_arithmetic(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    height, width = int(y.shape[2] * 0.5), max(y.shape[2], y.shape[3]) // 2
    return net.d(F.interpolate(y, size=(height, width), mode="bilinear"))


def a_constant_of_the_images_dtype(net: Any, x: Tensor) -> Tensor:
    ramp = torch.linspace(0, 1, x.shape[3], dtype=x.dtype, device=x.device)
    return net.d(net.c(x) * ramp)


def norms_over_space(net: Any, x: Tensor) -> Tensor:
    return F.instance_norm(net.d(F.group_norm(net.c(x), 2)))


def images_in_another_memory_order(net: Any, x: Tensor) -> Tensor:
    y = F.group_norm(net.c(x.to(memory_format=torch.channels_last)).contiguous(memory_format=torch.channels_last), 2)
    z = y.clone(memory_format=torch.channels_last)
    z.flatten(2).mul_(2)
    return net.d(y + z)


FORWARDS = (
    norms_over_space,
    in_place_through_a_view,
    in_place_on_a_permutation,
    in_place_on_a_stride,
    in_place_on_chunks,
    in_place_on_a_flat_view,
    turned_in_place,
    a_mask_of_ones_that_is_read,
    positions_from_a_cache,
    views_of_a_tensor_written_to,
    a_number_instead_of_a_tensor,
    a_function_of_ones_own,
    the_batch_as_a_plain_number,
    windows_as_swins_authors_reverse_them,
    a_named_argument,
    sizes_by_arithmetic,
    a_constant_of_the_images_dtype,
    images_in_another_memory_order,
)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("size", [16, 52])
def test_each_frame_is_the_2d_networks(forward: Forward, size: int) -> None:
    model = Net(forward)
    network = inflate(model, "c2d", size=size).eval()
    with torch.no_grad():
        for clips, frames in ((1, 1), (1, 5), (3, 2)):
            clip = clip_of(clips, frames, size)
            before = clip.clone()
            assert relative_error(framewise(model, clip), network(clip)) <= 1e-12
            assert torch.equal(clip, before)


def test_hooks_of_the_users_run() -> None:
    model = Net(lambda net, x: net.d(net.c(x)))
    model.c.register_forward_hook(lambda module, args, output: output * 2)
    model.d.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    clip = clip_of(2, 3, 16)
    with torch.no_grad():
        assert relative_error(framewise(model, clip), inflate(model, "c2d", size=16)(clip)) <= 1e-12


def test_places_and_flags_keep_their_time() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        scores = net.c(x).mean((2, 3))
        best = scores.topk(2)
        return {"values": best.values, "places": best.indices, "flags": scores > 0, "scores": scores}

    model, clip = Net(forward), clip_of(2, 3, 16)
    network = inflate(model, "c2d", size=16)
    with torch.no_grad():
        found, frames = network(clip), [model(frame) for frame in clip.unbind(2)]
        for name in ("values", "places", "flags"):
            expected = torch.stack([frame[name] for frame in frames], 1)
            assert found[name].dtype == expected.dtype
            assert torch.allclose(found[name].double(), expected.double(), rtol=0, atol=1e-12), name
        assert found["scores"].shape == (2, 4)


def test_a_value_of_the_networks_own_tensors_is_not_baked_in() -> None:
    with pytest.raises(LiftError, match="depends on the value of k, which may change when weights are loaded"):
        inflate(Net(lambda net, x: net.c(x) * net.k.item(), k=nn.Parameter(torch.tensor(2.0))), size=16)


def test_optimized_a_kernel_that_is_read_elsewhere_is_kept() -> None:
    model = Net(lambda net, x: net.d(net.c(x)) * net.d.weight.norm() + net.c.bias[:2, None, None])
    clip = clip_of(1, 3, 16)
    assert relative_error(framewise(model, clip), optimize(inflate(model, "c2d", size=16))(clip)) <= 1e-12


@lru_cache
def registry() -> object:
    return object()


def test_only_caches_of_sizes_are_emptied() -> None:
    held = registry()
    inflate(Net(positions_from_a_cache), size=8)
    assert registry() is held


class ChosenForward(nn.Module):
    """Its constructor chooses the forward pass, as timm's FasterNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.kept = nn.Conv2d(2, 2, 3, padding=1), 2
        self.forward = self.split

    def split(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x[:, : self.kept]), x[:, self.kept :]], 1)


def test_a_forward_pass_that_the_constructor_chose_is_read() -> None:
    model = Net(lambda net, x: net.d(net.part(net.c(x))), part=ChosenForward())
    network = inflate(model, "uniform", size=12)
    assert network.inflation.convolutions.lifted == 3
    clip = clip_of(1, 1, 12)
    torch.testing.assert_close(network(clip), framewise(model, clip))
    with pytest.raises(LiftError, match="kept = 2 is part of the code"):
        network.part.kept = 1


class Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Turning(nn.Module):
    """Has no weights, and turns its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x
        return x.transpose_(2, 3)


class Raising(nn.Module):
    """Has no weights, and writes into a view of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x
        x.transpose(2, 3).add_(torch.arange(12.0, dtype=x.dtype))
        return x


def a_module_that_returns_an_object(net: Any, x: Tensor) -> Tensor:
    return net.d(net.part(net.c(x)).tensor)


def a_turn_of_a_tensor_with_a_view_that_was_written_to(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    view = y[:, :2, :1]
    y.add_(1)
    y.transpose_(2, 3)
    return net.d(y * 2) + view


def a_turn_inside_a_block(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    z = net.part(y)
    return net.d(y * torch.arange(12.0, dtype=y.dtype)) + z


def a_write_through_a_view_inside_a_module(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    net.part(y)
    return net.d(y * torch.arange(12.0, dtype=y.dtype))


class Holding(nn.Module):
    def forward(self, x: Tensor) -> Held:
        return Held(x)


@pytest.mark.parametrize(
    ("forward", "part"),
    [
        (a_module_that_returns_an_object, Holding()),
        (a_turn_of_a_tensor_with_a_view_that_was_written_to, nn.Identity()),
        (a_turn_inside_a_block, nn.Sequential(Turning(), nn.Conv2d(4, 2, 3, padding=1))),
        (a_write_through_a_view_inside_a_module, Raising()),
    ],
)
def test_modules_that_return_what_they_were_given(forward: Forward, part: nn.Module) -> None:
    model = Net(forward, part=part)
    network = inflate(model, "c2d", size=12)
    for clips in (1, 3):
        clip = clip_of(clips, 2, 12)
        torch.testing.assert_close(network(clip), framewise(model, clip))
