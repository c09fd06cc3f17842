"""What the code of a network may do besides calling layers: read its own tensors, ask for types, rearrange."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import einops
import pytest
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from i3dconvert import inflate, load, save
from i3dconvert.errors import LiftError
from i3dconvert.lift.network import Network3d
from i3dconvert.verification import Settings, verify

PROOF = Settings(frames=5, size=16, dtypes=(torch.float64,))


class Net(nn.Module):
    """Two convolutions, between which `code` does as it likes."""

    def __init__(self, code: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.code = code
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.code(self, x))


def proved(model: nn.Module, recipe: str = "uniform", **options: str) -> Network3d:
    torch.manual_seed(0)
    network = inflate(model.eval(), recipe, size=16, **options)  # type: ignore[arg-type]
    report = verify(model, network, PROOF)
    assert report.passed, report.reason
    return network


READS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dtype": lambda net, x: net.conv(x.to(net.conv.weight.dtype)),
    "device": lambda net, x: net.conv(x.to(net.conv.weight.device)),
    "shape": lambda net, x: net.conv(x) * net.conv.weight.shape[-1] + net.conv.weight.size(0) + net.conv.weight.dim(),
    "unpacked shape": lambda net, x: net.conv(x) * max(*net.conv.weight.shape),
    "values": lambda net, x: net.conv(x) + net.conv.weight.mean(),
    "functional": lambda net, x: net.conv(x) + F.conv2d(x, net.conv.weight, net.conv.bias, padding=1),
    "functional before": lambda net, x: net.conv(F.conv2d(x, net.conv.weight, None, padding=1)[:, :3]),
    "the bias": lambda net, x: net.conv(x) * net.conv.bias.view(1, -1, 1, 1),
}


@pytest.mark.parametrize("init", ["center", "mean"])
@pytest.mark.parametrize("read", READS)
def test_reading_a_layers_own_tensor(read: str, init: str) -> None:
    model = Net(READS[read])
    network = proved(model, init=init)
    assert type(network.conv).__name__.endswith("Conv3d")
    assert network.state_dict().keys() == model.state_dict().keys()
    assert network.conv.weight.shape == (8, 3, 3, 3, 3)


def test_what_is_read_of_a_kernel_follows_its_training() -> None:
    network = proved(Net(READS["functional"]))
    clip = torch.randn(1, 3, 5, 16, 16)
    with torch.no_grad():
        before = network(clip)
        network.conv.weight.mul_(2)
        network.conv.bias.mul_(2)
        after = network(clip) - network.last.bias.view(-1, 1, 1, 1)
    assert torch.allclose(after, 2 * (before - network.last.bias.view(-1, 1, 1, 1)), atol=1e-4)


def test_reading_a_transposed_kernel() -> None:
    up = nn.ConvTranspose2d(8, 8, 2, stride=2)
    model = Net(lambda net, x: net.up(net.conv(x)) + net.up.weight.sum(), up=up)
    proved(model, "volumetric")


ASKS: dict[str, Callable[[Any], bool]] = {
    "isinstance": lambda x: isinstance(x, Tensor),
    "not another": lambda x: not isinstance(x, nn.Parameter | tuple | int),
    "torch.is_tensor": torch.is_tensor,
    "torch.jit.isinstance": lambda x: bool(torch.jit.isinstance(x, Tensor)),
    "torch.overrides.is_tensor_like": torch.overrides.is_tensor_like,
    "type is": lambda x: type(x) is Tensor,
    "type equals": lambda x: type(x) == Tensor,  # noqa: E721
    "type in": lambda x: {Tensor: True}[type(x)],
    "__class__": lambda x: x.__class__ is Tensor,
    "a size": lambda x: isinstance(x.shape[0], int) and isinstance(x.shape, tuple) and type(x.shape) is torch.Size,
    "not traced": lambda x: not torch.jit.is_tracing() and not torch.jit.is_scripting(),
    "a type is a type": lambda x: isinstance(Tensor, type) and issubclass(type("A", (int,), {}), int),
}


@pytest.mark.parametrize("question", ASKS)
def test_questions_are_answered_as_for_a_tensor(question: str) -> None:
    asks = ASKS[question]

    def code(net: Any, x: Tensor) -> Tensor:
        assert asks(x), question
        return net.conv(x)

    proved(Net(code))


def test_a_type_in_a_namespace_of_its_own_comes_back() -> None:
    proved(Net(READS["dtype"]))
    assert "type" not in globals()


def test_modules_that_are_no_part_of_the_network() -> None:
    proved(Net(lambda net, x: [nn.Hardtanh()][0](net.conv(x))))
    hidden = [nn.Conv2d(3, 8, 1)]
    with pytest.raises(LiftError, match="a parameter that is not registered in the network"):
        inflate(Net(lambda net, x: hidden[0](x)).eval(), size=16)


def test_none_through_a_layer_is_none() -> None:
    def code(net: Any, x: Tensor) -> Tensor:
        assert net.same(None) is None
        return net.conv(x)

    proved(Net(code, same=nn.Identity()))


def test_what_a_dtype_can_hold() -> None:
    def code(net: Any, x: Tensor) -> Tensor:
        features = net.conv(x)
        return features.masked_fill(features < torch.finfo(features.dtype).min / 2, 0.0) * torch.iinfo(torch.int8).max

    proved(Net(code))


def test_an_assignment_to_a_part() -> None:
    def code(net: Any, x: Tensor) -> Tensor:
        features = net.conv(x)
        features[:, :2] = features[:, 2:4] * 2
        return features

    proved(Net(code))


@pytest.mark.parametrize(
    "code",
    [
        lambda net, x: einops.rearrange(net.conv(x), "b (g c) h w -> b (c g) h w", g=2),
        lambda net, x: einops.rearrange(
            einops.rearrange(net.conv(x), "b c (h p) (w q) -> (b h w) (p q) c", p=4, q=4).softmax(1),
            "(b h w) (p q) c -> b c (h p) (w q)", h=4, w=4, p=4,
        ),
        lambda net, x: net.conv(x) + einops.reduce(net.conv(x), "b c h w -> b c 1 1", "mean"),
        lambda net, x: einops.repeat(net.conv(x)[:, :4], "b c h w -> b (c two) h w", two=2),
        lambda net, x: net.back(net.tokens(net.conv(x)) * 2),
    ],
    ids=["channels", "windows", "reduce", "repeat", "layers"],
)  # fmt: skip
def test_einops(code: Callable[[Any, Tensor], Tensor]) -> None:
    parts = {"tokens": Rearrange("b c h w -> b (h w) c"), "back": Rearrange("b (h w) c -> b c h w", h=16)}
    model = Net(code, **parts)
    network = proved(model)
    with torch.no_grad():  # at another batch than the traced one, and again: nothing of a trace is kept
        assert network(torch.randn(3, 3, 2, 16, 16)).shape == (3, 4, 2, 16, 16)
    proved(Net(code, **parts))


class Shared(nn.Module):
    """One parameter under several names: `how` two layers share it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.b = self.a if how == "module" else nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.b.weight = self.a.weight
        self.forward_b = how != "module"

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) if self.forward_b else self.a(x)


