"""The table of counterparts, where it takes a thought: what is inflated how, and what is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from i3dconvert import inflate
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import RecipeError
from i3dconvert.recipes import Recipe, Rule
from i3dconvert.verification import Settings, verify
from tests.lift.anybody import Net, clip_of, framewise

PROOF = Settings(frames=6, size=16, dtypes=(torch.float64,))


def uniform(**numbers: int) -> Recipe:
    return Recipe("test", (Rule(**numbers),))  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [StdConv2d, ScaledStdConv2d])
def test_standardised_kernels_sum_to_the_standardised_sum_whatever_the_taps_are(cls: type[nn.Conv2d]) -> None:
    conv = cls(4, 8, 3, padding=1).double()
    network = inflate(nn.Sequential(nn.Conv2d(3, 4, 1).double(), conv), init="mean", size=16)
    lifted = network.get_submodule("1")
    nn.init.normal_(lifted.weight)  # as after fine-tuning: all taps differ
    if cls is ScaledStdConv2d:
        nn.init.uniform_(lifted.gain, 0.5, 2)
        conv.gain.data = lifted.gain.data
    conv.weight.data, conv.bias = lifted.weight.data.sum(2), None
    image = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    assert torch.allclose(F.conv2d(image, lifted.kernel().sum(2), padding=1), conv(image), rtol=1e-12, atol=1e-12)
    over_all_taps = F.layer_norm(lifted.weight, lifted.weight.shape[1:]).sum(2)
    assert not torch.allclose(lifted.kernel().sum(2) / over_all_taps, torch.ones(8, 4, 3, 3).double(), rtol=0.1)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 2), (5, 3), (3, 1), (3, 3)])
def test_transposed_convolutions_lengthen_time_by_their_stride(kernel: int, stride: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 4, 2, 1))
    only = Recipe("test", (Rule("1", kernel=kernel, stride=stride),))
    network = inflate(net, only, size=16)
    assert network(torch.zeros(1, 3, 5, 16, 16)).shape == (1, 6, 5 * stride, 32, 32)
    assert verify(net, network, PROOF).passed
    weight = network.get_parameter("1.weight").data
    weight[:, :, [0, -1]] = weight[:, :, [-1, 0]] + 1e-6
    assert not verify(net, network, PROOF).checks[1].passed


def test_transposed_convolutions_that_can_not_be_equal_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 2, 2))
    with pytest.raises(RecipeError, match=r"1: .*both even or both odd"):
        inflate(net, Recipe("test", (Rule("1", kernel=2, stride=1),)), size=16)
    with pytest.raises(RecipeError, match=r"1: .*without input"):
        inflate(net, Recipe("test", (Rule("1", kernel=3, stride=2, padding=0),)), size=16)


@pytest.mark.parametrize("layer", [nn.AvgPool2d(2), BlurPool2d(3), nn.ConvTranspose2d(3, 3, 3)])
def test_layers_without_dilation_are_given_none(layer: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), layer)
    with pytest.raises(RecipeError, match=r"1: .* has no temporal dilation"):
        inflate(net, Recipe("test", (Rule("1", kernel=3, dilation=2),)), size=16)


def test_padding_past_the_middle_tap_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    with pytest.raises(RecipeError, match=r"0: .*middle tap on the padding"):
        inflate(net, uniform(kernel=1, padding=1), size=16)
    assert verify(net, inflate(net, uniform(kernel=1, padding=1), "mean", size=16), PROOF).passed


class UNet(nn.Module):
    """Down twice, up twice: once by a factor, once to the size of what it joins."""

    def __init__(self, mode: str = "bilinear") -> None:
        super().__init__()
        self.mode = mode
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.c = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.up, self.out = nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(18, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        c = torch.cat([self.up(self.c(b)), b], 1)
        return self.out(torch.cat([F.interpolate(c, size=a.shape[-2:], mode=self.mode), a], 1))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_depth_is_strided_and_upsampled_like_height_and_width(mode: str) -> None:
    net = UNet(mode)
    network = inflate(net, "volumetric", size=16)
    volume = torch.randn(1, 3, 16, 16, 16)
    assert network(volume).shape == (1, 2, 16, 16, 16)
    assert verify(net, network, Settings(frames=8, size=16, dtypes=(torch.float64,))).passed
    depths = {layer.name: layer.temporal.stride for layer in network.inflation.layers}
    assert depths == {"a": 1, "b": 2, "c": 2, "up": 2, "interpolate": 2, "out": 1}
    flat = inflate(net, "uniform", size=16)
    assert flat(volume).shape == (1, 2, 16, 16, 16)
    assert "up" not in {layer.name for layer in flat.inflation.layers}


def test_depth_is_interpolated_between_slices() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Upsample(scale_factor=2, mode="bilinear"))
    volume = torch.rand(1, 3, 4, 6, 6)
    ours = inflate(net, "volumetric", size=16)(volume)
    theirs = F.interpolate(F.conv3d(volume, net[0].weight.unsqueeze(2), net[0].bias), scale_factor=2, mode="trilinear")
    assert torch.allclose(ours, theirs, atol=1e-5)


class Resized(TorchDispatchMode):
    """Lists the interpolations of tensors without values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "upsample" in str(func) and args[0].is_meta:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_readings_need_no_smooth_interpolation_which_is_slow_without_values(mode: str) -> None:
    with Resized() as resized:
        inflate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(size=16, mode=mode)), "c2d", input=(3, 16, 16))
    assert resized.found
    assert not any(mode in name for name in resized.found)


