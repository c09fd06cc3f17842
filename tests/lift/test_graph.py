"""Lift or fold: what becomes of operations, and that what comes out is equal whatever the recipe."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from i3dconvert import Recipe, inflate
from i3dconvert.errors import FramesError, RecipeError
from i3dconvert.lift import layout
from i3dconvert.recipes import Rule
from i3dconvert.verification import Settings, verify
from i3dconvert.weights import randomise

PROOF = Settings(frames=5, size=20, dtypes=(torch.float64,))


def equal(net: nn.Module, **options: object) -> bool:
    randomise(net, 0, (3, 20, 20))
    report = verify(net.eval(), inflate(net, size=20, **options), PROOF)  # type: ignore[arg-type]
    assert report.passed, report.reason
    return report.passed


class Mixed(nn.Module):
    """One of nearly everything that small networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.even = nn.Conv2d(8, 8, 4, padding="same", groups=2)
        self.wide = nn.Conv2d(8, 8, (1, 3), stride=(1, 2), padding=(0, 1))
        self.norm = nn.GroupNorm(2, 8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.dilated = nn.Conv2d(16, 8, 3, padding=2, dilation=2)
        self.down = nn.Conv2d(8, 12, 2, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.even(x) * self.scale + x
        gate = F.adaptive_avg_pool2d(x, 1).sigmoid()
        x = self.instance(self.wide(x * gate))
        low, high = x.chunk(2, dim=1)
        x = torch.cat([x, F.max_pool2d(low, 3, 1, 1), F.avg_pool2d(high, 3, 1, 1)], 1)
        x = self.dilated(x).permute(0, 2, 3, 1)
        x = F.layer_norm(x, (8,)).permute(0, 3, 1, 2)
        x = self.down(F.pad(x, (1, 1, 0, 0)))
        x.add_(1)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("init", ["center", "mean"])
@pytest.mark.parametrize("recipe", ["uniform", "c2d", "volumetric"])
def test_one_of_everything(init: str, recipe: str) -> None:
    assert equal(Mixed(), init=init, recipe=recipe)


@pytest.mark.parametrize("init", ["center", "mean"])
@settings(max_examples=15, deadline=None)
@given(kernel=st.integers(1, 5), stride=st.integers(1, 3), dilation=st.integers(1, 2))
def test_any_temporal_kernel_stride_and_dilation(init: str, kernel: int, stride: int, dilation: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(4, 4, 3), nn.AvgPool2d(3, 1, 1))
    dilated = (Rule(kind=kind, dilation=dilation) for kind in ("spatial", "max_pool"))
    recipe = Recipe("r", (Rule(kernel=kernel, stride=stride), *dilated))
    options = Settings(frames=40, size=20, dtypes=(torch.float64,))
    assert verify(net, inflate(net, recipe, init, size=20), options).passed


def test_mean_with_zero_padding_is_not_equal_and_verify_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    report = verify(net, inflate(net, init="mean", padding="zeros", size=20), PROOF)
    assert not report.passed
    assert "forward equality" in report.reason


def test_structured_outputs_and_dense_ones_keep_time() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> dict[str, object]:
            y = self.conv(x)
            return {
                "dense": y.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
                "tokens": y.flatten(2).mT,
                "all": [y, y.mean((2, 3))],
            }

    network = inflate(Net(), size=20)
    out = network(torch.zeros(2, 3, 5, 20, 20))
    assert out["dense"].shape == (2, 4, 5, 18, 18)
    assert out["tokens"].shape == (2, 5, 324, 4)
    assert out["all"][1].shape == (2, 4)
    assert equal(Net())


def test_in_place_operations_reach_later_uses() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            before = y.flatten(2).sum(2)
            y.relu_()
            return before + y.flatten(2).sum(2)

    assert equal(Net())


def test_windows_are_images_of_their_own() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inside = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            windows = self.stem(x).unfold(2, 10, 10).unfold(3, 10, 10).permute(0, 2, 3, 1, 4, 5)
            return self.inside(windows.reshape(n * 4, 4, 10, 10)).reshape(n, -1)

    network = inflate(Net(), size=20)
    assert {layer.name: layer.lifted for layer in network.inflation.layers} == {"stem": True, "inside": True}
    assert equal(Net())


def test_batch_and_time_are_told_apart_when_the_batch_is_sliced() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y[:, 1:3] * y[:, :2]

    assert equal(Net())


class TestBatchSizes:
    """A batch size read before time is strided, and used behind it."""

    class Tokens(nn.Module):
        def __init__(self, read: str) -> None:
            super().__init__()
            self.stem, self.token = nn.Conv2d(3, 4, 4, 4), nn.Parameter(torch.randn(1, 1, 4))
            self.read = read

        def forward(self, x: Tensor) -> Tensor:
            batch = {"shape": x.shape, "size": x.size()}.get(self.read, (x.size(0),))[0]
            like = torch.zeros(x.shape[0], 1, 1, device=x.device) if self.read == "factory" else 0
            y = self.stem(x).flatten(2).transpose(1, 2)
            y = torch.cat([self.token.expand(batch, -1, -1) * 2 + like, y], 1)
            windows = y[:, 1:].reshape(batch * 5, 5, 4).softmax(1)
            return windows.view(batch, 25 * 4).sum(1, keepdim=True) + y.mean(1)

    @pytest.mark.parametrize("read", ["shape", "size", "dim", "factory"])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    def test_is_read_anew(self, read: str, stride: int) -> None:
        recipe = Recipe("strided", (Rule("stem", kernel=3, stride=stride),))
        assert equal(self.Tokens(read), recipe=recipe)

    def test_nothing_is_read_anew_where_time_keeps_its_length(self) -> None:
        network = inflate(self.Tokens("shape"), size=20)
        assert sum(node.target == "size" for node in network.graph.nodes) == 2  # the clips, and the batch


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Conv2d(3, 4, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


def test_a_recipe_that_breaks_a_join_is_refused_by_name() -> None:
    with pytest.raises(
        RecipeError, match=r"'add' in the network itself have .*frames: \d+ after a, \d+ after b;.* by a; "
    ):
        inflate(Residual(), Recipe("broken", (Rule("a", kernel=3, stride=2),)), size=20)


class HalvedTwice(nn.Module):
    """Halves its image by layers that leave time alone, and doubles it again by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Linear(4 * size, 8) for size in (3, 8)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(8, size, 2, 2) for size in (8, 3)])

    def forward(self, image: Tensor) -> Tensor:
        first = self.down[0](F.pixel_unshuffle(image, 2).movedim(1, -1)).movedim(-1, 1)
        second = self.down[1](F.pixel_unshuffle(first, 2).movedim(1, -1)).movedim(-1, 1)
        return self.up[1](self.up[0](second) + first) + image


def test_the_rules_that_mend_all_joins_are_said_at_once_and_do() -> None:
    with pytest.raises(RecipeError, match=r"'add' in the network itself.* by up\.\*; ") as refused:
        inflate(HalvedTwice().eval(), "volumetric", size=16)
    rules = re.findall(r"-t '(\S+)=(\d)/(\d)'", str(refused.value))
    recipe = Recipe("mended", tuple(Rule(glob, kernel=int(k), stride=int(s)) for glob, k, s in rules))
    assert equal(HalvedTwice(), recipe=recipe)


def test_too_few_frames_are_refused_with_the_number_needed() -> None:
    network = inflate(nn.Sequential(nn.Conv2d(3, 4, 3)), Recipe("r", (Rule(kernel=7, padding=0),)), size=20)
    with pytest.raises(FramesError, match=r"has 6 frames.* at least 7"):
        network(torch.zeros(1, 3, 6, 20, 20))
    assert network(torch.zeros(1, 3, 7, 20, 20)).shape[2] == 1
    with pytest.raises(FramesError, match="expected a clip"):
        network(torch.zeros(1, 3, 20, 20))


def test_fold_and_unfold_are_inverses() -> None:
    clip = torch.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, 3, 4, 5, 6)
    frames = layout.fold(clip)
    assert torch.equal(frames[1], clip[0, :, 1])
    assert torch.equal(layout.unfold(frames, 2), clip)
