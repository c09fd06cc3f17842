"""What trainers ask of a network is answered as the 2D network answers it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torchvision import models

from i3dconvert import inflate
from i3dconvert.errors import LiftError

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


def clip_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(**VIT).eval()
    return model, inflate(model, "joint", size=32)


def test_layer_decay_has_the_2d_networks_groups(vit: tuple[nn.Module, Any]) -> None:
    model, network = vit
    for again in (network, pickle.loads(pickle.dumps(network))):
        groups = [
            [
                (group["lr_scale"], group["weight_decay"], len(group["params"]))
                for group in param_groups_layer_decay(net)
            ]
            for net in (model, again)
        ]
        assert groups[0] == groups[1]
        assert len({scale for scale, _, _ in groups[0]}) > 3
        assert again.no_weight_decay() == model.no_weight_decay()
        assert again.group_matcher(coarse=True) == model.group_matcher(coarse=True)


def test_what_timm_says_of_a_network(vit: tuple[nn.Module, Any]) -> None:
    model, network = vit
    assert (network.num_classes, network.num_features) == (model.num_classes, model.num_features)
    assert resolve_model_data_config(network) == resolve_model_data_config(model)
    network = copy.deepcopy(network)
    assert network.get_classifier() is network.head
    network.reset_classifier(3)
    assert network.num_classes == 3
    assert network(clip_of(1, 3, 2, 32, 32)).shape == (1, 3)
    network.reset_classifier(0)
    assert network(clip_of(1, 3, 2, 32, 32)).shape == (1, model.num_features)
    network.reset_classifier(4)
    assert network(clip_of(1, 3, 2, 32, 32)).shape == (1, 4)
    with pytest.raises(LiftError, match="build that with global_pool='avg'"):
        network.reset_classifier(4, "avg")
    with pytest.raises(AttributeError):
        inflate(nn.Sequential(nn.Conv2d(3, 4, 3)), size=16).group_matcher  # noqa: B018


def test_two_heads_and_what_is_absent() -> None:
    """A distilled network has two heads; what can't be carried is absent, with a word on what to use."""
    torch.manual_seed(0)
    model: Any = timm.models.deit.VisionTransformerDistilled(**VIT).eval()
    network: Any = pickle.loads(pickle.dumps(inflate(model, "c2d", size=32)))
    clip = clip_of(1, 3, 2, 32, 32)
    assert network.num_classes == model.num_classes
    assert network.get_classifier() == (network.head, network.head_dist)
    for classes in (0, 3):
        network.reset_classifier(classes)
        model.reset_classifier(classes)
        assert network(clip).shape == model(clip[:, :, 0]).shape
        assert network.num_classes == model.num_classes == classes
    assert not hasattr(network, "head_name")
    assert not hasattr(network, "forward_intermediates")
    with pytest.raises(AttributeError, match="forward hooks on the blocks"):
        network.forward_intermediates(clip)
    maps = inflate(nn.Sequential(nn.Conv2d(3, 4, 3)), size=16)
    assert not hasattr(maps, "head_name")


SWIN = {"img_size": 64, "patch_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}


@pytest.mark.parametrize(
    ("build", "size", "head"),
    [
        (lambda: timm.models.VisionTransformer(**VIT), 32, "head"),
        (lambda: timm.models.SwinTransformer(**SWIN, num_classes=5), 64, "head.fc"),
        (lambda: timm.create_model("resnet10t", num_classes=5), 32, "fc"),
        pytest.param(
            lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), 32, "classifier", marks=pytest.mark.slow
        ),
    ],
    ids=["vit", "swin", "resnet", "mobilenet"],
)
def test_timms_halves_and_head(build: Any, size: int, head: str) -> None:
    """Per frame as the 2D network's, for `c2d`; and one behind the other they are the whole."""
    torch.manual_seed(0)
    model: Any = build().eval()
    network: Any = pickle.loads(pickle.dumps(inflate(model, "c2d", size=size)))
    clip = clip_of(2, 3, 3, size, size)
    with torch.no_grad():
        features = network.forward_features(clip)
        axis = 1 if features.shape[1] == 3 else 2
        for frame, found in zip(clip.unbind(2), features.unbind(axis), strict=True):
            assert torch.allclose(found, model.forward_features(frame), atol=1e-5)
        assert torch.equal(network.forward_head(features), network(clip))
    with pytest.raises(LiftError, match="reset_head"):
        network.forward_head(features, pre_logits=True)
    assert network.head_name == head
    assert network.num_classes == 5
    network.blocks = nn.Identity()  # what stands there now acts
    if head == "head":
        assert not torch.equal(network.forward_features(clip), features)
    network = inflate(model, "uniform", size=size)
    for classes in (0, 3):
        network.reset_classifier(classes)
        model.reset_classifier(classes)
        assert network(clip).shape == model(clip[:, :, 0]).shape
        assert network.num_classes == model.num_classes


