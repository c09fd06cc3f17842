"""The 3D network is a module tree like the 2D network's own, and what stands in it is what acts."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from i3dconvert import Network3d, inflate
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import I3DWarning, LiftError
from i3dconvert.lift.network import flattened
from i3dconvert.lift.tree.blocks import Block
from i3dconvert.recipes import InsertedPool, preset
from tests.lift.conftest import SIZE, resnet


def clip_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_modules()]


def test_names_and_order_are_the_2d_networks() -> None:
    model, network = resnet()
    assert names(network) == names(model)
    assert list(network.state_dict()) == list(model.state_dict())
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert repr(network).replace("3d", "2d").splitlines()[0] == repr(model).splitlines()[0] == "ResNet("
    assert isinstance(network.layer4, nn.Sequential)
    assert "BasicBlock" in repr(network.layer4[-1])
    assert "self.conv2" in network.layer4[0].code


class Functions(nn.Module):
    """Pools by functions, between the modules of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)])
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = nn.functional.max_pool2d(stage(x), 2)
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_functions_are_no_children() -> None:
    """Neither a pool that is a function in 2D nor one that a recipe adds: children are counted as in 2D."""
    model = Functions().eval()
    recipe = replace(preset("uniform"), pools=(InsertedPool("stages.0", 3, 2, 1),))
    network = inflate(model, recipe, "mean", size=32)
    assert names(network) == names(model)
    assert repr(network).replace("3d", "2d").count("\n") == repr(model).count("\n")
    clip = clip_of(1, 3, 4, 32, 32)
    with torch.no_grad():
        expected = network(clip)
        for again in (copy.copy(network), copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(again(clip), expected)
        scores = create_feature_extractor(network, {"fc": "scores"})(clip)["scores"]
        assert torch.equal(scores.unflatten(0, (1, 2)).mean(1), expected)
    assert network.frames_left(8) == 4
    network.adaptive_avg_pool2d = nn.Identity()  # what stands there now acts
    with pytest.raises(RuntimeError, match="shapes"):
        network(clip)


class Explicit(nn.Module):
    """Attention by products, with a module as softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 24)
        self.softmax, self.attn_drop, self.fc = nn.Softmax(-1), nn.Dropout(0.1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.embed(x).flatten(2).transpose(1, 2)).chunk(3, -1)
        weights = self.attn_drop(self.softmax(query @ key.transpose(-2, -1)))
        return self.fc((weights @ value).mean(1))


def test_modules_in_a_fused_attention_say_that_they_are_not_called() -> None:
    clip = clip_of(1, 3, 2, 16, 16)
    network = inflate(Explicit().eval(), "joint", size=16)
    scores = network(clip)
    network.attn_drop = nn.Identity()
    assert torch.equal(network(clip), scores)
    handle = network.softmax.register_forward_hook(lambda *_: None)
    with pytest.warns(I3DWarning, match="hooks on softmax of Explicit do not run"):
        network(clip)
    handle.remove()
    network.softmax = nn.Identity()
    with pytest.raises(LiftError, match="softmax of Explicit can't be a Identity"):
        network(clip)
    per_frame = inflate(Explicit().eval(), "c2d", size=16)
    calls: list[int] = []
    per_frame.softmax.register_forward_hook(lambda *_: calls.append(1))
    per_frame(clip)
    assert calls == [1]


class Dense(nn.ModuleDict):
    def __init__(self) -> None:
        super().__init__({"first": nn.Conv2d(3, 4, 1), "second": nn.Conv2d(7, 4, 1)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = torch.cat((x, layer(x)), 1)
        return x


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def test_containers_with_code_are_containers() -> None:
    model = nn.Sequential(Dense(), Residual(nn.Conv2d(11, 11, 1), nn.ReLU())).eval()
    network = inflate(model, "c2d", size=16)
    clip = clip_of(1, 3, 2, 16, 16)
    assert list(network[0].keys()) == ["first", "second"]
    assert isinstance(network[1][0], nn.Conv3d)
    assert len(network[1]) == 2
    with pytest.raises(LiftError, match="can't be sliced"):
        network[1][:1]
    again = pickle.loads(pickle.dumps(network))
    again[1][1] = model[1][1] = nn.Identity()
    with torch.no_grad():
        expected = torch.stack([model(frame) for frame in clip.unbind(2)], 2)
        assert relative_error(expected, again(clip)) <= 1e-5
    network[1].append(nn.ReLU())
    with pytest.raises(LiftError, match="Residual has 3 modules, but its code calls 2"):
        network(clip)
    del again[0]["second"]
    with pytest.raises(LiftError, match="Dense has 1 modules"):
        again(clip)


def test_modules_are_told_apart_by_class_as_in_2d(network: Network3d) -> None:
    assert [type(m).__name__ for m in network.layer1] == ["BasicBlock"] * 2
    assert {type(m).__name__ for m in network.modules() if isinstance(m, type(network.layer1[0]))} == {"BasicBlock"}
    assert isinstance(network, Network3d)
    again = pickle.loads(pickle.dumps(network, 0))
    assert type(again.layer1[0]) is type(network.layer1[0])
    with pytest.raises(pickle.PicklingError):  # FSDP's classes are its own matter
        pickle.dumps(type("FSDPBasicBlock", (type(network.layer1[0]),), {})(None))


def test_a_norm_of_another_class_is_a_norm() -> None:
    class Norm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), Norm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x).flatten(2).transpose(1, 2)).mean(1)

    network = inflate(Net().eval(), "uniform", size=16)
    assert isinstance(network.norm, nn.LayerNorm)
    assert repr(network.norm) == repr(Norm(4))
    clip = clip_of(1, 3, 2, 16, 16)
    again = pickle.loads(pickle.dumps(network))
    assert isinstance(again.norm, nn.LayerNorm)
    assert torch.equal(again(clip), network(clip))


SWIN = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}


@pytest.mark.parametrize(
    ("build", "recipe"),
    [
        (lambda: models.DenseNet(4, (2, 2), 8), "uniform"),
        (lambda: models.SwinTransformer(**SWIN, num_classes=5), "uniform"),
        (lambda: models.SwinTransformer(**SWIN, num_classes=5), "joint"),
        (lambda: models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5), "divided"),
        (lambda: models.shufflenet_v2_x0_5(num_classes=5), "uniform"),
        pytest.param(
            lambda: models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None),
            "volumetric",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["densenet", "swin", "swin-joint", "vit-divided", "shufflenet", "lraspp"],
)
@pytest.mark.parametrize("training", [False, True])
def test_tree_and_flat_form_agree_to_the_bit(build: Callable[[], nn.Module], recipe: str, training: bool) -> None:
    torch.manual_seed(0)
    model = build().eval()
    network = inflate(model, recipe, "mean", size=SIZE).train(training)
    flat = copy.deepcopy(flattened(network)).train(training)
    clip = clip_of(2, 3, 4, SIZE, SIZE)
    results: list[Any] = []
    for form in (network, flat):
        torch.manual_seed(1)
        found = form(clip)
        results.append(found["out"] if isinstance(found, dict) else found)
    assert torch.equal(*results)
    assert set(names(model)) <= set(names(network))


def test_a_block_gives_by_itself_what_it_gives_inside(network: Network3d) -> None:
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("layer1", "layer2.0", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: (args[0].clone(), output.clone())})
        )
    with torch.no_grad():
        network(clip_of(2, 3, 5, SIZE, SIZE))
        for name, (given, output) in dict(seen).items():
            assert torch.equal(network.get_submodule(name)(given), output)
            assert output.dim() == 5
            assert output.shape[:3] == (2, output.shape[1], 5)
        assert network.layer4[-1](seen["layer4"][1]).shape == seen["layer4"][1].shape


def test_children_stand_by_themselves(network: Network3d) -> None:
    clip = clip_of(1, 3, 4, SIZE, SIZE)
    features = nn.Sequential(*list(network.children())[:-2])
    with torch.no_grad():
        scores = network.fc(features(clip).mean((3, 4)).transpose(1, 2)).mean(1)
        assert relative_error(network(clip), scores) <= 1e-5


def test_torch_fx_follows_it(network: Network3d) -> None:
    clip = clip_of(2, 3, 4, SIZE, SIZE)
    extractor = create_feature_extractor(network, {"layer2": "half", "layer3.0.bn1": "inner", "fc": "scores"})
    network.layer2.register_forward_hook(lambda module, given, output: seen.append(output))
    seen: list[Tensor] = []
    with torch.no_grad():
        scores, found = network(clip), extractor(clip)
    assert torch.equal(found["half"], seen[0])
    assert torch.equal(found["scores"].unflatten(0, (2, 4)).mean(1), scores)


def test_torch_fx_follows_layers_whose_code_depends_on_sizes() -> None:
    same, norm = timm.layers.Conv2dSame(3, 4, 3, 2), timm.layers.BatchNormAct2d(4)
    network = inflate(nn.Sequential(same, norm, nn.AvgPool2d(2)).eval(), "uniform", size=16)
    clip = clip_of(1, 3, 2, 15, 15)
    with torch.no_grad():
        assert torch.equal(create_feature_extractor(network, {"2": "maps"})(clip)["maps"], network(clip))


def test_gradients_reach_hooks_of_blocks(network: Network3d) -> None:
    shapes = []
    network.layer3.register_full_backward_hook(lambda module, given, of: shapes.append(of[0].shape))
    network(clip_of(1, 3, 4, SIZE, SIZE)).sum().backward()
    assert shapes == [(1, 256, 4, 4, 4)]


def test_values_cross_in_lists_and_beside_inputs() -> None:
    """A list of maps goes in, sizes and a parameter of the parent's are used inside, a dict comes out."""

    class Inner(nn.Module):
        def __init__(self, table: nn.Parameter) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 4, 1)
            self.outer = (table,)  # which is not registered here

        def forward(self, maps: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
            x = self.conv(torch.cat(maps, 1)) * self.outer[0]
            return {"map": x, "rows": x.flatten(2).transpose(1, 2)[:, : size[0] * size[1]]}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.rand(4, 1, 1))
            self.conv, self.inner = nn.Conv2d(3, 4, 3, padding=1), Inner(self.table)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            found = self.inner([y, y.relu()], y.shape[2:])
            return found["map"].mean((2, 3)) + found["rows"].mean(1)

    model = Outer().eval().double()
    network = inflate(model, "c2d", size=16)
    clip = clip_of(2, 3, 3, 16, 16).double()
    with torch.no_grad():
        expected = torch.stack([model(frame) for frame in clip.unbind(2)], 1).mean(1)
        assert relative_error(expected, network(clip)) <= 1e-12
        assert torch.equal(pickle.loads(pickle.dumps(network))(clip), network(clip))
    assert isinstance(network.inner, Block)
    assert network.inner._i3d_code is not None
    *_, last = network.inner._i3d_code.inputs
    with pytest.raises(TypeError, match="missing maps"):
        network.inner(**{last: network.table})  # which must not be taken for what stands before it


def test_a_network_that_nobody_needs_is_gone(network: Network3d) -> None:
    again = pickle.loads(pickle.dumps(network))
    again.frames_left(4)
    seen = weakref.ref(again)
    del again
    gc.collect()
    assert seen() is None
