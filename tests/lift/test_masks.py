"""Elements that a boolean mask picks, computed with and written back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from i3dconvert import inflate, optimize
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LiftError
from tests.lift.anybody import framewise
from tests.lift.test_code_at_home import Net, clip_of


def scaled(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    y[y < 0] *= 0.1
    y[y > 1] = y[y > 1].sqrt() + 1
    return net.d(y)


def of_another_tensor(net: Any, x: Tensor) -> Tensor:
    y, z = net.c(x), net.c(x + 1)
    low = y < 0
    y[low] = F.leaky_relu(z[low], 0.3) - y[low]
    return net.d(y)


def of_pixels(net: Any, x: Tensor) -> Tensor:
    y = net.c(x).permute(0, 2, 3, 1)
    bright = x.mean(1) > 0
    y[bright] = y[bright] * net.scale + 1
    return net.d(y.permute(0, 3, 1, 2))


def through_a_view(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    half = y[:, :4]
    half[half < 0] *= 0.1
    return net.d(y) + half[:, :2]


def at_places(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    y[torch.where(y < 0)] = 0.25
    y[(y > 1).nonzero(as_tuple=True)] *= 0.5
    return net.d(y)


def by_masks_of_constants(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    y[:, torch.tensor([True, False] * 4)] *= 2
    return net.d(y[:, :, torch.arange(y.shape[2]) % 2 == 0])


def by_tensors_without_axes(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    y[:, torch.tensor(3)] += 1
    row = y[:, :, torch.tensor(x.shape[2] // 2)].unsqueeze(2)
    return net.d(y[:, torch.tensor(True)].squeeze(1) * row + y[:, torch.tensor(False)].sum(1))


@pytest.mark.parametrize(
    "forward",
    [scaled, of_another_tensor, of_pixels, through_a_view, at_places, by_masks_of_constants, by_tensors_without_axes],
)
def test_elements_that_a_mask_picks_are_written_back(forward: Any) -> None:
    model, clip = Net(forward, scale=torch.linspace(-1, 1, 8)), clip_of(2, 3, 12, 20)
    network = inflate(model, "c2d", size=16)
    expected = framewise(model, clip)
    assert relative_error(expected, network(clip)) <= 1e-12
    assert relative_error(expected, optimize(network)(clip)) <= 1e-12
    still = clip[:, :, :1].expand(-1, -1, 3, -1, -1)
    volumetric = inflate(model, "volumetric", "mean", size=16)
    assert relative_error(framewise(model, still), volumetric(still)) <= 1e-12


def test_gradients_do_not_see_the_other_elements() -> None:
    def roots(net: Any, x: Tensor) -> Tensor:
        y = net.c(x)
        high = y > 0.6
        y = y.clone()
        z = y[high] - 0.6
        z /= net.scale
        y[high] = net.scale * z.sqrt()
        y[~high] = -torch.log1p(-y[~high])
        return net.d(y)

    model, clip = Net(roots, scale=torch.nn.Parameter(torch.ones(()))), clip_of(1, 2, 8, 8)
    network = inflate(model, "c2d", size=8)
    framewise(model, clip).square().sum().backward()
    network(clip).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert relative_error(parameter.grad, network.get_parameter(name).grad.view_as(parameter)) <= 1e-10


def averaged(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(y) * y[y > 0].mean()


def returned(net: Any, x: Tensor) -> Any:
    y = net.c(x)
    return net.d(y), y[y > 0]


def counted(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(y) * len(y[y > 0])


def with_another_mask(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    y[y < 0] = y[y > 0]
    return net.d(y)


def of_a_random_mask(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    y[torch.rand_like(y) < 0.5] = y[torch.rand_like(y) < 0.5]
    return net.d(y)


def with_a_changed_mask(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    mask = y < 0
    low = y[mask]
    mask.logical_not_()
    y[mask] = low
    return net.d(y)


def at_places_of_a_changed_mask(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    mask = y < 0
    places = torch.where(mask)
    mask.logical_not_()
    y[places] = 0
    return net.d(y)


def at_swapped_places(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    images, channels = torch.where(y.mean((2, 3)) < 0)
    return net.d(y[:, :, :2][channels % 2, images])


@pytest.mark.parametrize("forward", [at_places_of_a_changed_mask, at_swapped_places])
def test_other_uses_of_the_places_are_refused(forward: Any) -> None:
    with pytest.raises(LiftError, match="uses the places where a mask is true"):
        inflate(Net(forward), size=16)


def selected(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(y) * torch.masked_select(y, y > 0).sum()


@pytest.mark.parametrize(
    "forward",
    [averaged, returned, counted, with_another_mask, of_a_random_mask, with_a_changed_mask, selected],
)
def test_other_uses_of_them_are_refused(forward: Any) -> None:
    with pytest.raises(LiftError, match=r"the elements that a mask picks \(.*test_masks.py:\d+\)"):
        inflate(Net(forward), size=16)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda net, x: net.d(net.c(x)[:, net.flag].squeeze(1)), "depends on the value of flag"),
        (lambda net, x: net.d(net.c(x)[:, (x > 0).any()].squeeze(1)), "depends on the data"),
    ],
)
def test_an_index_that_is_not_a_constant_is_refused(forward: Any, said: str) -> None:
    with pytest.raises(LiftError, match=rf"reads a tensor's value \(an index\), which {said}"):
        inflate(Net(forward, flag=torch.tensor(True)), size=16)
