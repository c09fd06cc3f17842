"""The result is an ordinary module: genuine 3D, trainable, copyable, compilable, under the 2D network's key names."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from i3dconvert import inflate, inflation_of, optimize, stream
from i3dconvert.backbones import Source
from i3dconvert.errors import FramesError, LiftError
from i3dconvert.lift.layout import fold
from i3dconvert.recipes import Recipe, Rule


def build(name: str) -> nn.Module:
    slow = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    return models.get_model(name, weights=None, num_classes=7, **slow)


@pytest.mark.parametrize(
    ("name", "recipe"), [("resnet50", "resnet"), ("densenet121", "densenet"), ("googlenet", "i3d")]
)
def test_genuine_3d_networks_folded_only_at_the_head(name: str, recipe: str) -> None:
    network = inflate(build(name), recipe, size=64)
    kinds = {type(module) for module in network.modules() if not list(module.children())}
    assert {nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.Linear} <= kinds
    assert not {nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d} & kinds
    assert (nn.AvgPool3d in kinds) == (name == "densenet121")
    folds = [node for node in network.graph.nodes if node.target is fold]
    later = {user.op for node in folds for user in node.users}
    assert len(folds) == 1
    assert "call_module" not in later


def test_key_names_shapes_and_values() -> None:
    model = build("resnet18")
    network = inflate(model, "resnet", size=64)
    state2d, state3d = model.state_dict(), network.state_dict()
    assert set(state2d) == set(state3d)
    assert state3d["layer2.0.conv1.weight"].shape == (128, 64, 3, 3, 3)
    assert torch.equal(state3d["layer2.0.conv1.weight"].sum(2), state2d["layer2.0.conv1.weight"])
    state3d["fc.bias"].fill_(9)
    assert not torch.equal(state2d["fc.bias"], state3d["fc.bias"]), "the two networks share no memory"


def test_it_trains_and_gradients_reach_every_inflated_weight() -> None:
    torch.manual_seed(0)
    network = inflate(build("resnet18").train(), "resnet", size=64)
    assert network.training
    assert network.get_submodule("layer1.0.bn1").training
    before = network.get_buffer("bn1.running_mean").clone()
    clip, label = torch.randn(2, 3, 8, 64, 64), torch.tensor([1, 2])
    optimiser = torch.optim.SGD(network.parameters(), 0.01)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(clip), label)
        loss.backward()
        losses.append(loss.item())
        for key in network.inflation.fillings:
            gradient = network.get_parameter(key).grad
            assert gradient is not None
            assert gradient.abs().sum() > 0, key
        optimiser.step()
    assert losses[-1] < losses[0]
    assert not torch.equal(before, network.get_buffer("bn1.running_mean"))


def test_modes_and_frozen_parameters_are_carried() -> None:
    model = build("resnet18").train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    network = inflate(model, "resnet", size=64)
    assert not network.get_submodule("layer1.0.bn1").training
    assert network.get_submodule("layer2.0.bn1").training
    assert not network.get_parameter("conv1.weight").requires_grad
    assert network.get_parameter("fc.weight").requires_grad


@pytest.mark.slow
def test_copies_and_compiles() -> None:
    network = inflate(build("resnet18").eval(), "resnet", size=64)
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        expected = network(clip)
        assert torch.equal(copy.deepcopy(network)(clip), expected)
        assert copy.deepcopy(network).inflation == network.inflation
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(clip), expected, atol=1e-5)


def test_tensors_that_the_forward_pass_never_reaches_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 4, 3), nn.Linear(2, 2)
            self.register_buffer("table", torch.arange(4.0).reshape(4, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + self.table

    net = Net()
    network = inflate(net, size=16)
    assert torch.equal(copy.deepcopy(network).state_dict()["unused.weight"], net.unused.weight)
    assert torch.allclose(network(torch.zeros(1, 3, 2, 16, 16))[0, :, 0, 0, 0], net.used.bias + torch.arange(4.0))


def test_batch_norm_keeps_its_settings() -> None:
    norm = nn.BatchNorm2d(4, eps=0.1, momentum=None, affine=False)
    lifted = inflate(nn.Sequential(nn.Conv2d(3, 4, 3), norm), size=16).get_submodule("1")
    assert (lifted.eps, lifted.momentum, lifted.affine) == (0.1, None, False)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("googlenet", "convnext_tiny", "efficientnet_b0", "densenet121")
        ),
    ],
)
def test_convolutions_with_dense_taps_see_other_frames_and_their_order(name: str) -> None:
    """As inflated, no middle tap sees another frame; with `mean` each does, but for frames alone (`c2d`)."""
    model, _ = Source(name, "random", size=64).load()
    clip = torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = clip.clone()
    other[:, :, 5] = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for recipe, sees in (("uniform", True), ("c2d", False)):
        network = inflate(model, recipe, "mean", size=64, temporal_pool="none").double().eval()
        with torch.no_grad():
            scores, moved = network(clip), network(other)
        beside = (scores - moved).abs().amax((0, 2)) / scores.abs().max()
        assert beside[5] > 1e-6
        assert (bool(beside[4] > 1e-9), bool(beside[6] > 1e-9)) == (sees, sees)
        if sees:
            for parameter in network.parameters():
                if parameter.dim() == 5:  # of taps that are alike, a clip turned round is the scores turned round
                    parameter.data[:, :, 0] *= 2
            with torch.no_grad():
                apart = network(clip) - network(clip.flip(2)).flip(1)
            assert apart.abs().max() > 1e-6 * scores.abs().max()


class Pair(NamedTuple):
    """Two maps."""

    one: Tensor
    other: Tensor


class Nested(nn.Module):
    """Returns a named tuple inside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Any:
        one, other = self.one(x), self.other(x)
        return {"maps": [one, (other, Pair(one, other))]}


