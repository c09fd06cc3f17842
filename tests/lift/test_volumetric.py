"""`volumetric` treats depth as height and width in every operation over space: it is the same network's 3D class."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert import inflate, load, optimize, save
from i3dconvert.checkpoint import read
from i3dconvert.errors import RecipeError
from i3dconvert.recipes import parse_rule, preset

Layers = dict[str, Callable[[int], nn.Module]]


class Net(nn.Module):
    """One network, in images or in volumes."""

    def __init__(self, dims: int, forward: Callable[[Any, Tensor], Tensor], layers: Layers) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.c, self.e, self.space = conv(3, 4, 3, padding=1), conv(4, 4, 1), tuple(range(2, 2 + dims))
        self.head = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
        for name, layer in layers.items():
            setattr(self, name, layer(dims))
        self.code = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, self.c(x))


def squeeze_and_excite(net: Any, y: Tensor) -> Tensor:
    return y * net.e(y.mean(net.space, keepdim=True)).sigmoid()


def largest(net: Any, y: Tensor) -> Tensor:
    return y * net.e(y.amax(net.space, keepdim=True)).sigmoid()


def scores(net: Any, y: Tensor) -> Tensor:
    return net.head(y.mean(net.space))


def a_layer(net: Any, y: Tensor) -> Tensor:
    return net.e(y * net.layer(y))


def a_function(net: Any, y: Tensor) -> Tensor:
    pool = F.adaptive_avg_pool2d if y.dim() == 4 else F.adaptive_avg_pool3d
    return y * net.e(pool(y, 1)).sigmoid()


def one_of(name: str, *args: Any, **options: Any) -> Layers:
    return {"layer": lambda dims: getattr(nn, f"{name}{dims}d")(*args, **options)}


@pytest.mark.parametrize(
    ("forward", "layers"),
    [
        (squeeze_and_excite, {}),
        (largest, {}),
        (scores, {}),
        (a_function, {}),
        (a_layer, one_of("AdaptiveAvgPool", 1)),
        (a_layer, one_of("AdaptiveMaxPool", 1)),
        (a_layer, one_of("InstanceNorm", 4, affine=True)),
        (a_layer, {"layer": lambda dims: nn.GroupNorm(2, 4)}),
    ],
)
def test_it_is_the_3d_class(forward: Callable[[Any, Tensor], Tensor], layers: Layers) -> None:
    torch.manual_seed(0)
    image, volume = (Net(dims, forward, layers).eval().double() for dims in (2, 3))
    network = inflate(image, "volumetric", size=8)
    volume.load_state_dict(network.state_dict())
    clip = torch.randn(2, 3, 7, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = volume(clip)
        assert (network(clip) - expected).abs().max() <= 1e-12
        assert (optimize(network)(clip) - expected).abs().max() <= 1e-12
        if forward in (squeeze_and_excite, largest):
            assert (inflate(image, "uniform", size=8)(clip) - expected).abs().max() > 1e-6


def test_a_global_pool_over_time_is_in_the_file(tmp_path: Any) -> None:
    image = Net(2, squeeze_and_excite, {}).eval()
    network = inflate(image, "volumetric", size=8)
    save(network, tmp_path / "net.safetensors")
    assert read(tmp_path / "net.safetensors")[0].schema == 3
    clip = torch.randn(1, 3, 4, 8, 8)
    assert torch.equal(load(tmp_path / "net.safetensors", image)(clip), network(clip))


def test_a_global_maximum_with_its_places_stays_within_each_frame() -> None:
    def places(net: Any, y: Tensor) -> Tensor:
        value, _ = F.adaptive_max_pool2d(y, 1, return_indices=True)
        return y * value

    torch.manual_seed(0)
    image = Net(2, places, {}).eval().double()
    clip = torch.randn(1, 3, 1, 8, 8, dtype=torch.float64).expand(-1, -1, 3, -1, -1)
    with torch.no_grad():
        assert (inflate(image, "volumetric", size=8)(clip) - image(clip[:, :, 0]).unsqueeze(2)).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
        nn.ConvTranspose2d(3, 4, 3, dilation=2),
        nn.ConvTranspose2d(3, 4, 5, 3, 1, output_padding=2),
    ],
)
def test_an_error_of_a_layer_names_the_rule_that_keeps_it_2d(layer: nn.Module) -> None:
    image = nn.Sequential(layer)
    with pytest.raises(RecipeError, match=r"does not fit 0: .*; to keep it 2D: -t '0=1/1'"):
        inflate(image, "volumetric", size=8)
    network = inflate(image, preset("volumetric").with_rules([parse_rule("0=1/1")]), size=8)
    assert network(torch.randn(1, 3, 4, 8, 8)).shape[2] == 4


class Reducing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(4, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(x).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_one_rule_keeps_all_blocks_alike_in_step() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(Reducing(), Reducing())).eval()
    with pytest.raises(RecipeError) as refused:
        inflate(model, "volumetric", size=8)
    assert str(refused.value).endswith(
        "changed on one side only by 1.*.reduce; to keep both equal: -t '1.*.reduce=1/1'"
    )
    network = inflate(model, preset("volumetric").with_rules([parse_rule("1.*.reduce=1/1")]), size=8)
    assert network(torch.randn(1, 3, 5, 8, 8)).shape == (1, 4, 5, 8, 8)
