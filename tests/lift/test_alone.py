"""A frame has a value only if the 2D network's output for an image depends on that image alone."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i3dconvert import inflate, optimize, verify
from i3dconvert.comparison.forward import evaluating, relative_error
from i3dconvert.errors import LiftError
from i3dconvert.verification import Settings
from tests.lift.anybody import Net, clip_of, framewise


@pytest.mark.parametrize("by", ["inflate", "verify"])
def test_a_network_that_mixes_the_images_of_a_batch_is_refused(by: str) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.c(x).mean((2, 3))
        return y - y.mean(0) if net.mixing else y

    model: Any = Net(forward)
    model.mixing = by == "inflate"
    if by == "inflate":
        with pytest.raises(LiftError, match="mixes the images of a batch"):
            inflate(model, "c2d", size=16)
        return
    network = inflate(model, "c2d", size=16)
    model.mixing = True
    report = verify(model, network, Settings(frames=2))
    assert report.checks[-1].name == "each image by itself"
    assert not report.checks[-1].passed
    assert not report.layers


def _deviation(net: Any, x: Tensor) -> Tensor:
    y = net.d(net.c(x))
    return torch.cat([y, y.std(0).mean().expand(len(y), 1, *y.shape[2:])], 1)


@pytest.mark.parametrize(
    "forward",
    [
        _deviation,
        lambda net, x: net.d(net.c(x) - torch.quantile(net.c(x), 0.5)),
        lambda net, x: net.d(net.c(x) / net.c(x).std()),
        lambda net, x: net.d(net.c(x) / net.c(x).abs().max()),
        lambda net, x: net.d(net.c(x)).cumsum(0),
    ],
    ids=["minibatch deviation", "quantile", "deviation", "maximum", "sum over earlier images"],
)
def test_values_of_the_whole_batch_mix_its_images(forward: Any) -> None:
    with pytest.raises(LiftError, match="mixes the images of a batch"):
        inflate(Net(forward), size=16)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.d(net.c(x)[0][None]).mean((2, 3)),
        lambda net, x: net.d(net.c(x)[:1]),
        lambda net, x: net.d(net.c(x)).mean((0, 2, 3)),
    ],
    ids=["first, as a batch", "slice", "mean"],
)
def test_a_result_without_a_row_for_each_image_is_refused(forward: Any) -> None:
    with pytest.raises(LiftError, match="the same number of values for one image and for a batch"):
        inflate(Net(forward), size=16)


def test_a_network_that_counts_its_calls_is_refused() -> None:
    def counted(net: Any, x: Tensor) -> Tensor:
        net.calls += 1
        return net.d(net.c(x)) * net.calls

    def grown(net: Any, x: Tensor) -> Tensor:
        net.scale.mul_(1.5)
        return net.d(net.c(x)) * net.scale

    for forward, attribute, value in ((counted, "calls", 0), (grown, "scale", torch.ones(1))):
        model = Net(forward)
        model.__dict__[attribute] = value
        with pytest.raises(LiftError, match="changes from call to call"):
            inflate(model, size=16)


def kept_from_a_run(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    if net.size != tuple(x.shape):
        net.size, net.ones = tuple(x.shape), torch.ones_like(y)
    return net.d(y * net.ones)


def normalised_in_place(net: Any, x: Tensor) -> Tensor:
    net.c.weight.data = net.c.weight.data / net.c.weight.data.norm()
    return net.d(net.c(x))


@pytest.mark.parametrize(
    ("forward", "remedy"),
    [(kept_from_a_run, "inflate a new network before it runs"), (normalised_in_place, "compute a new tensor instead")],
)
def test_a_network_that_has_kept_something_is_refused_with_a_remedy(forward: Any, remedy: str) -> None:
    model = Net(forward)
    model.__dict__["size"] = ()
    model(torch.zeros(2, 3, 16, 16, dtype=torch.float64))
    with pytest.raises(LiftError, match=remedy):
        inflate(model, size=16)


def shifted_by_segments(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(y.view(-1, 4, *y.shape[1:]).roll(1, 1).view(y.shape))


def test_a_network_that_does_not_run_says_what_it_was_given() -> None:
    with pytest.raises(LiftError, match=r"view in .*; it was given 2 images of 3×16×16, which input= \(--input\) sets"):
        inflate(Net(shifted_by_segments), size=16)


def test_questions_for_finite_values_are_answered_for_finite_images() -> None:
    def checked(net: Any, x: Tensor) -> Tensor:
        y = net.c(x)
        assert torch.isfinite(y).all()
        if y.isnan().any() or torch.isinf(y).sum().item() > 0:
            raise ValueError("the image is not finite")
        return net.d(y)

    model, clip = Net(checked), clip_of(2, 2, 16)
    assert relative_error(framewise(model, clip), inflate(model, "c2d", size=16)(clip)) <= 1e-12


@pytest.mark.parametrize(
    "asked", [lambda y: torch.is_grad_enabled(), lambda y: y.requires_grad], ids=["mode", "tensor"]
)
def test_a_network_that_differs_without_gradients_is_refused(asked: Any) -> None:
    def doubled(net: Any, x: Tensor) -> Tensor:
        y = net.c(x)
        return net.d(y * 2 if asked(y) else y)

    with pytest.raises(LiftError, match="depends on whether gradients are enabled"):
        inflate(Net(doubled), size=16)


def test_the_callers_mode_does_not_hide_that() -> None:
    def doubled(net: Any, x: Tensor) -> Tensor:
        y = net.c(x)
        return net.d(y * 2 if torch.is_grad_enabled() else y)

    with pytest.raises(LiftError, match="depends on whether gradients are enabled"), torch.no_grad():
        inflate(Net(doubled), size=16)


def asks_for_autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled("cpu")


def asks_for_inference_mode(x: Tensor) -> bool:
    return torch.is_inference_mode_enabled()


def asks_for_the_device(x: Tensor) -> bool:
    return x.device.type == "cpu"


def in_autocast(network: Any, clip: Tensor) -> None:
    with torch.autocast("cpu"):
        network(clip)


def in_inference_mode(network: Any, clip: Tensor) -> None:
    with torch.inference_mode():
        network(clip)


def on_another_device(network: Any, clip: Tensor) -> None:
    network.to("meta")(clip.to("meta"))


@pytest.mark.parametrize(
    ("asked", "elsewhere", "what"),
    [
        (asks_for_autocast, in_autocast, "autocast"),
        (asks_for_inference_mode, in_inference_mode, "inference mode"),
        (asks_for_the_device, on_another_device, "the device"),
    ],
    ids=["autocast", "inference", "device"],
)
def test_a_question_for_the_surroundings_is_asked_again_at_each_call(asked: Any, elsewhere: Any, what: str) -> None:
    def doubled(net: Any, x: Tensor) -> Tensor:
        y = net.c(x)
        return net.d(y * 2 if asked(x) else y)

    model, clip = Net(doubled), clip_of(2, 2, 16)
    network = inflate(model, "c2d", size=16)
    assert relative_error(framewise(model, clip), network(clip)) <= 1e-12
    with pytest.raises(LiftError, match=rf"test_alone.py:\d+: .* depends on {what}"):
        elsewhere(network, clip)


def test_a_device_that_tensors_follow_is_none_of_that() -> None:
    def followed(net: Any, x: Tensor) -> Tensor:
        y = net.c(x).to(x.device) + torch.arange(x.shape[-1], device=x.device)
        return net.d(y)

    network = inflate(Net(followed), "c2d", size=16).to("meta")
    assert network(clip_of(2, 2, 16).to("meta")).is_meta


def test_a_region_without_gradients_is_none_of_that() -> None:
    def frozen(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = net.c(x)
        return net.d(y)

    model, clip = Net(frozen), clip_of(2, 2, 16)
    assert relative_error(framewise(model, clip), inflate(model, "c2d", size=16)(clip)) <= 1e-12


def test_they_are_asked_again_at_each_call() -> None:
    def shares(net: Any, x: Tensor) -> Tensor:
        y = net.c(x)
        y = y.relu() / y.relu().sum((1, 2, 3), keepdim=True)
        return net.d(torch.zeros_like(y) if torch.isnan(y).any() else y)

    model, clip = Net(shares), clip_of(2, 2, 16)
    network = inflate(model, "c2d", size=16)
    assert relative_error(framewise(model, clip), network(clip)) <= 1e-12
    assert relative_error(network(clip), optimize(network)(clip)) <= 1e-12
    model.c.bias.data.fill_(-100.0)
    for one in (inflate(model, "c2d", size=16), inflate(model, "uniform", size=16)):
        with pytest.raises(LiftError, match=r"test_alone.py:\d+: .* whether values are finite"):
            one(clip)


def asked_of_a_mask(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    mask = torch.where(y > 0, y, torch.full_like(y, -torch.inf))
    return net.d(y.relu() if torch.isinf(mask).any() else y)


def asked_of_a_logarithm(net: Any, x: Tensor) -> Tensor:
    y = net.c(x).relu().log()
    return net.d(y if torch.isfinite(y).all() else y.clamp(min=-3))


def asked_of_a_table(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(2 * y if torch.isnan(net.table).any() else y)


@pytest.mark.parametrize("forward", [asked_of_a_mask, asked_of_a_logarithm, asked_of_a_table])
def test_questions_for_infinities_of_the_networks_own_are_refused(forward: Any) -> None:
    with pytest.raises(LiftError, match="reads a tensor's value"):
        inflate(Net(forward, table=torch.nn.Parameter(torch.zeros(4))), "c2d", size=16)


class Remembering(nn.Module):
    """Keeps what it computed in attributes, containers and a buffer that is filled in the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls, self.known, self.log = nn.Conv2d(3, 4, 3), 0, {"widths": dict[int, Tensor]()}, [0]
        self.register_buffer("mask", None)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        self.calls += 1
        self.log.append(width)
        if width not in self.known["widths"]:
            self.known["widths"][width] = torch.linspace(0, 1, width, dtype=x.dtype)
        if self.mask is None or self.mask.shape[0] != height:
            self.mask = torch.linspace(1, 2, height, dtype=x.dtype)
        self.latest = self.conv(x * self.known["widths"][width] * self.mask.unsqueeze(1))
        return self.latest


