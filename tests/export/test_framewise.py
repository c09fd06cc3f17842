"""The forms of a layer over frames, one by one against torch's own 3D layer, whatever kernel, stride and padding."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert.export.framewise import (
    ConvGeometry,
    FramesPool,
    LayerNormOverChannels,
    MinimalConv,
    Mixing,
    StackedConv,
    StemInHalves,
    SummedConv,
    conv_of_images,
    frames_conv,
    minimal_transforms,
    used_taps,
)
from i3dconvert.export.images import framewise_pool
from i3dconvert.export.operators import OPERATORS
from i3dconvert.export.steps import clip_of_frames, minimal_filtering, windows_of_clip
from i3dconvert.lift.layout import fold, unfold
from i3dconvert.lift.reading.records import mapped
from i3dconvert.recipes import Temporal

PLAIN = ConvGeometry((1, 2), (1, 0), (1, 1), 1, None)
CLIPS = 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padded(clip: Tensor, temporal: Temporal, replicate: bool) -> Tensor:
    pads = (0, 0, 0, 0, temporal.before, temporal.after)
    return F.pad(clip, pads, mode="replicate") if replicate else F.pad(clip, pads)


def convolved(
    clip: Tensor, kernel: Tensor, bias: Tensor | None, temporal: Temporal, replicate: bool, geometry: ConvGeometry
) -> Tensor:
    """As torch's `conv3d` has it."""
    stride, padding = (temporal.stride, *geometry.stride), (0, *geometry.padding)
    dilation = (temporal.dilation, *geometry.dilation)
    return F.conv3d(padded(clip, temporal, replicate), kernel, bias, stride, padding, dilation, geometry.groups)


