"""Other frameworks' networks: they load the weights, compute what the 2D network computes, and are read back."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from i3dconvert import backbones, inflate, load
from i3dconvert.adoption import adopt
from i3dconvert.backbones import Changes, Origin
from i3dconvert.checkpoint import Document, entries_in, filled, read, rebuild, save, write
from i3dconvert.cli import app
from i3dconvert.errors import FramesError, LayoutError, VerificationError
from i3dconvert.export.runtime import Runtime
from i3dconvert.files import in_folder
from i3dconvert.frameworks import FRAMEWORKS, framework, r2plus1d
from i3dconvert.inflation import inflate_to_file
from i3dconvert.kernels import Style
from i3dconvert.lift.network import plan
from i3dconvert.verification import Settings, verify_file
from i3dconvert.verification.forward import relative_error
from i3dconvert.weights import State, read_state

INSTALLED = (
    ("resnet50", "pytorchvideo", 8, 224),
    pytest.param("resnet50", "pytorchvideo:c2d_r50", 8, 224, marks=pytest.mark.sweep),
    pytest.param("resnet50", "pytorchvideo:i3d_r50", 8, 224, marks=pytest.mark.sweep),
    ("resnet18", "monai", 16, 64),
    pytest.param("resnet50", "monai", 16, 64, marks=pytest.mark.sweep),
    ("resnet18", "monai:resnet_stride1", 16, 32),
    ("densenet121", "monai", 32, 64),
    ("resnet18", "torchvision-video", 8, 64),
    ("resnet18", "torchvision-video:mc3_18", 8, 64),
    ("resnet18", "torchvision-video:r2plus1d_18", 8, 64),
    pytest.param("swin_t", "torchvision-video:swin3d_t", 8, 224, marks=pytest.mark.sweep),
    pytest.param("swin_t", "torchvision-video:swin3d_t", 32, 224, marks=pytest.mark.sweep),
    pytest.param("swin_s", "torchvision-video:swin3d_s", 8, 224, marks=pytest.mark.sweep),
    pytest.param("swin_b", "torchvision-video:swin3d_b", 8, 224, marks=pytest.mark.sweep),
    pytest.param("timm/vit_tiny_patch16_224", "transformers", 16, 224, marks=pytest.mark.sweep),
    pytest.param("timm/deit_small_patch16_224", "transformers", 16, 224, marks=pytest.mark.sweep),
    ("timm/resnet18", "timm-3d", 32, 32),
    ("timm/densenet121", "timm-3d", 32, 64),
    ("timm/convnext_atto", "timm-3d", 32, 32),
    ("timm/efficientnet_b0", "timm-3d", 32, 32),
    pytest.param("densenet161", "monai", 32, 64, marks=pytest.mark.sweep),
    ("resnet50", "slowfast", 8, 224),
    ("resnet50", "slowfast:c2d", 8, 224),
    ("resnet101", "slowfast:i3d", 8, 224),
    ("resnet50", "mmaction2", 8, 64),
    ("resnet50", "mmaction2:i3d", 8, 64),
    ("resnet34", "3d-resnets", 16, 64),
    ("googlenet", "pytorch-i3d", 16, 224),
    ("resnet50", "i3resnet", 16, 64),
    ("resnet50", "i3resnet:conv_class", 16, 64),
    ("densenet121", "i3resnet:i3densenet", 16, 224),
)
"""The frameworks that are in no package index are tested where their sources are on PYTHONPATH."""
BUILT_FROM = {
    "i3resnet": "resnet50",
    "pytorchvideo": "resnet50",
    "slowfast": "resnet50",
    "mmaction2": "resnet50",
    "3d-resnets": "resnet34",
    "monai": "resnet18",
    "torchvision-video": "resnet18",
    "transformers": "timm/vit_tiny_patch16_224",
    "pytorch-i3d": "googlenet",
    "timm-3d": "timm/resnet18",
}


def quiet_build(layout: str, origin: Origin) -> nn.Module:
    """The framework's own network."""
    known = framework(layout)
    target = known.target(origin.backbone.qualified, layout.partition(":")[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return target.build(origin).eval()
        except ImportError as error:
            pytest.skip(f"{layout} is not installed: {error}")


@pytest.mark.parametrize(("backbone", "layout", "frames", "size"), INSTALLED)
def test_the_framework_loads_them_and_computes_the_2d_network(
    backbone: str, layout: str, frames: int, size: int, tmp_path: Path
) -> None:
    known = framework(layout)
    path = tmp_path / f"net{known.suffix}"
    written = inflate_to_file(backbone, path, weights="random", size=size, layout=layout)
    network = quiet_build(layout, written.origin)
    network.load_state_dict(read_state(in_folder(path)), strict=True)
    report = verify_file(path, Settings(frames, size, (torch.float64,)), layout=layout)
    assert report.passed, report.reason
    assert any(check.name.startswith(f"forward equality of {known.name}'s") for check in report.checks)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_names_read_both_ways(name: str) -> None:
    known = FRAMEWORKS[name]
    model, origin = backbones.load(BUILT_FROM[name], "random", size=None if name == "transformers" else 64)
    for target in known.targets:
        if target.takes(origin.backbone.qualified) and target.made is None:
            told = Style(time_embedding=target.time_embedding)
            inflation = plan(model, target.recipe, told, origin.input).inflation
            state = dict(inflation.state(model.state_dict()))
            theirs = known.state(target, state)
            assert theirs.keys() != state.keys() or name in ("i3resnet", "3d-resnets", "timm-3d", "monai")
            back = known.restored(target, theirs, "it")
            assert back.keys() == state.keys()
            assert all(torch.equal(back[key], state[key]) for key in state)


def shapes(layout: str, backbone: str) -> dict[str, tuple[int, ...]]:
    """What a framework's file holds, statistics and counts of BatchNorm apart."""
    known = framework(layout)
    target = known.target(backbone, layout.partition(":")[2])
    arguments = backbones.library("torchvision").arguments(backbone, None, 400)
    model = backbones.build(backbones.Backbone("torchvision", backbone, arguments))
    inflation = plan(model, target.recipe, Style(), (3, 224, 224)).inflation
    places = known.places(target, {key: inflation.shape(key, value) for key, value in model.state_dict().items()})
    return {place.name: place.shape for place in places if place.name.endswith((".weight", ".bias"))}


Shapes = dict[str, tuple[int, ...]]


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def bottlenecks(
    name: Callable[[int, int, str], tuple[str, str]], deep: Callable[[int, int], int], blocks: tuple[int, ...]
) -> Shapes:
    """Bottleneck stages as their source has them; `name` gives the names of a convolution and of its norm."""
    found: Shapes = {}
    before = 64
    for stage, count in enumerate(blocks):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        for block in range(count):
            convolutions = {
                "a": (inner, before, deep(stage, block), 1, 1),
                "b": (inner, inner, 1, 3, 3),
                "c": (outer, inner, 1, 1, 1),
            }
            if block == 0:
                convolutions["short"] = (outer, before, 1, 1, 1)
            for part, shape in convolutions.items():
                convolution, its_norm = name(stage, block, part)
                found |= {f"{convolution}.weight": shape} | norm(its_norm, shape[0])
            before = outer
    return found


def slowfast_names(stage: int, block: int, part: str) -> tuple[str, str]:
    place = f"s{stage + 2}.pathway0_res{block}"
    branch = "branch1" if part == "short" else f"branch2.{part}"
    return f"{place}.{branch}", f"{place}.{branch}_bn"


def mmaction_names(stage: int, block: int, part: str) -> tuple[str, str]:
    unit = "downsample" if part == "short" else f"conv{'abc'.index(part) + 1}"
    place = f"backbone.layer{stage + 1}.{block}.{unit}"
    return f"{place}.conv", f"{place}.bn"


def alternating(stage: int, block: int) -> int:
    """The temporal kernels of the I3D-ResNet in both frameworks."""
    return (3, 3 - block % 2 * 2, 3 - block % 2 * 2, 1 + block % 2 * 2)[stage]


@pytest.mark.parametrize(
    ("layout", "stem", "head", "names", "deep"),
    [
        ("slowfast:slow", 1, "head.projection", slowfast_names, lambda stage, _: 3 if stage > 1 else 1),
        ("slowfast:c2d", 1, "head.projection", slowfast_names, lambda *_: 1),
        ("slowfast:i3d", 5, "head.projection", slowfast_names, alternating),
        ("mmaction2:slowonly", 1, "cls_head.fc_cls", mmaction_names, lambda stage, _: 3 if stage > 1 else 1),
        ("mmaction2:i3d", 5, "cls_head.fc_cls", mmaction_names, alternating),
    ],
)
def test_names_and_shapes_are_those_of_the_source(
    layout: str, stem: int, head: str, names: Any, deep: Callable[[int, int], int]
) -> None:
    unit = "s1.pathway0_stem" if layout.startswith("slowfast") else "backbone.conv1"
    wanted = {f"{unit}.conv.weight": (64, 3, stem, 7, 7)} | norm(f"{unit}.bn", 64)
    wanted |= bottlenecks(names, deep, (3, 4, 6, 3))
    wanted |= {f"{head}.weight": (400, 2048), f"{head}.bias": (400,)}
    assert shapes(layout, "resnet50") == wanted


def test_names_and_shapes_of_3d_resnets() -> None:
    wanted: Shapes = {"conv1.weight": (64, 3, 7, 7, 7)} | norm("bn1", 64)
    before = 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            place = f"layer{stage + 1}.{block}"
            wanted |= {f"{place}.conv1.weight": (channels, before, 3, 3, 3)} | norm(f"{place}.bn1", channels)
            wanted |= {f"{place}.conv2.weight": (channels, channels, 3, 3, 3)} | norm(f"{place}.bn2", channels)
            if before != channels:
                wanted |= {f"{place}.downsample.0.weight": (channels, before, 1, 1, 1)}
                wanted |= norm(f"{place}.downsample.1", channels)
            before = channels
    wanted |= {"fc.weight": (400, 512), "fc.bias": (400,)}
    assert shapes("3d-resnets", "resnet18") == wanted


def test_names_and_shapes_of_inception_i3d() -> None:
    mixed = {
        "3b": (192, 64, 96, 128, 16, 32, 32),
        "3c": (256, 128, 128, 192, 32, 96, 64),
        "4b": (480, 192, 96, 208, 16, 48, 64),
        "4c": (512, 160, 112, 224, 24, 64, 64),
        "4d": (512, 128, 128, 256, 24, 64, 64),
        "4e": (512, 112, 144, 288, 32, 64, 64),
        "4f": (528, 256, 160, 320, 32, 128, 128),
        "5b": (832, 256, 160, 320, 32, 128, 128),
        "5c": (832, 384, 192, 384, 48, 128, 128),
    }
    units = {
        "Conv3d_1a_7x7": (64, 3, 7, 7, 7),
        "Conv3d_2b_1x1": (64, 64, 1, 1, 1),
        "Conv3d_2c_3x3": (192, 64, 3, 3, 3),
    }
    for name, (given, b0, b1a, b1b, b2a, b2b, b3b) in mixed.items():
        units |= {
            f"Mixed_{name}.b0": (b0, given, 1, 1, 1),
            f"Mixed_{name}.b1a": (b1a, given, 1, 1, 1),
            f"Mixed_{name}.b1b": (b1b, b1a, 3, 3, 3),
            f"Mixed_{name}.b2a": (b2a, given, 1, 1, 1),
            f"Mixed_{name}.b2b": (b2b, b2a, 3, 3, 3),
            f"Mixed_{name}.b3b": (b3b, given, 1, 1, 1),
        }
    wanted: Shapes = {"logits.conv3d.weight": (400, 1024, 1, 1, 1), "logits.conv3d.bias": (400,)}
    for name, shape in units.items():
        wanted |= {f"{name}.conv3d.weight": shape} | norm(f"{name}.bn", shape[0])
    found = shapes("pytorch-i3d", "googlenet")
    assert found == wanted


def strangers(layout: str, backbone: str, path: Path) -> nn.Module:
    """A framework's own checkpoint of random weights, of 400 classes, in the form that its trainer saves."""
    origin = backbones.load(backbone, "random", size=32)[1].with_classes(400)
    network = quiet_build(layout, origin)
    randomise_clip(network)
    nest = framework(layout).nest
    torch.save({nest: network.state_dict(), "epoch": 3} if nest else network.state_dict(), path)
    return network


def randomise_clip(network: nn.Module) -> None:
    """Random weights, and statistics of order one, in every tensor: biases that the 2D network lacks among them."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator)
            spread = 0.1 if tensor.dim() < 2 else (2 / tensor[0].numel()) ** 0.5
            drawn = drawn.abs() + 0.5 if "running_var" in name else drawn * spread
            tensor.copy_(drawn if tensor.dim() > 1 else drawn.mul(1024).round() / 1024)  # of which sums are exact
            if tensor.dim() == 1 and name.endswith("weight"):
                tensor.add_(1)


@pytest.mark.parametrize(
    ("backbone", "layout", "given", "shape"),
    [
        ("resnet50", "pytorchvideo:slow_r50", "pytorchvideo", (8, 224, 224)),
        pytest.param("resnet50", "pytorchvideo:i3d_r50", "pytorchvideo", (8, 224, 224), marks=pytest.mark.sweep),
        ("resnet18", "torchvision-video:r3d_18", "torchvision-video", (8, 64, 64)),
        ("resnet18", "torchvision-video:mc3_18", "torchvision-video", (8, 64, 64)),
        pytest.param(
            "swin_t", "torchvision-video:swin3d_t", "torchvision-video", (32, 224, 224), marks=pytest.mark.sweep
        ),
        ("resnet18", "monai:resnet", "monai:resnet", (16, 64, 64)),
        ("resnet18", "monai:resnet_stride1", "monai:resnet_stride1", (16, 32, 32)),
        ("densenet121", "monai:densenet", "monai", (32, 64, 64)),
        ("timm/resnet18", "timm-3d:timm", "timm-3d:resnet18", (32, 32, 32)),
        ("resnet50", "slowfast:slow", "slowfast:slow", (8, 224, 224)),
        ("resnet50", "slowfast:i3d", "slowfast:i3d", (8, 224, 224)),
        ("resnet50", "mmaction2:slowonly", "mmaction2:slowonly", (8, 64, 64)),
        ("resnet50", "mmaction2:i3d", "mmaction2:i3d", (16, 64, 64)),
        ("resnet50", "i3resnet:i3resnet", "i3resnet", (16, 64, 64)),
        ("resnet50", "i3resnet:conv_class", "i3resnet:conv_class", (16, 64, 64)),
        ("resnet34", "3d-resnets:resnet", "3d-resnets", (16, 64, 64)),
        ("googlenet", "pytorch-i3d:InceptionI3d", "pytorch-i3d", (24, 224, 224)),
    ],
)
def test_a_frameworks_own_checkpoint_computes_the_same_here(
    backbone: str, layout: str, given: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    path = tmp_path / "theirs.pth"
    network = strangers(layout, backbone, path).double()
    document, state = adopt(path, given)
    assert document.finetuned
    assert document.origin is not None
    assert document.origin.classes == 400
    ours = filled(rebuild(document, document.origin.build()), state, path).double().eval()
    clip = torch.randn(2, 3, *shape, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(network(clip), ours(clip)) <= 1e-12


def test_a_vgg_with_a_cubic_classifier_needs_as_many_frames_as_pixels() -> None:
    model, origin = backbones.load("timm/vgg11", "random", size=32)
    inflation = plan(model, framework("timm-3d").target("timm/vgg11").recipe, Style(), origin.input).inflation
    assert inflation.minimum_frames == 224
    assert inflation.shape("pre_logits.fc1.weight", model.state_dict()["pre_logits.fc1.weight"]) == (4096, 512, 7, 7, 7)


def test_another_networks_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pyth"

    def refused(layout: str, recipe: str | None = None, backbone: str = "resnet50", **options: Any) -> str:
        with pytest.raises(LayoutError) as caught:
            inflate_to_file(backbone, path, recipe, weights="random", size=64, layout=layout, **options)
        assert not path.exists()
        return str(caught.value)

    assert "conv1: a temporal kernel of 3 where it has 1" in refused("pytorchvideo", "uniform")
    assert "the temporal pool after layer1" in refused("mmaction2:i3d", "i3d-resnet")
    assert "the temporal pool after layer1" in refused("pytorchvideo:c2d_r50", "c2d")
    assert "conv1: a temporal stride of 2 where it has 1" in refused("3d-resnets", "volumetric")
    assert "--padding zeros" in refused("pytorchvideo", padding="replicate")
    assert "--conv 3d" in refused("pytorchvideo", conv="2plus1d")
    assert "it has those of resnet50" in refused("pytorchvideo", backbone="resnet18")
    assert "it has slow_r50" in refused("pytorchvideo:x3d")
    assert "known: i3resnet, pytorchvideo" in refused("keras")


def test_a_swapped_tensor_in_a_frameworks_file_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    inflate_to_file("resnet18", path, weights="random", size=32, layout="torchvision-video")
    document: Any = torch.load(path)
    first, second = "layer1.0.conv1.1.weight", "layer1.0.conv1.1.bias"
    document[first], document[second] = document[second], document[first]
    torch.save(document, path)
    report = verify_file(path, Settings(4, 32, (torch.float64,)), layout="torchvision-video")
    failed = {check.name.partition(",")[0] for check in report.checks if not check.passed}
    assert {"integrity", "weight identity", "forward equality of torchvision-video's r3d_18"} <= failed


@pytest.mark.parametrize(("count", "middle"), [(4, 9), (4, 8), (4, 6), (4, 5)])
def test_kernels_go_through_a_relu(count: int, middle: int) -> None:
    kernels, image = torch.randn(count, 3, 3, 3, dtype=torch.float64), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    spatial, raised, weights = r2plus1d._lifted(kernels, middle)
    assert (len(spatial), tuple(weights.shape)) == (middle, (count, middle))
    between = F.conv2d(image, spatial, raised)
    assert between.min() >= 0
    assert relative_error(F.conv2d(image, kernels), F.conv2d(between, weights.double()[:, :, None, None])) <= 1e-14


def test_the_stem_goes_through_a_relu_for_every_image() -> None:
    kernels = backbones.load("resnet18", "random", changes=Changes(stem_rank=44))[0].get_parameter("conv1.weight")
    spatial, raised, weights = r2plus1d._components(kernels.detach())
    bounds = spatial.flatten(1).clamp(max=0).sum(1) * (1 / 0.225 - 0.406 / 0.225)  # a white pixel, a negative weight
    assert (bounds + raised >= 0).all()
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 4 - 2
    found = F.conv2d(F.conv2d(image, spatial, raised).relu(), weights[:, :, None, None])
    assert relative_error(F.conv2d(image, kernels.detach().double()), found) <= 1e-6


def test_r2plus1d_is_for_its_network_alone(tmp_path: Path) -> None:
    path, layout = tmp_path / "net.pth", "torchvision-video:r2plus1d_18"

    def inflated(**options: Any) -> None:
        inflate_to_file("resnet18", path, weights="random", size=32, layout=layout, force=True, **options)

    with pytest.raises(LayoutError, match="--init center alone"):
        inflated(init="mean")
    with pytest.raises(LayoutError, match="--dtype float32"):
        inflated(dtype=torch.float16)
    inflated(changes=Changes(1, "sum", "fresh", 7))
    small = Settings(4, 32, (torch.float32,))
    assert verify_file(path, small).passed
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "stem_rank" in shown.output
    with pytest.raises(LayoutError, match=r"for torchvision-video:r2plus1d_18 alone"):
        load(path)
    with pytest.raises(LayoutError, match="can't be read back"):
        adopt(path, layout)
    with pytest.raises(LayoutError, match="compared on noise alone"):
        verify_file(path, Settings(4, 32, (torch.float32,), images=(tmp_path / "cat.png",)))
    with pytest.raises(LayoutError, match="not for torchvision-video:r3d_18"):
        verify_file(path, small, layout="torchvision-video:r3d_18")
    with pytest.raises(LayoutError, match=r"not for torch$"):
        verify_file(path, small, layout="torch")
    strange = tmp_path / "strange.pth"
    other = inflate("resnet34", "c2d", weights="random", size=32)
    forged, tensors = Document(other.inflation, other.meta["origin"], layout=layout), other.state_dict()
    write(strange, forged, entries_in(tensors), lambda entry: [tensors[entry.key]], force=True)
    with pytest.raises(LayoutError, match="no 3D form of resnet34"):
        verify_file(strange, small)
    ours = inflate("resnet18", "c2d", weights="random", size=32)
    with pytest.raises(LayoutError, match="of another 2D network"):
        save(ours, tmp_path / "ours.pth", layout=layout)
    state: Any = torch.load(path)
    state["layer3.1.conv2.0.3.weight"][0, 0, 1] += 1e-3
    torch.save(state, path)
    problems = [check for check in verify_file(path, small).checks if not check.passed]
    assert [check.name.partition(" of ")[0] for check in problems] == ["integrity", "weight identity"]
    assert problems[1].detail.startswith("layer3.1.conv2.0.3.weight differs")


def test_what_verify_can_not_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pyth"
    inflate_to_file("resnet50", path, weights="random", size=32, layout="slowfast")
    small = Settings(4, 32, (torch.float64,))
    assert verify_file(path, small).passed
    for module in ("slowfast", "slowfast.config.defaults"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(VerificationError, match=r"slowfast is not installed .* its INSTALL.md says how"):
        verify_file(path, small, layout="slowfast")
    headless = tmp_path / "headless.pth"
    changes = Changes(head="maps")
    inflate_to_file("resnet18", headless, weights="random", size=32, layout="torchvision-video", changes=changes)
    with pytest.raises(LayoutError, match="the checkpoint has none"):
        verify_file(headless, small, layout="torchvision-video")
    with pytest.raises(LayoutError, match="is a graph"):
        verify_file(path.with_suffix(".onnx"), small, layout="slowfast")
    with pytest.raises(FramesError, match="can't take a clip of 4×32×32"):
        verify_file(path, small, layout="pytorchvideo:slow_r50")
    with pytest.raises(LayoutError, match="differs in the temporal pool after layer1"):
        verify_file(path, small, layout="pytorchvideo:i3d_r50")


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"

    def refused(state: State, layout: str) -> str:
        torch.save(state, path)
        with pytest.raises(LayoutError) as caught:
            adopt(path, layout)
        return str(caught.value)

    model, _ = backbones.load("resnet18", "random", size=32)
    assert "is no checkpoint of pytorchvideo's slow_r50: it has conv1.weight" in refused(
        model.state_dict(), "pytorchvideo"
    )
    assert "where 3d-resnets's resnet has" in refused(model.state_dict(), "3d-resnets")
    known = framework("3d-resnets")
    inflation = plan(model, known.targets[0].recipe, Style(), (3, 32, 32)).inflation
    state = known.state(known.targets[0], dict(inflation.state(model.state_dict())))
    assert "no network known here" in refused({k: v for k, v in state.items() if "layer4" not in k}, "3d-resnets")
    assert "monai:resnet and monai:resnet_stride1 alike" in refused(_as_volumetric(model), "monai")
    assert "says which" in refused(state, "timm-3d")
    assert "has no network 'x'" in refused(state, "3d-resnets:x")


def _as_volumetric(model: nn.Module) -> State:
    known = framework("monai")
    inflation = plan(model, known.targets[0].recipe, Style(), (3, 32, 32)).inflation
    return known.state(known.targets[0], dict(inflation.state(model.state_dict())))


def test_medicalnet(tmp_path: Path) -> None:
    path, layout = tmp_path / "net.pth", "3d-resnets:medicalnet"
    with pytest.raises(LayoutError, match="--no-head"):
        inflate_to_file("resnet50", path, weights="random", size=64, layout=layout)
    inflate_to_file("resnet50", path, weights="random", size=64, layout=layout, changes=Changes(1, "sum", "none"))
    assert verify_file(path, Settings(16, 64, (torch.float64,))).passed
    ours, clip = load(path).requires_grad_(False), torch.randn(1, 1, 16, 64, 64)
    theirs = {**read_state(path), "conv_seg.0.weight": torch.zeros(3, 2, 2, 2, 2)}
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in theirs.items()}}, tmp_path / "theirs.pth")
    document, state = adopt(tmp_path / "theirs.pth", layout)
    assert document.origin is not None
    again = filled(rebuild(document, document.origin.build()), state, path).eval().requires_grad_(False)
    assert torch.equal(ours(clip), again(clip))
    dilated = again.get_submodule("layer4.1.conv2")
    assert isinstance(dilated, nn.Conv3d)
    assert (dilated.stride, dilated.dilation, dilated.padding) == ((1, 1, 1), (4, 4, 4), (4, 4, 4))
    network = quiet_build(layout, document.origin)
    network.load_state_dict(read_state(path), strict=True)
    assert relative_error(network(clip), ours(clip)) <= 1e-5
    assert verify_file(path, Settings(16, 64, (torch.float64,)), layout=layout).passed


def test_a_grey_checkpoint_without_a_head(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    changes = Changes(1, "sum", "none")
    inflate_to_file("resnet18", path, weights="random", size=32, layout="3d-resnets", changes=changes)
    bare = {f"module.{key}": tensor.clone() for key, tensor in read_state(path).items()}
    torch.save({"state_dict": bare}, tmp_path / "theirs.pth")
    with pytest.raises(LayoutError, match="3d-resnets:resnet and 3d-resnets:medicalnet alike"):
        adopt(tmp_path / "theirs.pth", "3d-resnets")
    document, state = adopt(tmp_path / "theirs.pth", "3d-resnets:resnet")
    assert document.origin is not None
    assert document.origin.input[0] == 1
    ours, own = filled(rebuild(document, document.origin.build()), state, path).eval(), load(path).eval()
    clip = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        assert ours(clip).shape == (1, 512)
        assert torch.equal(ours(clip), own(clip))


def test_what_a_reader_has_to_know_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inflate_to_file("googlenet", Path("net.pt"), weights="random", size=64, layout="pytorch-i3d")
    shown = CliRunner().invoke(app, "inspect net.pt --from-layout pytorch-i3d".split())
    assert shown.exit_code == 0, shown.output
    assert "for clips of a multiple of 8 frames" in shown.output.replace("\n", " ")


def test_from_layout_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = strangers("monai:resnet", "resnet18", Path("theirs.pth"))
    run = CliRunner()
    shown = run.invoke(app, "inspect theirs.pth --from-layout monai:resnet".split())
    assert shown.exit_code == 0, shown.output
    assert "resnet18" in shown.output
    done = run.invoke(app, "export theirs.pth --from-layout monai:resnet --onnx -q".split())
    assert done.exit_code == 0, done.output
    clip = torch.randn(1, 3, 16, 64, 64)
    with torch.no_grad():
        assert relative_error(network(clip), Runtime(Path("theirs.onnx"))(clip)[0]) <= 1e-5
    assert run.invoke(app, "inflate resnet18 -r volumetric -w random --size 32 -q".split()).exit_code == 0
    assert run.invoke(app, "export resnet18-i3d.safetensors --safetensors --layout monai -q".split()).exit_code == 0
    assert read(Path("resnet18-i3d-monai.safetensors"))[0].layout == "monai:resnet"
    network.load_state_dict(_resized(read_state(Path("resnet18-i3d-monai.safetensors")), network), strict=True)


def _resized(state: State, network: nn.Module) -> dict[str, Tensor]:
    """A framework keeps its own head where the class counts differ."""
    return state | {key: value for key, value in network.state_dict().items() if key.startswith("fc.")}