def test_blur_pools_blur_depth_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), BlurPool2d(4, filt_size=3, stride=2))
    network = inflate(net, "volumetric", size=16)
    volume = torch.zeros(1, 3, 8, 8, 8)
    volume[:, :, 4, 4, 4] = 1
    response = network(volume) - network(torch.zeros_like(volume))
    assert torch.allclose(response, response.transpose(2, 3), atol=1e-6)
    assert torch.allclose(response, response.transpose(2, 4), atol=1e-6)
    assert verify(net, network, PROOF).passed


class TestTwoPlusOne:
    """(2+1)D convolutions."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), StdConv2d(8, 6, 3, groups=2), nn.Conv2d(6, 2, 1))

    @pytest.mark.parametrize("init", ["center", "mean"])
    def test_the_2d_kernels_stay_and_time_starts_as_the_identity(self, init: str) -> None:
        net = self.build()
        network = inflate(net, init=init, conv="2plus1d", size=16)
        state = network.state_dict()
        assert set(state) - set(net.state_dict()) == {"0.temporal.weight", "2.temporal.weight"}
        assert torch.equal(state["0.weight"].squeeze(2), net[0].weight)
        assert state["2.temporal.weight"].shape == (6, 3, 3, 1, 1)
        assert torch.equal(state["0.temporal.weight"].sum((2, 3, 4)), torch.eye(8))
        assert verify(net, network, PROOF).passed

    def test_damage_in_the_temporal_half_is_caught_and_named(self) -> None:
        net = self.build()
        network = inflate(net, conv="2plus1d", size=16)
        network.get_parameter("2.temporal.weight").data[0, 0, 1] += 1e-6
        report = verify(net, network, PROOF)
        assert "2.temporal.weight" in report.checks[0].detail
        assert not report.checks[1].passed
        assert report.first_divergence is not None
        assert report.first_divergence.name == "2"

    def test_it_trains(self) -> None:
        network = inflate(self.build(), conv="2plus1d", size=16)
        network(torch.randn(1, 3, 4, 16, 16)).square().mean().backward()
        gradient = network.get_parameter("0.temporal.weight").grad
        assert gradient is not None
        assert bool((gradient != 0).any(dim=(0, 1, 3, 4)).all())

    def test_an_unknown_form_is_refused(self) -> None:
        with pytest.raises(RecipeError, match="known: 3d, 2plus1d"):
            inflate(self.build(), conv="2d", size=16)


class Narrow(nn.Module):
    """A network that computes in float32 whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * 1e6).sin().float().to(x.dtype)  # differences of float64 grow until they show in float32


class Sensitive(nn.Module):
    """A network in which the rounding errors of float32 grow some hundred times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * 200).sin()


def test_rounding_of_the_2d_network_itself_is_no_difference() -> None:
    net = Sensitive()
    network = inflate(net, "uniform", "mean", size=16)
    report = verify(net, network, Settings(frames=6, size=16))
    assert report.passed, report.reason
    assert "own rounding error is" in report.checks[2].detail
    assert not verify(net, network, Settings(frames=6, size=16, dtypes=(torch.float32,))).passed
    network.get_parameter("conv.bias").data += 1e-7
    report = verify(net, network, Settings(frames=6, size=16))
    assert [check.passed for check in report.checks] == [False, False, False]


def test_a_network_that_computes_in_float32_is_held_to_that() -> None:
    net = Narrow()
    network = inflate(net, "uniform", "mean", size=16)
    report = verify(net, network, PROOF)
    assert report.passed, report.reason
    assert report.checks[1].error is not None
    assert report.checks[1].error > 1e-12
    assert "itself computes in float32 (float)" in report.checks[1].detail
    strict = Settings(frames=6, size=16, dtypes=(torch.float64,), tolerance=1e-12)
    assert not verify(net, network, strict).passed
    network.get_parameter("conv.weight").data[0] *= 1.01
    assert not verify(net, network, PROOF).checks[1].passed


@pytest.mark.parametrize("init", ["center", "mean"])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_hold_for_a_single_frame(mode: str, init: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)).double()
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for recipe in ("uniform", "volumetric"):
        with torch.no_grad():
            found = inflate(model, recipe, init, size=16)(image.unsqueeze(2))
            assert relative_error(model(image).unsqueeze(2), found) <= 1e-12


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)])
def test_a_frame_is_normalised_by_itself_in_c2d_alone(norm: nn.Module) -> None:
    model = Net(lambda net, x: net.d(net.norm(net.c(x))), norm=norm)
    clip = clip_of(2, 3, 16)
    with torch.no_grad():
        expected = framewise(model, clip)
        assert relative_error(expected, inflate(model, "c2d", size=16)(clip)) <= 1e-12
        assert relative_error(expected, inflate(model, "uniform", size=16)(clip)) > 1e-3