@pytest.mark.parametrize("replicate", [False, True])
@pytest.mark.parametrize("form", [StackedConv, SummedConv])
@pytest.mark.parametrize("taps", [(0, 1, 2), (0, 2), (1,), (0,)])
@pytest.mark.parametrize(
    "temporal",
    [Temporal(3, 1, 1, 1), Temporal(3, 2, 1, 1), Temporal(3, 1, 2, 2, 2), Temporal(3, 1, 0, 0), Temporal(3, 3, 2, 1)],
)
def test_convolutions(temporal: Temporal, taps: tuple[int, ...], form: type[nn.Module], replicate: bool) -> None:
    for groups, frames in product((1, 2), (5, 8)):
        geometry = PLAIN._replace(groups=groups)
        kernel, bias = torch.zeros(6, 4 // groups, 3, 3, 2, dtype=torch.float64), drawn(6)
        kernel[:, :, list(taps)] = drawn(6, 4 // groups, len(taps), 3, 2)
        clip = drawn(CLIPS, 4, frames, 6, 7, seed=1)
        expected = convolved(clip, kernel, bias, temporal, replicate, geometry)
        mixing = Mixing(temporal, taps, replicate, rows=form is SummedConv)
        kept = kernel[:, :, list(taps)]
        if form is SummedConv:
            if temporal.stride > 1:
                continue  # its shares are for windows at every frame
            layers = [SummedConv(kept, bias, mixing, geometry), SummedConv(kept, None, mixing, geometry)]
        else:
            layers = [StackedConv(kept, bias, mixing, geometry, halved) for halved in (False, True)]
        for layer in layers:
            assert layer.conv.in_channels == layer.conv.weight.shape[1] * layer.conv.groups
            with torch.no_grad():
                found = layer(fold(clip), CLIPS, frames, expected.shape[2])
            wanted = expected if layer is layers[0] or form is StackedConv else expected - bias.reshape(-1, 1, 1, 1)
            assert torch.allclose(unfold(found, CLIPS), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("replicate", [False, True])
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 9])
def test_minimal_filtering(m: int, frames: int, replicate: bool) -> None:
    temporal, kernel, bias = Temporal(3, 1, 1, 1), drawn(5, 4, 3, 3, 2), drawn(5)
    clip = drawn(CLIPS, 4, frames, 6, 7, seed=1)
    transforms = minimal_transforms(clip, frames, m, replicate)
    assert transforms[0].shape == (-(-frames // m) * (m + 2), frames)
    for given in (bias, None):
        layer = MinimalConv(kernel, given, replicate, PLAIN, m)
        with torch.no_grad():
            found = unfold(layer(fold(clip), CLIPS, transforms), CLIPS)
        expected = convolved(clip, kernel, given, temporal, replicate, PLAIN)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_which_form_a_convolution_takes() -> None:
    def form(
        temporal: Temporal, shape: tuple[int, int, int], groups: int = 1, length: int = 16, taps: int = 3
    ) -> nn.Module:
        kernel = drawn(*shape, 3, 3)
        kernel[:, :, taps:] = 0
        return frames_conv(kernel, None, temporal, False, PLAIN._replace(groups=groups), length)

    centred = Temporal(3, 1, 1, 1)
    four, two = form(centred, (16, 16, 3), length=3), form(centred, (16, 16, 3), length=2)
    assert isinstance(four, MinimalConv)
    assert isinstance(two, MinimalConv)
    assert (four.m, two.m) == (4, 2)
    for other in (
        form(centred, (16, 15, 3)),
        form(centred, (16, 16, 3), length=1),
        form(centred, (16, 16, 3), groups=2),
        form(Temporal(3, 1, 0, 0), (16, 16, 3)),
        form(Temporal(3, 2, 1, 1), (16, 16, 3)),
        form(centred, (16, 16, 3), taps=2),
    ):
        assert not isinstance(other, MinimalConv)
    assert isinstance(form(Temporal(5, 1, 2, 2), (8, 9, 5)), SummedConv)
    assert isinstance(form(Temporal(5, 1, 2, 2), (10, 4, 5), groups=2), SummedConv)
    assert isinstance(form(Temporal(5, 2, 2, 2), (8, 9, 5)), StackedConv)
    assert isinstance(form(Temporal(5, 1, 2, 2), (8, 9, 5), taps=1), StackedConv)
    long, short = form(Temporal(5, 1, 2, 2), (9, 8, 5), length=4), form(Temporal(5, 1, 2, 2), (9, 8, 5), length=3)
    assert isinstance(long, StackedConv)
    assert isinstance(short, StackedConv)
    assert (long.halved, short.halved) == (True, False)
    single = form(centred, (9, 8, 3), taps=1)
    assert isinstance(single, StackedConv)
    assert not single.halved
    assert (
        frames_conv(torch.zeros(4, 4, 3, 1, 1), None, centred, False, PLAIN, 16)(torch.ones(4, 4, 6, 7), 2, 2, 2).any()
        == 0
    )


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("temporal", [Temporal(2, 2), Temporal(3, 2, 1, 1), Temporal(1, 1), Temporal(3, 1, 1, 1)])
def test_pools(temporal: Temporal, largest: bool) -> None:
    clip = drawn(CLIPS, 3, 8, 6, 6)
    whole = padded(clip, temporal, True)
    kernel, stride = (temporal.kernel, 2, 2), (temporal.stride, 2, 2)
    expected = F.max_pool3d(whole, kernel, stride) if largest else F.avg_pool3d(whole, kernel, stride)
    pool = FramesPool(nn.MaxPool2d(2) if largest else nn.AvgPool2d(2), temporal, largest, None)
    assert pool.mixing.trivial == (temporal.kernel == 1)
    found = unfold(pool(fold(clip), CLIPS, 8, expected.shape[2]), CLIPS)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_a_stem_in_halves(frames: int) -> None:
    temporal, kernel, clip = Temporal(3, 1, 1, 1), drawn(4, 3, 3, 3, 3), drawn(CLIPS, 3, frames, 8, 8)
    geometry = ConvGeometry((1, 1), (1, 1), (1, 1), 1, None)
    conv = StackedConv(kernel, None, Mixing(temporal, (0, 1, 2), False), geometry, halved=True)
    stem = StemInHalves(conv, nn.ReLU(), FramesPool(nn.MaxPool2d(2), Temporal(1, 1), True, None))
    expected = F.max_pool3d(convolved(clip, kernel, None, temporal, False, geometry).relu(), (1, 2, 2))
    with torch.no_grad():
        found = unfold(stem(fold(clip), CLIPS, frames, frames, frames), CLIPS)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_mixing_is_trivial_only_where_each_frame_sees_itself() -> None:
    assert Mixing(Temporal(3, 1, 1, 1), (1,), False).trivial
    assert not Mixing(Temporal(3, 1, 1, 1), (0,), False).trivial
    assert not Mixing(Temporal(3, 2, 1, 1), (1,), False).trivial
    assert not Mixing(Temporal(3, 1, 1, 0), (1,), False).trivial
    assert not Mixing(Temporal(3, 1, 0, 0), (0,), False).trivial
    assert Mixing(Temporal(3, 1, 1, 1), (0, 1), False).fill is not None
    assert Mixing(Temporal(3, 1, 1, 1), (1, 2), False).fill is not None
    assert Mixing(Temporal(3, 1, 1, 1), (1,), False).fill is None
    assert Mixing(Temporal(3, 1, 1, 1), (0, 1, 2), True).fill is None
    assert Mixing(Temporal(3, 1, 0, 0), (0, 1, 2), False).fill is None


def test_a_kernel_of_zeros_has_one_tap() -> None:
    assert used_taps(torch.zeros(2, 2, 3, 1, 1)) == (0,)
    kernel = torch.zeros(2, 2, 3, 1, 1)
    kernel[1, 0, 1:] = 1
    assert used_taps(kernel) == (1, 2)


def test_the_weights_are_constants() -> None:
    conv = conv_of_images(drawn(2, 3, 3, 1), drawn(2), PLAIN, 1)
    assert not any(parameter.requires_grad for parameter in conv.parameters())


def test_layer_norm_over_channels_is_that_of_every_position() -> None:
    norm, image = LayerNormOverChannels(3).double(), drawn(2, 3, 4, 5)
    expected = (image - image.mean(1, keepdim=True)) / (image.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(norm(image), expected)


@pytest.mark.parametrize(("stride", "has_form"), [(2, True), (3, False)])
def test_a_pool_whose_last_window_may_miss_the_clip_runs_on_it(stride: int, has_form: bool) -> None:
    temporal = Temporal(3, stride, 1, 1, ceil=True)
    pool = nn.MaxPool3d((3, 2, 2), (stride, 2, 2), (1, 0, 0), ceil_mode=True)
    assert (framewise_pool(pool, temporal) is not None) == has_form


@pytest.mark.parametrize("geometry", [(1, 1, 1, 1, 1, 1), (2, 1, 0, 1, 1, 2)])
def test_operators_give_the_shapes_and_values_of_the_steps(geometry: tuple[int, ...]) -> None:
    """The exporter knows only the shapes that the operators announce."""
    layer = MinimalConv(drawn(5, 4, 3, 3, 2), drawn(5), False, PLAIN, 2)
    frames, matrices = drawn(CLIPS * 3, 4, 9, 8), minimal_transforms(drawn(1), 3, 2, False)
    clip = clip_of_frames(frames, CLIPS, 3, 0.0)
    for step, operator, given in (
        (clip_of_frames, OPERATORS.clip, (frames, CLIPS, 3, None)),
        (clip_of_frames, OPERATORS.clip, (frames, CLIPS, 3, 0.0)),
        (windows_of_clip, OPERATORS.windows, (clip, 3, (1, 2), (-1, 0, 1), (0, 0, 0), (2, 1), True)),
        (
            minimal_filtering, OPERATORS.filtering,
            (frames, matrices, layer.conv.weight, layer.conv.bias, CLIPS, 4, geometry),
        ),
    ):  # fmt: skip
        found = step(*given)
        assert torch.equal(operator(*given), found)
        assert (
            operator(*mapped(given, lambda one: one.to("meta") if isinstance(one, Tensor) else one)).shape
            == found.shape
        )
