"""What users do with a tree of modules: replace, slice, save, compile, freeze and rename its parts."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torchvision import models

from i3dconvert import Network3d, inflate, inflation_of, load, optimize, save
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LiftError
from i3dconvert.lift.network import flattened
from i3dconvert.lift.tree.blocks import Chain
from tests.lift.conftest import SIZE
from tests.lift.test_tree import clip_of


class Averaging(nn.Module):
    """Somebody's 2D module: the mean over each image."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4
        return x - x.mean((1, 2, 3), keepdim=True)


def exchanged(change: str, network: Any) -> None:
    match change:
        case "head":
            network.fc = nn.Linear(512, 3)
        case "longer head":
            network.fc = nn.Sequential(nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        case "identity":
            network.layer4[1] = nn.Identity()
        case "emptied":
            network.layer1 = nn.Sequential()
        case "appended":
            network.layer4.append(Averaging())
        case "a 2D block":
            network.layer2 = nn.Sequential(nn.Conv2d(64, 128, 3, 2, 1), nn.ReLU())
        case "a 3D block":
            network.layer2 = nn.Sequential(nn.Conv3d(64, 128, 3, 2, 1), nn.ReLU())


CHANGES = ("head", "longer head", "identity", "emptied", "appended", "a 2D block", "a 3D block")


@pytest.mark.parametrize("change", CHANGES)
def test_what_stands_there_now_acts(change: str, network: Network3d) -> None:
    clip, before = clip_of(2, 3, 4, SIZE, SIZE), copy.deepcopy(network)
    torch.manual_seed(0)
    exchanged(change, network)
    network.eval()
    with torch.no_grad():
        found = network(clip)
        flat = flattened(network).eval()(clip)
        assert found.shape != before(clip).shape or relative_error(before(clip), found) > 1e-6
        assert torch.equal(flat, found)
        assert relative_error(found, optimize(network)(clip)) <= 1e-4
    assert network.frames_left(8) == (4 if change == "a 3D block" else 8)


def test_a_2d_module_sees_frames(network: Network3d) -> None:
    """So that `c2d` with a replaced block is the 2D network with that block, on each frame."""
    model = models.resnet18(num_classes=5).eval().double()
    lifted = inflate(model, "c2d", size=SIZE)
    model.layer3[0].relu, lifted.layer3[0].relu = Averaging(), Averaging()
    model.fc = lifted.fc = nn.Sequential(nn.Linear(512, 4), nn.BatchNorm1d(4)).double().eval()
    clip = clip_of(2, 3, 3, SIZE, SIZE).double()
    with torch.no_grad():
        expected = torch.stack([model(frame) for frame in clip.unbind(2)], 1).mean(1)
        assert relative_error(expected, lifted(clip)) <= 1e-12


def test_slices_of_a_sequential() -> None:
    torch.manual_seed(0)
    model = models.mobilenet_v3_small(num_classes=5).eval()
    network = inflate(model, "uniform", size=SIZE)
    clip = clip_of(1, 3, 2, SIZE, SIZE)
    with torch.no_grad():
        half = network.features[:5](clip)
        assert isinstance(network.features[:5], Chain)
        assert torch.equal(network.features[5:](half), network.features(clip))
        head = network.classifier[:-1](clip_of(1, 2, 576))
        assert head.shape == (1, 2, 1024)
    network.classifier[3] = nn.Linear(1024, 2)
    assert network(clip).shape == (1, 2)
    network.classifier = nn.Sequential(nn.Dropout(), nn.Linear(576, 4), nn.ReLU(), nn.Linear(4, 3))
    assert network(clip).shape == (1, 3)


def test_it_saves_whole_and_in_part_without_being_read_again(network: Network3d) -> None:
    clip = clip_of(1, 3, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = network(clip)
        for again in (
            copy.copy(network),
            copy.deepcopy(network),
            pickle.loads(pickle.dumps(network)),
            torch.load(io.BytesIO(_saved(network)), weights_only=False),
        ):
            assert torch.equal(again(clip), expected)
            assert inflation_of(again) == network.inflation
            assert again.frames_left(6) == 6
        part = pickle.loads(pickle.dumps(network.layer2))
        given = clip_of(1, 64, 3, 16, 16)
        assert torch.equal(part(given), network.layer2(given))


def _saved(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(network, buffer)
    return buffer.getvalue()


@pytest.mark.slow
def test_checkpointed_wrapped_and_compiled_blocks(network: Network3d) -> None:
    clip = clip_of(2, 3, 2, SIZE, SIZE)
    plain = copy.deepcopy(network).train()
    loss = plain(clip).square().sum()
    loss.backward()
    network.layer1 = checkpoint_wrapper(network.layer1)
    network.layer2.compile(backend="eager")
    network.layer3 = torch.compile(network.layer3, backend="eager")
    network.train()
    again = network(clip).square().sum()
    again.backward()
    assert torch.equal(loss, again)
    assert torch.allclose(network.conv1.weight.grad, plain.conv1.weight.grad, rtol=1e-4, atol=1e-5)
    assert network.frames_left(8) == 8


def test_a_frozen_block_stays_deterministic() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.conv(x), 0.5, self.training)

    network = inflate(nn.Sequential(Dropping(), nn.ReLU()), size=16).train()
    clip = clip_of(1, 3, 2, 16, 16)
    assert not torch.equal(network(clip), network(clip))
    network.get_submodule("0").eval()
    assert network.training
    assert torch.equal(network(clip), network(clip))


RESERVED = (
    "graph",
    "meta",
    "code",
    "inflation",
    "_graph",
    "frames_left",
    "gives_scores",
    "recompile",
    "takes",
    "clips",
    "borders",
    "beside",
    "path",
)


@pytest.mark.parametrize("name", RESERVED)
def test_a_users_name_goes_before_ours(name: str, tmp_path: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Conv2d(3, 4, 3))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self._modules[name](x).mean((2, 3)))

    model = Net().eval()
    network = inflate(model, size=16)
    assert isinstance(getattr(network, name), nn.Conv3d)
    clip = clip_of(1, 3, 4, 16, 16)
    save(network, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "net.safetensors", model)(clip), network(clip))
        assert relative_error(network(clip), optimize(network)(clip)) <= 1e-5
    assert inflation_of(network).minimum_frames == 1


