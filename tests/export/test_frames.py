"""The frames form: the same function, in float64 to rounding, whatever the taps hold; and its forms of convolution."""

from collections.abc import Iterable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from i3dconvert import export_onnx, inflate, optimize
from i3dconvert.backbones import Source
from i3dconvert.comparison.forward import outputs, relative_error
from i3dconvert.errors import FramesError
from i3dconvert.export.frames import frames_form
from i3dconvert.export.framewise import MinimalConv, StackedConv, StemInHalves, SummedConv
from i3dconvert.export.runtime import Runtime
from i3dconvert.inflation import Options, inflate_loaded
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.network import Network3d
from i3dconvert.recipes import Recipe, Rule

CASES = (
    ("resnet18", None),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("timm/convnext_atto", None),
            ("densenet121", None),
            ("googlenet", None),
            ("resnext50_32x4d", "volumetric"),
            ("lraspp_mobilenet_v3_large", "volumetric"),
            ("convnext_tiny", None),
            ("timm/nf_resnet26", None),
            ("timm/resnetblur18", None),
            ("timm/deit_tiny_patch16_224", "tubelet"),
        )
    ),
)


SAME = Recipe("same", (Rule(kernel=1), Rule(layer="1", kernel=3, stride=2, padding="same")))


def resnet10() -> ResNet:
    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1])


def use_all_taps(network: Network3d) -> Network3d:
    """As after fine-tuning."""
    torch.manual_seed(0)
    for key in network.inflation.fillings:
        weight = network.get_parameter(key).data
        weight += 0.1 * weight.std() * torch.randn_like(weight)
    return network


def difference(network: Network3d, form: nn.Module, clip: torch.Tensor) -> float:
    with torch.no_grad():
        pairs = zip(outputs(network(clip)), outputs(form(clip)), strict=True)
        return max(relative_error(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize(("name", "recipe"), CASES)
@pytest.mark.parametrize(
    ("init", "tuned"),
    [
        pytest.param("center", False, marks=pytest.mark.sweep),  # all taps in use are the harder case
        ("mean", True),
        pytest.param("center", True, marks=pytest.mark.sweep),
        pytest.param("mean", False, marks=pytest.mark.sweep),
    ],
)
def test_the_same_function(name: str, recipe: str | None, init: str, tuned: bool) -> None:
    size = None if "deit" in name else 64
    network = (
        inflate_loaded(*Source(name, "random", size=size).load(), Options(recipe, style=Style(init))).eval().double()
    )
    network = use_all_taps(network) if tuned else network
    form = frames_form(network)
    assert not [module for module in form.modules() if isinstance(module, nn.Conv3d | nn.MaxPool3d | nn.AvgPool3d)]
    for frames in (network.inflation.minimum_frames + 1, 13):
        clip = torch.randn(2, *network.inflation.input[:1], frames, *network.inflation.input[1:]).double()
        assert difference(network, form, clip) < 1e-13, frames


def small(kernel: int, stride: int, channels: int, groups: int, init: str) -> Network3d:
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, channels, 3, 2, groups=groups), nn.BatchNorm2d(channels))
    nn.init.uniform_(net[2].running_mean)
    nn.init.uniform_(net[2].running_var, 0.5, 2)
    return inflate(net.eval(), Recipe("r", (Rule("1", kernel=kernel, stride=stride),)), init, size=16).double()


@pytest.mark.parametrize("init", ["center", "mean"])
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 16, 17])
@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "groups", "form"),
    [
        (3, 1, 32, 1, MinimalConv),
        (3, 2, 32, 1, StackedConv),
        (5, 1, 64, 1, StackedConv),
        (5, 1, 8, 1, SummedConv),
        (3, 1, 32, 8, SummedConv),
        (3, 2, 32, 8, StackedConv),
        (4, 3, 16, 1, StackedConv),
    ],
)
def test_every_form_of_convolution(
    kernel: int, stride: int, channels: int, groups: int, form: type[nn.Module], frames: int, init: str
) -> None:
    network = use_all_taps(small(kernel, stride, channels, groups, init))
    frames_network = frames_form(network)
    assert isinstance(frames_network.get_submodule("1"), form)
    assert not [module for module in frames_network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert difference(network, frames_network, torch.randn(2, 3, frames, 16, 16).double()) < 1e-13


def test_zero_taps_cost_nothing() -> None:
    network = small(5, 1, 64, 1, "center")
    form = frames_form(network).get_submodule("1")
    assert isinstance(form, StackedConv)
    assert form.mixing.trivial
    assert form.conv.weight.shape == (64, 32, 3, 3)


def test_a_single_tap_of_a_window_that_shortens_the_clip() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    network = inflate(net, Recipe("r", (Rule("0", kernel=3, padding=0),)), size=16).double()
    weight = network.get_parameter("0.weight").data
    weight[:, :, 0], weight[:, :, 1] = weight[:, :, 1].clone(), 0
    assert difference(network, frames_form(network), torch.randn(2, 3, 6, 16, 16).double()) < 1e-13


def test_groups_norms_over_time_see_all_of_it() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8))
    network = use_all_taps(inflate(net, size=16).double())
    assert difference(network, frames_form(network), torch.randn(2, 3, 6, 16, 16).double()) < 1e-13


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("pool", [nn.AvgPool2d, nn.MaxPool2d])
def test_pools_over_time(pool: type[nn.Module], ceil: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), pool(3, 2, 1, ceil_mode=ceil))
    network = inflate(net, Recipe("r", (Rule("1", kernel=3, stride=2, padding="spatial"),)), size=16).double()
    for frames in (4, 5, 7):
        clip = torch.randn(2, 3, frames, 16, 16).double()
        assert difference(network, frames_form(network), clip) < 1e-13


