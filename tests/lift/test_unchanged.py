"""Layers that may return their input itself, such as nn.Identity: the input is one tensor, what they return another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i3dconvert import inflate, optimize, stream
from tests.lift.anybody import clip_of, framewise


class Branch(nn.Module):
    """Its first layer returns its input, which others use, too."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.conv = first, nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.first(x))


class Around(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.stem, self.main, self.last = nn.Conv2d(3, 4, 3), Branch(first), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(x + self.main(x))


@pytest.mark.parametrize("first", [nn.Identity(), nn.Dropout(0.0), nn.Dropout(0.5)])
def test_a_layer_that_returns_its_input_is_used_only_in_its_own_block(first: nn.Module) -> None:
    network = inflate(Around(first).eval(), "uniform", "mean", size=16)
    clip = clip_of(2, 4, 16).float()
    seen: list[Tensor] = []
    network.main.register_forward_hook(lambda module, args, output: seen.extend((args[0], output)))
    before = network(clip)
    torch.testing.assert_close(network.main(seen[0]), seen[1])
    assert "self.first" in network.main.code
    network.main.first = nn.Dropout(1.0).train()
    torch.testing.assert_close(network(clip), seen[0] + network.main.conv(torch.zeros_like(seen[0])))
    assert not torch.equal(network(clip), before)


class Beside(nn.Module):
    """Uses what a layer that may return its input gave, and its input, in the same code."""

    def __init__(self, same: nn.Module, code: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.same, self.conv, self.code = nn.Conv2d(3, 4, 3), same, nn.Conv2d(4, 4, 3, padding=1), code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, self.stem(x))


def _shortcut(net: Any, x: Tensor) -> Tensor:
    short = x
    x = net.same(x)
    return short + net.conv(x)


def _kept(net: Any, x: Tensor) -> Tensor:
    levels = [x]
    levels.append(net.same(x))
    return levels[0] - 2 * levels[1].tanh()


def _by_keyword(net: Any, x: Tensor) -> Tensor:
    return x * 3 + net.same(input=x).sigmoid()


def _through_a_view(net: Any, x: Tensor) -> Tensor:
    view = x[:, :2]
    y = net.same(view)
    y.mul_(2)
    return torch.cat([x, view, y], 1)


def _in_place(net: Any, x: Tensor) -> Tensor:
    y = net.same(x)
    y.relu_()
    return x + net.conv(y)


def _in_place_before(net: Any, x: Tensor) -> Tensor:
    y = net.same(x)
    x.relu_()
    return x + net.conv(y)


def _in_place_by_index(net: Any, x: Tensor) -> Tensor:
    y = net.same(x)
    y[:, :2] = 0
    return x * 3 + net.conv(y)


def _in_place_in_a_view(net: Any, x: Tensor) -> Tensor:
    y = net.same(x)
    y.flatten(2)[:, 1:].relu_()
    return x * 3 + net.conv(y)


def _turned(net: Any, x: Tensor) -> Tensor:
    y = net.same(x)
    y.transpose_(2, 3)
    y.relu_()
    return x * 3 + net.conv(y).transpose(2, 3)


def _by_a_layer_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.same(x)
    nn.functional.relu(net.same(y), inplace=True)
    return x * 3 + net.conv(y)


_CODES = [_shortcut, _kept, _by_keyword, _through_a_view, _in_place, _in_place_before, _in_place_by_index]
_CODES += [_in_place_in_a_view, _turned, _by_a_layer_in_place]


@pytest.mark.parametrize("same", [nn.Identity(), nn.Dropout(0.5)], ids=["identity", "dropout"])
@pytest.mark.parametrize("code", _CODES, ids=lambda code: code.__name__[1:])
def test_a_layer_that_returns_its_input_and_that_input_are_one_tensor(same: nn.Module, code: Any) -> None:
    model = Beside(same, code).double().eval()
    clip = clip_of(2, 4, 12)
    torch.testing.assert_close(inflate(model, "c2d", size=16)(clip), framewise(model, clip))


@pytest.mark.parametrize("code", [_shortcut, _kept, _by_keyword], ids=lambda code: code.__name__[1:])
def test_what_replaces_a_layer_that_returned_its_input_leaves_the_input_alone(code: Any) -> None:
    model = Beside(nn.Identity(), code).double().eval()
    network = inflate(model, "c2d", size=16)
    network.same = nn.Hardswish()
    model.same = nn.Hardswish()
    clip = clip_of(2, 4, 12)
    torch.testing.assert_close(network(clip), framewise(model, clip))


def _asked(net: Any, x: Tensor) -> Tensor:
    y = net.same(x)
    return x * 2 if y is x else x * 3


def _asked_of_a_list(net: Any, x: Tensor) -> Tensor:
    levels = [x, net.same(x), net.conv(x)]
    return sum({id(level): level for level in levels}.values(), torch.zeros(()))


def _noted_before(net: Any, x: Tensor) -> Tensor:
    x.times = 2  # type: ignore[attr-defined]
    y = net.same(x)
    return y * getattr(y, "times", 3)


def _noted_after(net: Any, x: Tensor) -> Tensor:
    net.same(x).times = 2
    return x * getattr(x, "times", 3)


def _of_a_parameter(net: Any, x: Tensor) -> Tensor:
    weight = net.same(net.conv.weight)
    return nn.functional.conv2d(x, weight * (2 if isinstance(weight, nn.Parameter) and weight.is_leaf else 3))


@pytest.mark.parametrize("same", [nn.Identity(), nn.Dropout(0.5)], ids=["identity", "dropout"])
@pytest.mark.parametrize(
    "code", [_asked, _asked_of_a_list, _noted_before, _noted_after, _of_a_parameter], ids=lambda code: code.__name__[1:]
)
def test_code_that_asks_whether_a_layer_returned_its_input_takes_the_same_steps(same: nn.Module, code: Any) -> None:
    model = Beside(same, code).double().eval()
    clip = clip_of(2, 4, 12)
    torch.testing.assert_close(inflate(model, "c2d", size=16)(clip), framewise(model, clip))


def _in_a_dict(net: Any, x: Tensor) -> Tensor:
    both = net.same({"a": x, "b": x * 2})
    return net.conv(both["a"].tanh() + both["b"])


def _in_a_tuple(net: Any, x: Tensor) -> Tensor:
    first, second = net.same((x, x * 2))
    return net.conv(first.tanh() + second)


def _beside_a_number(net: Any, x: Tensor) -> Tensor:
    both = net.same({"a": x, "b": 2})
    return net.conv(both["a"].tanh() * both["b"])


def _beside_nothing(net: Any, x: Tensor) -> Tensor:
    first, _ = net.same((x, None))
    return net.conv(first.tanh())


def _nested(net: Any, x: Tensor) -> Tensor:
    both = net.same({"a": {"c": x}, "b": [x * 2]})
    return net.conv(both["a"]["c"].tanh() + both["b"][0])


_SEVERAL = [_in_a_dict, _in_a_tuple, _beside_a_number, _beside_nothing, _nested]


@pytest.mark.parametrize("code", _SEVERAL, ids=lambda code: code.__name__[1:])
def test_a_layer_that_returns_several_tensors_unchanged(code: Any) -> None:
    model = Beside(nn.Identity(), code).double().eval()
    network, clip = inflate(model, "c2d", size=16), clip_of(2, 4, 12)
    for form in (network, optimize(network)):
        torch.testing.assert_close(form(clip), framewise(model, clip))
    flow = stream(network)
    step, _ = flow.step(clip[:, :, :1], flow.start(2, 12, 12))
    torch.testing.assert_close(step, framewise(model, clip[:, :, :1]))
