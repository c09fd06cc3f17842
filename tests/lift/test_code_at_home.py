"""Networks as people write them at home, second part: what once was wrong, ended in a traceback or was refused."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from i3dconvert import inflate, optimize
from i3dconvert.comparison.forward import relative_error
from tests.lift.anybody import framewise

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Whatever a test gives it, in float64."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        layers = {"c": nn.Conv2d(3, 8, 3, padding=1), "d": nn.Conv2d(8, 2, 3, padding=1), "qkv": nn.Linear(8, 24)}
        for name, part in (layers | parts).items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.code = forward
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


def clip_of(clips: int, frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(clips, 3, frames, height, width, generator=generator, dtype=torch.float64)


class Windows(nn.Module):
    """Attention over the tokens of windows `(N·windows, 16, 8)`."""

    def __init__(self, mixed: bool = False) -> None:
        super().__init__()
        self.qkv, self.mix = nn.Linear(8, 24), nn.Linear(2, 2) if mixed else None

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).reshape(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1)).softmax(-1)
        if self.mix is not None:
            weights = self.mix(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (weights @ value).transpose(1, 2).reshape(len(x), -1, 8)


def in_windows(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    batch, _, height, width = y.shape
    windows = y.view(batch, 8, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 8)
    back = net.attention(windows).view(batch, height // 4, width // 4, 4, 4, 8).permute(0, 5, 1, 3, 2, 4)
    return net.d(back.reshape(batch, 8, height, width))


def in_columns(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    batch, _, height, width = y.shape
    columns = y.permute(0, 3, 2, 1).reshape(batch * width, height, 8)
    attended, _ = net.attention(columns, columns, columns)
    return net.d(attended.reshape(batch, width, height, 8).permute(0, 3, 2, 1))


def of_one_window(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    batch, _, height, width = y.shape
    windows = y.view(batch, 8, height // 16, 16, width // 16, 16).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8, 16, 16)
    back = net.d(windows).view(batch, height // 16, width // 16, 2, 16, 16).permute(0, 3, 1, 4, 2, 5)
    return back.reshape(batch, 2, height, width)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (Net(in_windows, attention=Windows()), 24),
        (Net(in_windows, attention=Windows(mixed=True)), 24),
        (Net(in_columns, attention=nn.MultiheadAttention(8, 2, batch_first=True)), 24),
        (Net(of_one_window), 32),
    ],
    ids=["windows", "mixed heads", "columns", "one window"],
)
def test_the_number_of_windows_follows_the_size(model: Net, size: int) -> None:
    framed, joint = inflate(model, "c2d", size=16), inflate(model, "joint", "mean", size=16)
    with torch.no_grad():
        for clips, frames, height, width in ((1, 3, 16, 16), (1, 3, size, size), (2, 2, 48, 16)):
            clip = clip_of(clips, frames, height, width)
            assert relative_error(framewise(model, clip), framed(clip)) <= 1e-12
            still = clip[:, :, :1].expand(-1, -1, frames, -1, -1)
            assert relative_error(framewise(model, still), joint(still)) <= 1e-12


def a_mask_cast_and_written_to(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    mask = torch.zeros(1, 1, *y.shape[2:]).to(y)
    mask[:, :, 2:] = 1
    return net.d(y * mask)


def written_by_out(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    twice, whole = torch.empty_like(y), y.new_zeros(y.shape)
    torch.mul(y, 2, out=twice)
    torch.add(y, twice, out=whole[:, :8])
    return net.d(whole + twice)


def a_complex_dtype(net: Any, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(net.c(x))
    kept = torch.zeros(spectrum.shape, dtype=spectrum.dtype)
    kept[..., :3, :3] = spectrum[..., :3, :3] * 2
    return net.d(torch.fft.irfft2(kept, s=x.shape[-2:]))


def a_filter_in_the_frequencies(net: Any, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(net.c(x)) * torch.view_as_complex(net.filter)
    return net.d(torch.fft.irfft2(spectrum, s=x.shape[-2:]))


def a_fixed_kernel(net: Any, x: Tensor) -> Tensor:
    return net.d(F.conv2d(net.pad(net.c(x)), net.kernel, stride=2, groups=8))


def a_pool_as_large_as_the_image(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(y + F.max_pool2d(y, (y.size(2), y.size(3))))


def a_multiple_of_the_batch(net: Any, x: Tensor) -> Tensor:
    groups = net.c(x).reshape(len(x) * 2, 4, -1).softmax(1)
    return net.d(groups.reshape(int(x.shape[0]), 8, *x.shape[2:]))


def moved_by_offsets(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.d(deform_conv2d(y, F.pad(y, (0, 0, 0, 0, 5, 5)), net.kernel, padding=1))


BLUR = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])).expand(8, 1, 3, 3).clone() / 16


@pytest.mark.parametrize(
    "model",
    [
        Net(a_mask_cast_and_written_to),
        Net(written_by_out),
        Net(a_multiple_of_the_batch),
        Net(a_complex_dtype),
        Net(a_filter_in_the_frequencies, filter=torch.randn(8, 8, 5, 2)),
        Net(a_fixed_kernel, kernel=BLUR, pad=nn.ReflectionPad2d(1)),
        Net(a_pool_as_large_as_the_image),
        Net(moved_by_offsets, kernel=BLUR.expand(8, 8, 3, 3).clone()),
        Net(lambda net, x: net.d(net.norm(net.c(x))), norm=nn.CrossMapLRN2d(5)),
        Net(lambda net, x: net.d(net.c(x).clone(memory_format=torch.contiguous_format))),
    ],
    ids=["cast", "out", "multiple", "complex", "filter", "kernel", "pool", "offsets", "CrossMapLRN2d", "memory format"],
)
def test_it_is_the_2d_network_on_each_frame_optimized_and_pickled(model: Net) -> None:
    network, clip = inflate(model, "c2d", size=8), clip_of(2, 3, 8, 8)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    with torch.no_grad():
        expected = framewise(model, clip)
        for form in (network, optimize(network), torch.load(file, weights_only=False)):
            assert relative_error(expected, form(clip)) <= 1e-12


def to_a_rounded_size(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    size = [int(round(length * 1.5)) for length in y.shape[2:]]  # noqa: RUF046
    return net.d(F.interpolate(y, size=size))


def padded_to_a_multiple(net: Any, x: Tensor) -> Tensor:
    below, right = (int(math.ceil(length / 8) * 8) - length for length in x.shape[2:])
    return net.d(net.c(F.pad(x, (0, right, 0, below))))


@pytest.mark.parametrize("forward", [to_a_rounded_size, padded_to_a_multiple])
def test_a_size_is_the_number_that_all_tried_sizes_agree_on(forward: Forward) -> None:
    model, clip = Net(forward), clip_of(1, 2, 17, 21)
    with torch.no_grad():
        assert relative_error(framewise(model, clip), inflate(model, "c2d", size=16)(clip)) <= 1e-12


def test_hooks_that_hold_on_to_the_network() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        net.kept.clear()
        net.c(x)
        return net.d(net.kept["c"])

    model, clip = Net(forward, kept={}), clip_of(1, 2, 8, 8)
    model.c.register_forward_hook(lambda module, args, output: model.kept.update(c=output))
    with torch.no_grad():
        assert relative_error(framewise(model, clip), inflate(model, "c2d", size=8)(clip)) <= 1e-12


def test_a_hook_that_holds_on_to_the_network_by_a_global() -> None:
    namespace: dict[str, Any] = {"network": Net(lambda net, x: net.d(net.c(x)) + net.kept[:, :2])}
    exec("def keep(module, args, output):\n    network.kept = output", namespace)
    model, clip = namespace["network"], clip_of(2, 2, 12, 20)
    model.c.register_forward_hook(namespace["keep"])
    network = inflate(model, "c2d", size=16)
    assert relative_error(framewise(model, clip), network(clip)) <= 1e-12


def test_volumetric_pools_windows_apart_at_every_size() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y, (n, _, height, width) = net.c(x), x.shape
        rows = y.reshape(n, 8, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8, 4, 4)
        rows = rows * net.pool(rows)
        back = rows.reshape(n, height // 4, width // 4, 8, 4, 4).permute(0, 3, 1, 4, 2, 5)
        return net.d(back.reshape(n, 8, height, width))

    model = Net(forward, pool=nn.AdaptiveAvgPool2d(1))
    network = inflate(model, "volumetric", size=16)
    for size in (16, 24):
        clip = clip_of(2, 1, size, size).expand(-1, -1, 3, -1, -1)
        with torch.no_grad():
            assert relative_error(framewise(model, clip), network(clip)) <= 1e-12


def test_volumetric_pools_the_groups_of_channels_apart() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        groups = net.c(x).reshape(x.shape[0] * 2, 4, *x.shape[2:])
        return net.d((groups * net.pool(groups).sigmoid()).reshape(len(x), 8, *x.shape[2:]))

    model, clip = Net(forward, pool=nn.AdaptiveAvgPool2d(1)), clip_of(2, 1, 8, 8).expand(-1, -1, 3, -1, -1)
    with torch.no_grad():
        assert relative_error(framewise(model, clip), inflate(model, "volumetric", size=8)(clip)) <= 1e-12


@pytest.mark.parametrize("recipe", ["c2d", "joint"])
@pytest.mark.parametrize("biased", [False, True])
def test_fused_attention_without_heads_gets_the_axis_that_onnx_wants(recipe: str, biased: bool) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        query, key, value = net.qkv(net.c(x).flatten(2).mT).chunk(3, -1)
        return F.scaled_dot_product_attention(query, key, value, net.bias if biased else None).mean(1)

    model, clip = Net(forward, bias=torch.randn(1, 64, 64)), clip_of(2, 3, 8, 8)
    clip = clip if recipe == "c2d" else clip[:, :, :1].expand(-1, -1, 3, -1, -1)
    network = inflate(model, recipe, size=8)
    shapes: list[int] = []
    with torch.no_grad():
        assert relative_error(framewise(model, clip), network(clip)) <= 1e-12
        traced = torch.export.export(network, (clip,)).graph
    for node in traced.nodes:
        if "scaled_dot_product_attention" in str(node.target):
            shapes.append(node.args[0].meta["val"].dim())
    assert shapes == [4]


class OverChannels(nn.Module):
    """A network of images with 3D layers, whose third axis is that of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 5)
        self.across = nn.Sequential(nn.Conv3d(1, 1, 3, (2, 1, 1), 1), nn.BatchNorm3d(1), nn.MaxPool3d((1, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        volume = self.across(self.conv(x).unsqueeze(1))
        return self.head(volume.squeeze(1).mean((2, 3)))


def test_3d_layers_of_a_2d_network_run_on_each_frame() -> None:
    model = OverChannels().double().eval()
    clip = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64)
    network = inflate(model, "c2d", size=16)
    expected = torch.stack([model(frame) for frame in clip.unbind(2)], 1).mean(1)
    for form in (network, pickle.loads(pickle.dumps(network)), optimize(network)):
        assert relative_error(expected, form(clip)) <= 1e-12


def upper_triangle(net: Any, x: Tensor) -> Tensor:
    y = net.c(x).flatten(2)
    products = (y @ y.transpose(1, 2)).flatten(1)
    places = torch.ones(y.shape[1], y.shape[1], dtype=x.dtype, device=x.device).triu().reshape(-1).nonzero()
    return products[:, places.squeeze(1)]


def test_a_shape_that_depends_on_constants_is_read() -> None:
    model, clip = Net(upper_triangle), torch.randn(2, 3, 4, 12, 20, dtype=torch.float64)
    expected = torch.stack([model(frame) for frame in clip.unbind(2)], 1).mean(1)
    assert relative_error(expected, inflate(model, "c2d", size=16)(clip)) <= 1e-12


class Doubling(nn.Module):
    """A module that is kept whole, since only its code asks for the mode."""

    def forward(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"y": F.dropout(given["y"], 0.5, self.training), "height": given["height"] * 2}


def sizes_through_identity(net: Any, x: Tensor) -> Tensor:
    given = net.part({"y": net.c(x), "size": x.shape[2:], "clips": x.shape[0]})
    return net.d(F.interpolate(given["y"], given["size"]).view(given["clips"], 8, *given["size"]))


def sizes_of_a_part(net: Any, x: Tensor) -> Tensor:
    given = net.part({"y": net.c(x), "height": x.shape[2]})
    return net.d(F.interpolate(given["y"], (given["height"], x.shape[3])))


@pytest.mark.parametrize(("forward", "part"), [(sizes_through_identity, nn.Identity()), (sizes_of_a_part, Doubling())])
def test_a_layer_may_take_and_give_sizes(forward: Forward, part: nn.Module) -> None:
    model, clip = Net(forward, part=part), clip_of(2, 3, 12, 20)
    with torch.no_grad():
        assert relative_error(framewise(model, clip), inflate(model, "c2d", size=16)(clip)) <= 1e-12
