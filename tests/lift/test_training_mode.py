"""Training is as in 2D: dropout, stochastic depth, batch norms, and what differs from evaluation."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from i3dconvert import inflate
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import I3DWarning
from tests.lift.anybody import Forward, Net, clip_of, framewise


def test_dropout_follows_the_mode_of_its_own_block() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    model = Net(lambda net, x: net.b(net.a(net.c(x))).mean((2, 3)), a=Block(), b=Block())
    network = inflate(model, "c2d", size=16)
    clip = clip_of(1, 2, 16)
    assert torch.equal(network(clip), network(clip))
    network.train()
    assert not torch.equal(network(clip), network(clip))
    for block in ("a", "b"):
        network.get_submodule(block).eval()
    assert torch.equal(network(clip), network(clip))


class Dropping(nn.Module):
    """Stochastic depth, as people copy it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(0.5) / 0.5


@pytest.mark.parametrize(
    "drop", [Dropping(), StochasticDepth(0.5, "row"), DropPath(0.5)], ids=lambda d: type(d).__name__
)
@pytest.mark.parametrize("part", ["images", "tokens"])
def test_a_path_is_dropped_for_whole_clips(drop: nn.Module, part: str) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.c(x)
        return net.drop(y).mean((2, 3)) if part == "images" else net.drop(y.flatten(2).transpose(1, 2)).mean(1)

    network = inflate(Net(forward, drop=drop), "c2d", size=8, temporal_pool="none").train()
    torch.manual_seed(0)
    dropped = network(clip_of(32, 3, 8)).abs().sum(-1) == 0
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert 0 < dropped[:, 0].sum() < 32


class Scaled(nn.BatchNorm2d):
    """With a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_a_subclass_of_batch_norm_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Scaled(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double()
    network, clip = inflate(model, "c2d", size=8).train(), clip_of(2, 3, 8)
    model.train()
    for _ in range(2):
        expected = model(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 3)).mean(1)
        assert relative_error(expected, network(clip)) <= 1e-12
    assert relative_error(model[1].running_var, network[1].running_var) <= 1e-12


def test_a_train_method_that_keeps_modules_in_eval_mode_is_named() -> None:
    class Frozen(Net):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.norm.eval()
            return self

    model = Frozen(lambda net, x: net.d(net.norm(net.c(x))), norm=nn.BatchNorm2d(4))
    with pytest.warns(I3DWarning, match=r"train\(\) of the 2D network leaves norm in eval mode"):
        inflate(model, "c2d", size=16)


def test_what_is_otherwise_in_training_is_said() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            y = self.conv(x).mean((2, 3))
            return (self.a(y), self.b(y)) if self.training else self.a(y)

    with pytest.warns(I3DWarning, match="the 2D network behaves differently in training"):
        network = inflate(TwoHeads().eval(), "c2d", size=16)
    assert network.inflation.eval_only
    assert isinstance(network.train()(clip_of(1, 2, 16).float()), Tensor)


class Decoded(nn.Module):
    """A detector's layer without weights, which returns maps in training, and in eval mode all predictions at once."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.flatten(2).transpose(1, 2).sigmoid()


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x * 2


class Outer(Decoded):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Doubled()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y if self.training else super().forward(y)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return (x, x) if self.training else x


def all_at_once(net: Any, x: Tensor) -> Any:
    y = net.c(x)
    found = [net.part(net.drop(y)), net.part(F.avg_pool2d(y, 2))]
    return found if net.training else torch.cat(found, 1)


def one_map(net: Any, x: Tensor) -> Tensor:
    return net.part(net.c(x))


def normalised_in_evaluation(net: Any, x: Tensor) -> Tensor:
    y = net.part(net.drop(net.c(x)))
    return y if net.training else y.softmax(1)


@pytest.mark.parametrize(
    ("forward", "part"),
    [
        (all_at_once, Decoded()),
        (one_map, Decoded()),
        (one_map, Outer()),
        (normalised_in_evaluation, Doubled()),
        (one_map, Twice()),
    ],
)
def test_a_network_that_does_not_follow_the_mode_has_no_parts_that_do(forward: Forward, part: nn.Module) -> None:
    model, clip = Net(forward, part=part, drop=Dropping()), clip_of(2, 3, 8)
    with pytest.warns(I3DWarning, match="always behaves as it does in eval mode"):
        network = inflate(model, "c2d", size=8, temporal_pool="none")
    expected = torch.stack([model(frame) for frame in clip.unbind(2)], 2 if part(clip[:, :, 0]).dim() == 4 else 1)
    assert relative_error(expected, network(clip)) <= 1e-12
    network.train().get_submodule("drop").eval()
    assert relative_error(expected, network(clip)) <= 1e-12
    if forward is not one_map:
        torch.manual_seed(0)
        assert relative_error(expected, network.train()(clip)) > 1e-3


def beside_dropout(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(net.part(y)) + y[:, :2]


def beside_functional_dropout(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    z = net.part(F.dropout(y, 1.0, net.training))
    return net.d(z) + y[:, :2] + z[:, :2]


@pytest.mark.parametrize("forward", [beside_dropout, beside_functional_dropout])
def test_what_is_beside_dropout_is_not_dropped_in_training(forward: Forward) -> None:
    model, clip = Net(forward, part=nn.Dropout(1.0)), clip_of(2, 3, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error", I3DWarning)
        network = inflate(model, "c2d", size=12)
    for training in (False, True):
        torch.testing.assert_close(network.train(training)(clip), framewise(model.train(training), clip))


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_a_backward_of_ones_own_is_named_because_it_is_not_called() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.d(Rounded.apply(net.norm(net.c(x))))

    def detached(net: Any, x: Tensor) -> Tensor:
        y = net.norm(net.c(x))
        return net.d(y + (torch.round(y) - y).detach())

    with pytest.warns(I3DWarning, match=r"Rounded \(torch.autograd.Function\): the 3D network does not call their"):
        network = inflate(Net(forward, norm=nn.BatchNorm2d(4)), "c2d", size=16)
    assert (
        relative_error(framewise(Net(detached, norm=nn.BatchNorm2d(4)), clip := clip_of(2, 3, 16)), network(clip)) == 0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", I3DWarning)
        network = inflate(Net(detached, norm=nn.BatchNorm2d(4)), "c2d", size=16)
    network(clip_of(2, 3, 16)).sum().backward()
    assert network.c.weight.grad.abs().sum() > 0
