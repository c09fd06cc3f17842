"""Convolutions are lifted however the code calls them; those that stay 2D are counted and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert import inflate
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import I3DWarning, LiftError
from i3dconvert.lift.describe import describe
from tests.lift.anybody import Forward, Net, clip_of, framewise
from tests.lift.test_anybodys_code import a_function_that_frees_its_values


class Subclass(nn.Conv2d):
    """Which changes nothing."""


class Padded(nn.Conv2d):
    """Which calls the function."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class WithAPad(nn.Conv2d):
    """Which pads by a layer of its own."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3)
        self.pad = nn.ZeroPad2d(1)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(self.pad(input), self.weight, self.bias)


class Norm(nn.BatchNorm2d):
    """Which changes nothing."""


@pytest.mark.parametrize(
    "layer", [Subclass(4, 4, 3, padding=1), Padded(4, 4, 3), Padded(4, 4, 3, 2, bias=False), WithAPad()]
)
def test_convolutions_are_lifted_however_they_are_called(layer: nn.Module) -> None:
    parts = {"e": layer, "n": Norm(4), "unreached": Padded(4, 4, 3)}
    model = Net(lambda net, x: F.conv2d(net.n(net.e(net.c(x))), net.d.weight, net.d.bias, 2), **parts)
    network = inflate(model, "uniform", size=16)
    assert [found.name for found in network.inflation.layers if found.lifted] == ["c", "e", "d"]
    assert {key: tensor.dim() for key, tensor in network.state_dict().items() if tensor.dim() > 3} == dict.fromkeys(
        ("c.weight", "e.weight", "d.weight", "unreached.weight"), 5
    )
    assert isinstance(network.get_submodule("n"), nn.BatchNorm3d)
    clip = clip_of(2, 1, 16).expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        assert relative_error(model(clip[:, :, 0]).unsqueeze(2).expand(-1, -1, 4, -1, -1), network(clip)) <= 1e-12


def test_a_layer_called_with_an_image_and_with_something_else_stays_2d() -> None:
    model = Net(lambda net, x: net.d(net.c(x) + net.c(net.p)), p=nn.Parameter(torch.zeros(1, 3, 16, 16)))
    network = inflate(model, "uniform", size=16)
    assert [found.name for found in network.inflation.layers if found.lifted] == ["d"]
    clip = clip_of(2, 1, 16).expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        assert relative_error(model(clip[:, :, 0]).unsqueeze(2).expand(-1, -1, 4, -1, -1), network(clip)) <= 1e-12


def a_kernel_without_a_tensor(net: Any, x: Tensor) -> Tensor:
    return net.d(F.conv2d(net.c(x), net.e.bias.outer(net.e.bias)[:, :, None, None]))


def layers_and_a_subclass(net: Any, x: Tensor) -> Tensor:
    return net.d(net.e(net.c(x)))


@pytest.mark.parametrize(
    ("forward", "lifted", "kept"),
    [
        (layers_and_a_subclass, 3, ""),
        (a_function_that_frees_its_values, 3, ""),
        (a_kernel_without_a_tensor, 2, "no tensor of the network has the shape of its kernel"),
    ],
)
def test_convolutions_are_counted_and_those_that_stay_2d_named(forward: Forward, lifted: int, kept: str) -> None:
    class OfAFunction(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.conv2d(input, self.weight, self.bias)

    model = Net(forward, e=OfAFunction(4, 4, 1), inner=nn.Conv2d(2, 2, 3, padding=1))
    network = inflate(model, "uniform", size=16)
    counted, clip = network.inflation.convolutions, clip_of(2, 3, 16)
    assert relative_error(framewise(model, clip), network(clip)) <= 1e-12
    assert (counted.run, counted.lifted) == (3, lifted)
    assert [reason[: len(kept)] for _, reason in counted.kept] == [kept] * bool(kept)
    if kept:
        with pytest.raises(LiftError, match=f"2 of 3 convolutions became 3D.*stays 2D: {kept}"):
            inflate(model, "uniform", size=16, strict=True)
    assert inflate(Net(layers_and_a_subclass, e=nn.Conv2d(4, 4, 1)), size=16, strict=True)


class Smoothed(nn.Module):
    """Has no weights and asks for the mode, so that it is kept as it is; its kernel is made in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype)
        return x if self.training else F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def test_the_dispatcher_counts_kernels_that_the_graph_does_not_show_and_calls() -> None:
    model = Net(lambda net, x: net.d(net.e(net.e(net.s(net.c(x))))), e=nn.Conv2d(4, 4, 1), s=Smoothed())
    counted = inflate(model, "uniform", size=16).inflation.convolutions
    assert (counted.run, counted.lifted, counted.calls) == (4, 3, 5)
    assert str(counted) == "3 of 4 convolutions (5 calls) became 3D"
    assert counted.kept == (("the network", "1 run inside unchanged steps"),)


def test_no_convolution_in_3d_is_a_warning() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.unflatten(2, (2, -1)).movedim(2, 0).flatten(0, 1)  # a window of all images, then the next
            return self.head(self.conv(windows).mean((2, 3)).unflatten(0, (2, -1)).mean(0))

    with pytest.warns(I3DWarning, match="0 of 1 convolution became 3D; NONE"):
        inflate(Windows().eval(), size=16)


def test_a_part_of_a_kernel_is_inspected() -> None:
    model = Net(lambda net, x: F.conv2d(x, net.c.weight[:2], padding=1))
    assert [row.kernel3d for row in describe(inflate(model, "uniform", size=12))] == [(3, 3, 3)]
