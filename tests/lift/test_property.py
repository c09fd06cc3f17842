"""Random small networks under random recipes: each is equal to its 2D network, or refused before a file is written.

Its form over frames is the same function, with any weights.
"""

import copy
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from timm.layers import BlurPool2d, LayerNorm2d, ScaledStdConv2d, StdConv2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn

from i3dconvert import I3DError, Network3d, Recipe, inflate, load, save
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import FramesError
from i3dconvert.export.frames import frames_form
from i3dconvert.lift.lengths import lengths
from i3dconvert.recipes import KINDS, PRESETS, Rule
from i3dconvert.recipes.rules import SPANNING
from i3dconvert.verification import Settings, verify

SIZE = 20
CHANNELS = 4

Draw = st.DrawFn
small = st.integers(1, 3)
sides = st.tuples(st.integers(1, 4), st.integers(1, 4))


class Residual(nn.Module):
    """A body and a shortcut, added where they fit, else side by side on the channels."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.body(x), self.shortcut(x)
        return y + z if y.shape == z.shape else torch.cat([y, F.interpolate(z, size=y.shape[-2:])], 1)[:, :CHANNELS]


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


@st.composite
def convolutions(draw: Draw) -> nn.Module:
    kernel, stride = draw(sides), draw(st.tuples(small, small))
    options: dict[str, Any] = {"groups": draw(st.sampled_from([1, 2, 4])), "bias": draw(st.booleans())}
    options["dilation"] = draw(st.integers(1, 2))
    cls = draw(st.sampled_from([nn.Conv2d, nn.Conv2d, StdConv2d, ScaledStdConv2d, Conv2dSame]))
    if cls is nn.Conv2d and draw(st.booleans()):
        return nn.Conv2d(CHANNELS, CHANNELS, kernel, padding="same", **options)
    if cls is nn.Conv2d:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    return cls(CHANNELS, CHANNELS, kernel, stride=stride, padding=draw(st.integers(0, 2)), **options)


@st.composite
def transposed(draw: Draw) -> nn.Module:
    stride = draw(small)
    options = {"padding": draw(st.integers(0, 1)), "output_padding": draw(st.integers(0, stride - 1))}
    return nn.ConvTranspose2d(CHANNELS, CHANNELS, draw(st.integers(1, 4)), stride, **options)


@st.composite
def poolings(draw: Draw) -> nn.Module:
    kernel, stride = draw(st.integers(1, 3)), draw(small)
    padding, ceil = draw(st.integers(0, kernel // 2)), draw(st.booleans())
    cls = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d, MaxPool2dSame, AvgPool2dSame, BlurPool2d]))
    if cls is BlurPool2d:
        return BlurPool2d(CHANNELS, filt_size=draw(st.sampled_from([3, 5])), stride=stride)
    return cls(kernel, stride, padding, ceil_mode=ceil)


@st.composite
def others(draw: Draw) -> nn.Module:
    pad = draw(st.integers(0, 2))
    return draw(
        st.sampled_from(
            [
                nn.BatchNorm2d(CHANNELS),
                nn.GroupNorm(2, CHANNELS),
                LayerNorm2d(CHANNELS),
                nn.GELU(),
                nn.ReLU(inplace=True),
                nn.PReLU(CHANNELS),
                Gate(),
                nn.ReflectionPad2d(pad),
                nn.ZeroPad2d((pad, 0, 1, 2)),
                nn.Upsample(scale_factor=draw(st.sampled_from([2, 3, 1.5])), mode="nearest"),
                nn.Upsample(size=SIZE, mode=draw(st.sampled_from(["bilinear", "bicubic"]))),
                nn.PixelUnshuffle(1),
            ]
        )
    )


layers = st.one_of(convolutions(), convolutions(), transposed(), poolings(), others())


@st.composite
def networks(draw: Draw) -> nn.Module:
    parts: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1)]
    for _ in range(draw(st.integers(1, 5))):
        part = draw(layers)
        parts.append(Residual(part, draw(layers)) if draw(st.integers(0, 3)) == 0 else part)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5)] if draw(st.booleans()) else []
    return nn.Sequential(*parts, *head)


@st.composite
def recipes(draw: Draw) -> Recipe:
    if draw(st.integers(0, 2)) == 0:
        return PRESETS[draw(st.sampled_from(["uniform", "c2d", "volumetric"]))]
    number = st.one_of(st.none(), st.integers(1, 4), st.just("spatial"))
    rules = draw(
        st.lists(
            st.builds(
                Rule,
                layer=st.sampled_from(["*", "*", "[0-9]", "*.body"]),
                kind=st.sampled_from(["*", *(kind for kind in KINDS if kind not in SPANNING)]),
                kernel=number,
                stride=st.one_of(st.none(), st.integers(1, 2), st.just("spatial")),
                padding=st.one_of(st.none(), st.integers(0, 2), st.just("spatial")),
                dilation=st.one_of(st.none(), st.integers(1, 2), st.just("spatial")),
            ),
            min_size=1,
            max_size=3,
        )
    )
    spanning = draw(st.lists(st.sampled_from([Rule(kind="global", span="all"), Rule(kind="norm", span=1)]), max_size=1))
    return Recipe("random", (*rules, *spanning))


def gets_through(network: Network3d, frames: int) -> bool:
    """Whether the branches of a network have as many frames as each other where they join, as after strides."""
    try:
        lengths(network.graph, frames)
    except FramesError:
        return False
    return True


def check_each_frame(net: nn.Module, init: str, seed: int) -> None:
    """`c2d` is the 2D network on each frame of a moving clip: at N = 1, T = 1, another size, in both dtypes."""
    try:
        network = inflate(net, "c2d", init, temporal_pool="none", size=SIZE)
    except I3DError:
        return
    for clips, frames, size, dtype in (
        (1, 1, SIZE, torch.float64),
        (3, 2, SIZE + 5, torch.float64),
        (2, 3, SIZE, torch.float32),
    ):
        clip = torch.randn(clips, 3, frames, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        images = clip.transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            try:
                expected, found = copy.deepcopy(net).to(dtype)(images), copy.deepcopy(network).to(dtype)(clip)
            except (RuntimeError, ValueError, FramesError):
                continue
        found = (found.transpose(1, 2) if expected.dim() == 4 else found).flatten(0, 1)
        assert relative_error(expected, found) <= (1e-12 if dtype == torch.float64 else 1e-4)


def equal_or_refused(net: nn.Module, recipe: Recipe, init: str, conv: str, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    net.eval()
    try:
        with torch.no_grad():
            images = torch.randn(2, 3, SIZE, SIZE)
            out, exact = net(images), copy.deepcopy(net).double()(images.double())
    except (RuntimeError, ValueError):
        assume(False)
    assume(bool((out[0] - out[1]).abs().max() > 1e-3 * out.abs().max()))
    assume(relative_error(exact, out) < 1e-5)  # else rounding alone is seen in float64 too
    check_each_frame(net, init, seed)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        try:
            network = inflate(net, recipe, init, conv=conv, size=SIZE)
        except I3DError:
            assert not any(Path(folder).iterdir())
            return
        save(network, path)
        loaded = load(path, net)
        frames = next(t for t in count(max(5, network.inflation.minimum_frames)) if gets_through(network, t))
        report = verify(net, loaded, Settings(frames=frames, size=SIZE, dtypes=(torch.float64,)))
    assert report.passed, report.reason
    for key in network.inflation.fillings:
        weight = network.get_parameter(key).data
        weight += 0.1 * torch.randn_like(weight)
    network = network.eval().double()
    clip = torch.randn(2, 3, frames, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(network(clip), frames_form(network)(clip)) < 1e-10


arguments = {
    "net": networks(),
    "recipe": recipes(),
    "init": st.sampled_from(["center", "mean"]),
    "conv": st.sampled_from(["3d", "3d", "2plus1d"]),
    "seed": st.integers(0, 9),
}
lenient = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@settings(max_examples=24, derandomize=True, deadline=None, suppress_health_check=lenient)
@given(**arguments)
def test_random_networks(net: nn.Module, recipe: Recipe, init: str, conv: str, seed: int) -> None:
    equal_or_refused(net, recipe, init, conv, seed)


@pytest.mark.sweep
@settings(max_examples=2000, deadline=None, suppress_health_check=lenient)
@given(**arguments)
def test_two_thousand_random_networks(net: nn.Module, recipe: Recipe, init: str, conv: str, seed: int) -> None:
    equal_or_refused(net, recipe, init, conv, seed)