def test_a_forward_pass_of_another_order_has_no_halves() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward_features(self, x: Tensor) -> Tensor:
            return self.conv(x)

        def forward_head(self, x: Tensor) -> Tensor:
            return self.fc(x.mean((2, 3)))

        def forward(self, x: Tensor) -> Tensor:
            return self.forward_head(self.forward_features(x).relu())

    assert not hasattr(inflate(Net().eval(), size=16), "forward_features")


@pytest.mark.parametrize(("build", "head"), [(models.resnet18, "fc"), (models.mobilenet_v3_small, "classifier.3")])
def test_the_head_by_one_name(build: Any, head: str) -> None:
    network = inflate(build(num_classes=5).eval(), "uniform", size=32)
    clip = clip_of(1, 3, 2, 32, 32)
    assert network.head_name == head
    features = network.get_submodule(head).in_features
    network.reset_head(7)
    assert network(clip).shape == (1, 7)
    network.reset_head(0)
    assert network(clip).shape == (1, features)
    maps = inflate(nn.Sequential(nn.Conv2d(3, 4, 3)), size=16)
    with pytest.raises(LiftError, match="no single linear layer"):
        maps.reset_head(2)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_checkpointed_blocks_give_the_same_gradients(name: str, vit: tuple[nn.Module, Any]) -> None:
    torch.manual_seed(0)
    network: Any = (
        copy.deepcopy(vit[1]) if name == "vit" else inflate(models.resnet18(num_classes=5), "uniform", size=32)
    )
    network.train()
    clip, calls = clip_of(2, 3, 4, 32, 32), []
    part = network.blocks[1].mlp.fc1 if name == "vit" else network.layer2[1].conv1
    part.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        calls.clear()
        network(clip).square().sum().backward()
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        assert len(calls) == 1 + enable
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_blocks_of_a_list_that_are_sequentials_are_checkpointed() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for stage in self.stages:
                x = x + stage(x)
            return x.mean((2, 3))

    network, calls = inflate(Listed(), size=16).train(), []
    network.set_grad_checkpointing()
    network.stages[1][0].register_forward_hook(lambda *_: calls.append(1))
    network(clip_of(1, 3, 2, 16, 16)).sum().backward()
    assert len(calls) == 2


def test_halves_are_left_out_where_the_network_does_not_run_alone() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward_features(self, x: Tensor, scale: float) -> Tensor:
            return self.conv(x) * scale

        def forward_head(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

        def forward(self, x: Tensor, scale: float) -> Tensor:
            return self.forward_head(self.forward_features(x, scale))

    network = inflate(Halves().eval(), size=16, constants={"scale": 2.0})
    assert network(torch.randn(1, 3, 4, 16, 16)).shape == (1, 4)
    assert not hasattr(network, "forward_head")


class OnlyFine(nn.Sequential):
    """Has no coarse groups, as timm's RDNet."""

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        assert not coarse, "not implemented"
        return {"stem": "^0", "blocks": "^1"}


def test_a_network_that_refuses_coarse_groups_has_its_fine_ones() -> None:
    model = OnlyFine(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    network = inflate(model, "c2d", size=16)
    assert network.group_matcher() == model.group_matcher()
    with pytest.raises(LiftError, match="does not accept True"):
        network.group_matcher(coarse=True)
