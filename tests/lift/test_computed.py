"""Convolutions whose kernel the network's code computes: their parameter gets the temporal axis under its own name."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from i3dconvert import Network3d, inflate, load, optimize, save
from i3dconvert.errors import RecipeError
from i3dconvert.lift.kernels import INITS
from i3dconvert.recipes import Recipe, Rule

SIZE = 12


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 3, padding=1)


def pruned() -> nn.Module:
    layer = conv()
    prune.l1_unstructured(layer, "weight", 0.4)  # type: ignore[no-untyped-call]
    return layer


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(input, (self.weight - mean) * torch.rsqrt(variance + 1e-5), self.bias, padding=self.padding)  # type: ignore[arg-type]


class Masked(nn.Conv2d):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__(3, 4, 3, padding=1)
        self.register_buffer("mask", torch.arange(9.0).reshape(3, 3) > 3)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * self.mask, self.bias)


class LowRank(nn.Module):
    """LoRA around a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.a, self.b = nn.Parameter(torch.randn(2, 27)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        return F.conv2d(x, weight + (self.b @ self.a).view(weight.shape), self.conv.bias, padding=1)


class Twice(nn.Module):
    """A kernel that a layer and a function use, each in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.conv2d(x, self.conv.weight, padding=2, dilation=2)


class InParts(nn.Module):
    """A kernel whose parts convolve parts of the channels, as in octave convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        first = F.conv2d(x[:, :2], weight[:2, :2], padding=1) + F.conv2d(x[:, 2:], weight[:2, 2:] * 2, padding=1)
        return torch.cat((first, F.conv2d(x, weight.chunk(2)[1], padding=1)), 1)


class Of(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.layer(x))
        return y


LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight_norm": (lambda: parametrizations.weight_norm(conv()), "parametrizations.weight.original1"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(conv()), "parametrizations.weight.original"),
    "weight_norm as a hook": (lambda: nn.utils.weight_norm(conv()), "weight_v"),
    "spectral_norm as a hook": (lambda: nn.utils.spectral_norm(conv()), "weight_orig"),
    "pruning": (pruned, "weight_orig"),
    "standardised": (lambda: Standardised(3, 4, 3, padding=1), "weight"),
    "masked": (Masked, "weight"),
    "LoRA": (LowRank, "conv.weight"),
    "used twice": (Twice, "conv.weight"),
    "used in parts": (InParts, "conv.weight"),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Of(LAYERS[name][0]()).eval().double()


def still() -> Tensor:
    image = torch.randn(1, 3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return image.expand(-1, -1, 5, -1, -1).contiguous()


def difference(clip: Network3d, image: nn.Module) -> float:
    frames = still()
    with torch.no_grad():
        return float((clip(frames) - image(frames[:, :, 0]).unsqueeze(2)).abs().max())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("init", ["center", "mean"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_kernel_gets_time_and_its_taps_sum_to_what_the_code_computes(name: str, init: str) -> None:
    image = network(name)
    clip = inflate(image, "uniform", init, size=SIZE)
    key = f"layer.{LAYERS[name][1]}"
    assert clip.inflation.convolutions.kept == ()
    assert clip.get_parameter(key).shape == (4, 3, 3, 3, 3)
    assert difference(clip, image) <= 1e-12
    clip(still()).square().sum().backward()
    gradient = clip.get_parameter(key).grad
    assert gradient is not None
    assert gradient.flatten(3).abs().amax((0, 1, 3)).min() > 0
    with torch.no_grad():  # as after training: whatever the taps are, they count as their sum on a still clip
        taps = clip.get_parameter(key)
        taps += 0.1 * torch.randn(taps.shape, generator=torch.Generator().manual_seed(2), dtype=taps.dtype)
        image.get_parameter(key).copy_(taps.sum(2))
        if init == "mean":
            assert difference(clip, image) <= 1e-12
        assert (optimize(clip)(still()) - clip(still())).abs().max() <= 1e-12


@pytest.mark.parametrize("init", ["center", "mean"])
def test_a_filter_made_of_constants_becomes_3d(init: str) -> None:
    class Blur(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device)
            kernel = (taps[:, None] * taps / 16).repeat(3, 1, 1, 1)
            return F.conv2d(x, kernel, padding=1, groups=3)

    image = nn.Sequential(Blur(), nn.Conv2d(3, 2, 1)).eval().double()
    clip = inflate(image, Recipe("blur", (Rule("0", kernel=3, stride=2),)), init, size=SIZE)
    assert str(clip.inflation.convolutions) == "2 of 2 convolutions became 3D"
    assert list(clip.state_dict()) == list(image.state_dict())
    frames = torch.randn(1, 3, 5, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blurred = image[0](frames[0].transpose(0, 1)).transpose(0, 1)[None]
    near = F.pad(blurred, (0, 0, 0, 0, 1, 1), "replicate").unfold(2, 3, 2)
    over_time = near @ INITS[init].inflate(torch.ones(1, 1, 1, 1), 3).flatten().double()
    expected = image[1](over_time[0].transpose(0, 1)).transpose(0, 1)
    assert (clip(frames)[0] - expected).abs().max() <= 1e-12
    assert (optimize(clip)(frames) - clip(frames)).abs().max() <= 1e-12


def test_a_file_of_one_reads_back(tmp_path: Path) -> None:
    image = network("weight_norm")
    clip = inflate(image, "uniform", size=SIZE)
    save(clip, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", copy.deepcopy(image))
    assert torch.equal(again(still()), clip(still()))


def test_a_kernel_used_otherwise_over_time_stays_2d_by_name() -> None:
    only_the_layer = Recipe("r", (Rule("layer.conv", kernel=3),))
    image = network("used twice")
    clip = inflate(image, only_the_layer, size=SIZE)
    ((name, reason),) = clip.inflation.convolutions.kept
    assert (name, reason) == ("layer", "another call inflates its kernel layer.conv.weight differently")
    assert difference(clip, image) <= 1e-12


def test_layers_that_are_not_reached_are_inflated_too() -> None:
    image = Of(conv())
    image.auxiliary = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    clip = inflate(image.eval(), "uniform", size=SIZE)
    assert clip.get_parameter("auxiliary.0.weight").shape == (4, 4, 3, 3, 3)
    assert torch.equal(clip.get_parameter("auxiliary.0.weight").sum(2), image.get_parameter("auxiliary.0.weight"))
    assert isinstance(clip.get_submodule("auxiliary.1"), nn.BatchNorm3d)


def test_a_layer_called_behind_a_function_with_other_taps_is_refused() -> None:
    class Backwards(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.conv.weight, padding=1) + self.conv(x)

    with pytest.raises(RecipeError, match=r"does not fit layer\.conv: another call inflates its kernel differently"):
        inflate(Of(Backwards()).eval(), Recipe("r", (Rule("layer.conv", kernel=3, padding=1),)), size=SIZE)