def test_nothing_is_computed_for_nobody() -> None:
    """What a rewriting replaces is gone: a stem in halves, a head behind the mean over time."""
    model, origin = Source("resnet18", "random", size=64).load()
    form = frames_form(use_all_taps(inflate_loaded(model, origin, Options("resnet")).eval()))
    assert any(isinstance(module, StemInHalves) for module in form.modules())
    assert not [node for node in form.graph.nodes if not node.users and node.op != "output"]


def test_a_wrong_tap_is_seen() -> None:
    network = use_all_taps(small(3, 1, 32, 1, "center"))
    form = frames_form(network)
    network.get_parameter("1.weight").data[:, :, [0, 2]] = network.get_parameter("1.weight").data[:, :, [2, 0]]
    assert difference(network, form, torch.randn(2, 3, 6, 16, 16).double()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "groups"), [(3, 8), (5, 1)])
def test_shares_export_with_any_number_of_frames(kernel: int, groups: int, tmp_path: Path) -> None:
    network = use_all_taps(small(kernel, 1, 8, groups, "center").float())
    assert isinstance(frames_form(network).get_submodule("1"), SummedConv)
    assert export_onnx(network, tmp_path / "net.onnx", optimize=True).shape[2:] == ("frames", "height", "width")


@pytest.mark.parametrize(
    "tuned", [pytest.param(False, marks=pytest.mark.sweep), pytest.param(True, marks=pytest.mark.slow)]
)
def test_it_exports_with_any_batch_frames_and_size(tuned: bool, tmp_path: Path) -> None:
    network = inflate(resnet10(), size=64).eval()
    network = use_all_taps(network) if tuned else network
    done = export_onnx(network, tmp_path / "net.onnx", optimize=True)
    assert done.shape == ("batch", 3, "frames", "height", "width")
    assert done.check.error is not None
    assert done.check.error <= 1e-5
    operators = {node.op_type for node in onnx.load(done.path).graph.node}
    assert "MaxPool" in operators
    assert "BatchNormalization" not in operators


def test_optimize_is_the_same_function() -> None:
    network = use_all_taps(inflate_loaded(*Source("resnet18", "random", size=64).load()).eval())
    form = optimize(network)
    assert next(m for m in form.modules() if isinstance(m, nn.Conv2d)).weight.is_contiguous(
        memory_format=torch.channels_last
    )
    assert difference(network, form, torch.randn(2, 3, 16, 64, 64)) < 1e-5


@pytest.mark.parametrize(
    ("recipe", "lengths"),
    [
        pytest.param("uniform", range(2, 14, 3), marks=pytest.mark.slow),
        pytest.param("resnet", (16, 33, 49), marks=pytest.mark.sweep),
    ],
)
def test_minimal_filtering_exports_with_any_number_of_tiles(
    recipe: str, lengths: Iterable[int], tmp_path: Path
) -> None:
    network = use_all_taps(inflate(resnet10(), recipe, size=32)).eval()
    assert any(isinstance(module, MinimalConv) for module in frames_form(network).modules())
    runtime = Runtime(export_onnx(network, tmp_path / "net.onnx").path)
    for frames in lengths:
        clip = torch.randn(1, 3, frames, 32, 32)
        with torch.no_grad():
            assert relative_error(network(clip), runtime(clip)[0]) <= 1e-5, frames