def test_what_a_network_keeps_of_its_runs_is_not_there_after_inflation() -> None:
    model, clip = Remembering(), clip_of(2, 3, 20)
    network = inflate(model, "c2d", size=16).double()
    assert (model.calls, model.known, model.log, model.mask) == (0, {"widths": {}}, [0], None)
    assert not hasattr(model, "latest")
    assert model.training
    assert relative_error(framewise(model.double(), clip), network(clip)) <= 1e-12


def test_a_buffer_that_an_evaluation_writes_into_is_restored() -> None:
    model: Any = Net(lambda net, x: net.count.add_(1) * net.c(x))
    model.register_buffer("count", torch.zeros(1))
    with evaluating(model, torch.float64):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
        assert model.count.item() == 1
    assert model.count.item() == 0


def test_containers_of_any_kind_and_depth_are_restored() -> None:
    model: Any = Net(lambda net, x: net.parts[0].append(net.seen.update("b")) or net.c(x))
    model.parts, model.seen, model.nested = ([],), Counter("aa"), []
    for _ in range(2 * sys.getrecursionlimit()):
        model.nested = [model.nested]
    with evaluating(model, torch.float32):
        model(torch.zeros(1, 3, 8, 8))
        assert model.seen["b"] == 1
    assert (model.parts, model.seen) == (([],), Counter("aa"))