def test_a_module_called_twice_is_one_module() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x))

    model = Twice().eval()
    network = inflate(model, "c2d", size=16)
    calls = []
    network.block.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        found = network(clip_of(1, 3, 2, 16, 16))
        assert len(calls) == 2
        expected = torch.stack([model(frame) for frame in clip_of(1, 3, 2, 16, 16).unbind(2)], 2)
        assert relative_error(expected, found) <= 1e-5
    assert len([node for node in network.graph.nodes if node.target == "block.0"]) == 2


def test_words_of_python_as_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"class": nn.Conv2d(3, 4, 3), "global": nn.ReLU(), "self": nn.Conv2d(4, 2, 1)})
            self.add_module("self", nn.Conv2d(2, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts.values():
                x = part(x)
            return self._modules["self"](x)

    model = Net().eval().double()
    network = inflate(model, "c2d", size=16)
    clip = clip_of(1, 3, 2, 16, 16).double()
    with torch.no_grad():
        expected = torch.stack([model(frame) for frame in clip.unbind(2)], 2)
        assert relative_error(expected, network(clip)) <= 1e-12
        assert relative_error(expected, optimize(network)(clip)) <= 1e-12
    assert 'getattr(self.parts, "class")' in network.code


def test_a_module_without_code_says_so() -> None:
    class Mutating(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.relu_()
            return x.mean((2, 3))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner = nn.Conv2d(3, 4, 3), Mutating()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            scores = self.inner(y)
            return scores + y.sum((2, 3))  # what the child wrote into its input

    model = Net().eval().double()
    network = inflate(model, "c2d", size=16)
    clip = clip_of(1, 3, 2, 16, 16).double()
    with torch.no_grad():
        expected = torch.stack([model(frame.clone()) for frame in clip.unbind(2)], 1).mean(1)
        assert relative_error(expected, network(clip)) <= 1e-12
    with pytest.raises(LiftError, match="Mutating can't be called on its own"):
        network.inner(clip)