def test_a_named_tuple_inside_a_dict_keeps_its_class() -> None:
    model = Nested().eval()
    clip = torch.randn(1, 3, 2, 8, 8)
    (found, (_, pair)), frame = inflate(model, "c2d", size=8)(clip)["maps"], model(clip[:, :, 1])
    assert isinstance(pair, Pair)
    assert torch.allclose(pair.one, found)
    assert torch.allclose(pair.other[:, :, 1], frame["maps"][1][1].other, atol=1e-6)


class Halves(nn.Module):
    """Returns a map and the rows of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Pair:
        found = self.conv(x)
        return Pair(found, found.flatten(2).transpose(1, 2))


class Whole(nn.Module):
    """Takes what `Halves` returns."""

    def forward(self, pair: Pair) -> Tensor:
        scores: Tensor = pair.one.mean((2, 3)) + pair.other.amax(1)
        return scores


def test_modules_pass_named_tuples_to_each_other() -> None:
    model = nn.Sequential(Halves(), Whole()).eval()
    network, clip = inflate(model, "c2d", size=8), torch.randn(2, 3, 3, 8, 8)
    expected = torch.stack([model(frame) for frame in clip.unbind(2)], 1).mean(1)
    assert torch.allclose(network(clip), expected, atol=1e-6)
    assert isinstance(network[0](clip), Pair)


class Joined(nn.Module):
    """Adds two poolings of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.MaxPool2d(3, 1, 1, ceil_mode=True), nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) + self.b(x)
        return y


def test_one_frame_is_not_added_to_each_of_several() -> None:
    recipe = Recipe("thirds", (Rule("a", kernel=3, stride=3), Rule("b", stride=3)))
    network = inflate(Joined(), recipe, input=(3, 8, 8))
    assert [network(torch.zeros(1, 3, frames, 8, 8)).shape[2] for frames in (1, 2, 4, 5)] == [1, 1, 2, 2]
    for frames in (3, 6):  # two frames and one, three and two
        with pytest.raises(FramesError, match="different numbers of frames"):
            network(torch.zeros(1, 3, frames, 8, 8))


@pytest.mark.parametrize("function", [stream, optimize, inflation_of])
def test_a_network_that_was_not_inflated_is_named(function: Any) -> None:
    with pytest.raises(LiftError, match="Conv2d is not an inflated network: pass the network that inflate or load"):
        function(nn.Conv2d(3, 4, 3))
