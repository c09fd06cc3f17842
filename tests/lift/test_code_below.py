"""Networks that run torch's operations below its Python functions, use NumPy's arrays, or accept one dtype only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function, Variable

from i3dconvert import inflate, optimize
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LiftError
from tests.lift.anybody import framewise
from tests.lift.test_code_at_home import Forward, Net, clip_of


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.view(x.size(0), x.size(1), -1).relu().mean(-1)


def of_a_variable(net: Any, x: Tensor) -> Tensor:
    y = net.c(Variable(x))
    other = Variable(y)
    other.add_(1.0)
    return net.d(y) + other[:, :2]


def on_numpy(net: Any, x: Tensor) -> Tensor:
    factors = torch.from_numpy(np.ones(8))
    factors.mul_(2)
    factors[0] = 5
    array = np.arange(8.0)
    y = net.c(x) * factors.view(-1, 1, 1) + torch.tensor(array, dtype=x.dtype).view(-1, 1, 1)
    array[0] = 7
    return net.d(y + torch.tensor(array, dtype=x.dtype).view(-1, 1, 1))


def of_old_types(net: Any, x: Tensor) -> Tensor:
    zeros = torch.Tensor(x.size(0), 8, x.size(2), x.size(3)).zero_().type(x.type())
    half = torch.FloatTensor(1).fill_(0.5).type("torch.DoubleTensor")
    return net.d(net.c(x.type(torch.DoubleTensor)) * half + zeros)


def profiled(net: Any, x: Tensor) -> Tensor:
    with torch.profiler.record_function("stem"):
        y = net.c(x)
    return net.d(y)


class Scans(Function):
    """The rows of an image in both directions, written into an empty tensor as VMamba's code does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scans = x.new_empty(x.shape[0], 2, x.shape[1], x.shape[2] * x.shape[3])
        scans[:, 0] = x.flatten(2)
        scans[:, 1] = torch.flip(scans[:, 0], dims=[-1])
        return scans

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError


CODES: dict[str, Forward] = {
    "script function": lambda net, x: scripted(net.c(x)),
    "variable": of_a_variable,
    "numpy": on_numpy,
    "old types": of_old_types,
    "profiled": profiled,
    "scans": lambda net, x: Scans.apply(net.c(x)).cumsum(-1)[:, 0].mean(-1),  # type: ignore[no-untyped-call]
}


@pytest.mark.parametrize("code", CODES.values(), ids=list(CODES))
def test_code_below_the_functions_of_torch(code: Forward) -> None:
    model = Net(code)
    network = inflate(model, "c2d", size=16)
    with torch.no_grad():
        for clips, frames, height, width in ((2, 3, 16, 16), (1, 2, 12, 20)):
            clip = clip_of(clips, frames, height, width)
            assert relative_error(framewise(model, clip), network(clip)) <= 1e-12


def test_a_network_that_runs_in_one_dtype_only() -> None:
    model = Net(lambda net, x: net.d(net.c(x.float()))).float()
    network = inflate(model, "c2d", size=16)
    clip = clip_of(2, 3, 12, 20).float()
    with torch.no_grad():
        assert relative_error(framewise(model, clip), network(clip)) <= 1e-5


class Cells(nn.Module):
    """Its first layer by name is not the first that sees the image, and its state is a tensor on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.stem = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.state = [torch.zeros(1, 4, 1, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(torch.add(self.stem(x), self.state[0]).sigmoid())


def test_the_channels_of_a_network_with_tensors_outside_its_buffers() -> None:
    assert inflate(Cells(), "c2d", size=16).inflation.input == (3, 16, 16)


class Keywords(nn.Module):
    """Calls modules and functions by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(input=self.pool(input=torch.relu(input=self.conv(input=x))))
        y = F.interpolate(input=torch.cat(tensors=[y[:, :4], y[:, 4:]], dim=1), size=(8, 8))
        tokens = torch.flatten(input=y, start_dim=2).transpose(1, 2)
        attended, _ = self.attention(query=tokens, key=tokens, value=tokens, need_weights=False)
        attended = attended * torch.tensor(data=[2.0]) * torch.as_tensor(data=np.float64([3.0]))
        return self.head(input=torch.mean(input=attended, dim=1))


@pytest.mark.parametrize("recipe", ["c2d", "volumetric"])
def test_calls_by_keyword(recipe: str) -> None:
    model = Keywords().double().eval()
    network = inflate(model, recipe, size=16).eval()
    still = clip_of(2, 1, 16, 16).expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        assert relative_error(model(still[:, :, 0]), network(still)) <= 1e-12
        assert relative_error(network(still), optimize(network)(still)) <= 1e-12


def by_device(net: Any, x: Tensor) -> Tensor:
    y = net.c(x) * (2 if x.is_cpu else 1) + (3 if x.device == torch.device("cpu") else 1)
    with torch.autocast(x.device.type, enabled=False):
        return net.d(y) * (2 if next(net.parameters()).device.type == "cpu" else 1) + torch.ones(1, device=x.device)


def test_a_decision_on_the_device_is_that_of_the_2d_network() -> None:
    model, clip = Net(by_device), clip_of(2, 3, 12, 20)
    with torch.no_grad():
        assert relative_error(framewise(model, clip), inflate(model, "c2d", size=16)(clip)) <= 1e-12


def test_a_decision_on_the_dtype_is_refused() -> None:
    with pytest.raises(LiftError, match=r"depends on the dtype of the image.*the same steps for each dtype"):
        inflate(Net(lambda net, x: net.d(net.c(x) * (2 if x.dtype == torch.float64 else 1))), "c2d", size=16)


def half_by_half(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    halves = torch.cat(net.halves(torch.cat(y.chunk(2, 1))).chunk(2), 1)
    return net.d(halves + net.places(torch.ones(1, 1, *y.shape[2:]).to(y)))


def test_why_a_convolution_stays_2d() -> None:
    model = Net(half_by_half, halves=nn.Conv2d(4, 4, 3, padding=1), places=nn.Conv2d(1, 8, 1))
    assert dict(inflate(model, size=16).inflation.convolutions.kept) == {
        "halves": "its input has several rows for each frame (windows, heads), which are not images grouped by frame",
        "places": "its input does not vary with the clip",
    }