@pytest.mark.parametrize("how", ["weight", "module"])
def test_tied_weights_stay_tied(how: str, tmp_path: Path) -> None:
    model = Shared(how)
    network = proved(model)
    assert network.a.weight is network.b.weight
    assert network.a.weight.dim() == 5
    assert network.state_dict().keys() == model.state_dict().keys()
    save(network, tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors", model)
    assert loaded.a.weight is loaded.b.weight
    clip = torch.randn(1, 3, 5, 16, 16)
    assert torch.equal(loaded(clip), network(clip))


def test_a_tie_that_the_recipe_ends() -> None:
    network = inflate(Shared("weight").eval(), "uniform", size=16)
    assert network.a.weight is network.b.weight
    from i3dconvert.recipes import parse_rule, preset

    other = preset("uniform").with_rules((parse_rule("b=1"),))
    model = Shared("weight").eval()
    network = inflate(model, other, size=16)
    assert network.b.weight.shape == (3, 3, 1, 3, 3)
    assert verify(model, network, PROOF).passed


@pytest.mark.slow
def test_a_detector_is_refused_and_its_backbone_named() -> None:
    from torchvision.models.detection import retinanet_resnet50_fpn

    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None).eval()
    with pytest.raises(LiftError, match=r"depends on the data.*inflate\(model\.backbone\)") as raised:
        inflate(model, size=64)
    assert "meta_nonzero" not in str(raised.value)
    for recipe in ("uniform", "volumetric"):
        network = inflate(model.backbone, recipe, size=64)
        report = verify(model.backbone, network, Settings(frames=4, size=64, dtypes=(torch.float64,)))
        assert report.passed, report.reason
    with torch.no_grad():
        maps = network(torch.randn(1, 3, 64, 64, 64))
    assert {name: tuple(m.shape[2:]) for name, m in maps.items()} == {
        "0": (8, 8, 8), "1": (4, 4, 4), "2": (2, 2, 2), "p6": (1, 1, 1), "p7": (1, 1, 1),
    }  # fmt: skip


@pytest.mark.parametrize("size", [2, 3, 16])
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(5, 1, padding=2),
        nn.AvgPool2d(5, 1, padding=2, count_include_pad=False),
        nn.AvgPool2d((4, 2), 2, padding=(2, 1), divisor_override=3),
        nn.AvgPool2d(7, 7, ceil_mode=True),
        nn.MaxPool2d(5, 1, padding=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("recipe", ["uniform", "volumetric", "pooled"])
def test_pools_larger_than_the_image(pool: nn.Module, size: int, recipe: str) -> None:
    from i3dconvert.recipes import Recipe, Rule

    told = Recipe("pooled", (Rule(kind="*_pool", kernel=3, stride=2),)) if recipe == "pooled" else recipe
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), pool).eval()
    network = inflate(model, told, size=size)
    frames = max(network.inflation.minimum_frames, 3)
    report = verify(model, network, Settings(frames=frames, size=size, dtypes=(torch.float64,)))
    assert report.passed, report.reason


class Noting(nn.Module):
    """Notes a number in a dict that the layers of a network share, or uses it."""

    def __init__(self, shared: dict[str, Any], writes: bool) -> None:
        super().__init__()
        self.shared, self.writes, self.conv = shared, writes, nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.writes:
            self.shared["times"] = 2.0
        return self.conv(x) * self.shared["times"]


def test_layers_share_a_dict() -> None:
    shared: dict[str, Any] = {"times": 1.0}
    shared["all"] = shared
    parts = {"first": Noting(shared, True), "second": Noting(shared, False)}
    proved(Net(lambda net, x: net.second(net.first(net.conv(x))), **parts))