@pytest.mark.parametrize(
    ("pool", "recipe"),
    [
        (nn.MaxPool2d(3, 1, 1, dilation=2), "volumetric"),
        (nn.MaxPool2d(3, 2, 1, dilation=2), "volumetric"),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), SAME),
        (nn.MaxPool2d(2, 2, ceil_mode=True), SAME),
        (nn.AvgPool2d(3, 2, ceil_mode=True), "volumetric"),
    ],
    ids=["dilated", "dilated-strided", "ceil", "ceil-even", "ceil-mean"],
)
def test_pools_with_gaps_and_with_windows_that_are_cut_off(pool: nn.Module, recipe: str | Recipe) -> None:
    network = inflate(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), pool), recipe, size=16)
    for frames in (5, 6, 7, 8):
        clip = torch.randn(2, 3, frames, 16, 16)
        assert network(clip).shape[2] == network.frames_left(frames)
        assert difference(network, frames_form(network), clip) < 1e-5


@pytest.mark.parametrize(
    ("place", "layer"),
    [
        (1, nn.MaxPool3d(2, ceil_mode=True)),
        (1, nn.MaxPool3d((3, 2, 2), (2, 2, 2), (1, 0, 0))),
        (2, nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate")),
        (2, nn.Conv3d(4, 4, 3, padding=1, padding_mode="circular")),
        (4, nn.AvgPool3d((3, 2, 2), (1, 2, 2), (1, 0, 0))),
        (4, nn.AvgPool3d((3, 2, 2), (1, 2, 2), (1, 0, 0), count_include_pad=False)),
        (4, nn.AvgPool3d(2, ceil_mode=True)),
    ],
)
def test_a_layer_in_the_place_of_one_of_its_kind_acts_in_lengths_and_in_the_form(place: int, layer: nn.Module) -> None:
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    network = inflate(nn.Sequential(*layers, nn.AvgPool2d(2)).eval(), "uniform", size=16)
    network[place] = layer.eval()
    clip = torch.randn(2, 3, 7, 16, 16)
    assert network(clip).shape[2] == network.frames_left(7)
    assert difference(network, frames_form(network), clip) < 1e-5


def test_a_half_of_no_frames_is_padded_by_replication_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"), nn.Conv2d(4, 4, 3, stride=2))
    network = use_all_taps(inflate(model, "uniform", size=16))
    form = frames_form(network)
    assert any(isinstance(module, StackedConv) and module.halved for module in form.modules())
    assert difference(network, form, torch.randn(2, 3, 1, 16, 16)) < 1e-5


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("googlenet", "resnext50_32x4d"))]
)
@pytest.mark.parametrize("frames", [1, 5])
def test_halves_of_the_frames_are_the_whole(name: str, frames: int) -> None:
    """The layers that stack frames at full size are computed in two parts, of which the first may be empty."""
    network = dense(name)
    form = frames_form(network)
    halved = [module for module in form.modules() if isinstance(module, StackedConv) and module.halved]
    assert halved
    try:
        network.frames_left(frames)
    except FramesError:
        pytest.skip("the recipe's strides need more frames")
    clip = torch.randn(2, 3, frames, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = network(clip)
        assert relative_error(expected, form(clip)) <= 1e-11
        for module in halved:
            module.halved = False
        assert relative_error(expected, form(clip)) <= 1e-11


def dense(name: str) -> Network3d:
    return inflate(name, weights="random", init="mean", size=64).double().eval()


class Shared(nn.Module):
    """Values that a BatchNorm or the mean over time is not the only one to use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        nn.init.uniform_(self.norm.running_mean)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        scores = self.head((self.norm(y) + y * self.scale).mean((2, 3)))
        return scores, scores.unsqueeze(1).softmax(-1)


def test_what_others_use_too_is_not_folded() -> None:
    torch.manual_seed(0)
    network = use_all_taps(inflate(Shared().eval(), size=8)).double()
    form, clip = frames_form(network), torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    for ours, theirs in zip(outputs(network(clip)), outputs(form(clip)), strict=True):
        assert relative_error(ours, theirs) <= 1e-12


def test_an_even_kernel_may_lengthen_the_clip() -> None:
    recipe = Recipe("longer", (Rule(kernel=4, padding=2),))
    network = use_all_taps(
        inflate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), recipe, init="mean", size=8)
    ).double()
    clip = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    assert network(clip).shape[2] == 6
    assert relative_error(network(clip), frames_form(network)(clip)) <= 1e-12


def test_the_head_gets_the_mean_over_time() -> None:
    form, given = frames_form(inflate(resnet10().eval(), size=32)), []
    form.get_submodule("fc").register_forward_pre_hook(lambda _, args: given.append(args[0].shape))
    form(torch.randn(2, 3, 4, 32, 32))
    assert given == [(2, 512)]
