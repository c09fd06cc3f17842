"""Other inputs and other heads: equal to the pretrained 2D network in all that was not asked to differ."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn
from typer.testing import CliRunner

from i3dconvert import export_onnx, inflate, load
from i3dconvert.backbones import Changes, Origin, Source
from i3dconvert.backbones.changes import IN_INITS, head_of
from i3dconvert.backbones.same import pad_as_same
from i3dconvert.checkpoint import Document
from i3dconvert.cli import app
from i3dconvert.comparison.forward import relative_error, replicated
from i3dconvert.errors import BackboneError, I3DError, RecipeError
from i3dconvert.export.runtime import Runtime
from i3dconvert.frameworks import framework_of
from i3dconvert.inflation import Options, inflate_loaded, inflate_to_file
from i3dconvert.lift.kernels import Style
from i3dconvert.verification import Settings, verify, verify_file

QUICK = Settings(frames=8, size=64)


@pytest.mark.parametrize(
    ("channels", "how", "claims"),
    [
        (1, "sum", True),
        pytest.param(2, "mean", True, marks=pytest.mark.slow),
        pytest.param(10, "mean", True, marks=pytest.mark.slow),
        pytest.param(5, "sum", True, marks=pytest.mark.slow),
        pytest.param(6, "repeat", True, marks=pytest.mark.slow),
        pytest.param(4, "repeat", False, marks=pytest.mark.slow),
    ],
)
def test_other_channels_are_equal_where_their_init_says_so(
    channels: int, how: str, claims: bool, tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    inflate_to_file(Source("resnet18", weights="random", size=64, changes=Changes(channels, how)), path)
    report = verify_file(path, QUICK)
    assert report.passed, report.reason
    assert any("against RGB" in check.name for check in report.checks) == claims
    assert load(path)(torch.randn(2, channels, 8, 64, 64)).shape == (2, 1000)


def test_a_grey_volume_gives_what_it_gives_in_rgb(resnet18: tuple[nn.Module, Origin]) -> None:
    network = inflate("resnet18", weights="random", in_channels=1, size=64).double()
    grey = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    model = resnet18[0].double()
    with torch.no_grad():
        expected = model(grey.expand(-1, 3, -1, -1))
        assert relative_error(expected, network(replicated(grey, 4))) <= 1e-6
    model.float()


def test_flow_kernels_are_the_mean_over_rgb(resnet18: tuple[nn.Module, Origin]) -> None:
    network = inflate("resnet18", "c2d", weights="random", in_channels=4, size=64)
    kernel = network.get_parameter("conv1.weight")[:, :, 0]
    mean = resnet18[0].get_parameter("conv1.weight").mean(1)
    assert kernel.shape == (64, 4, 7, 7)
    assert all(torch.allclose(kernel[:, index], mean, atol=1e-7) for index in range(4))


def test_a_wrong_scale_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = IN_INITS["mean"]
    monkeypatch.setitem(IN_INITS, "mean", replace(sound, kernels=lambda w, n: sound.kernels(w, n) * 1.001))  # type: ignore[index]
    path = tmp_path / "net.safetensors"
    inflate_to_file(Source("resnet18", weights="random", size=64, changes=Changes(2, "mean")), path)
    assert verify_file(path, QUICK).reason.startswith("input of 2 channels (mean) against RGB: relative error")


@pytest.mark.parametrize(
    ("changes", "mean"),
    [pytest.param(Changes(1, "sum"), (0.5,), marks=pytest.mark.slow), (Changes(same=True), (0.5, 0.5, 0.5))],
)
def test_googlenet_takes_over_its_own_step_of_normalisation(
    changes: Changes, mean: tuple[float, ...], tmp_path: Path
) -> None:
    weights = tmp_path / "googlenet-1378be20.pth"  # torchvision's name for its pretrained set
    torch.save(Source("googlenet", "random", size=64).load()[0].state_dict(), weights)
    path = tmp_path / "net.safetensors"
    written = inflate_to_file(Source("googlenet", weights=str(weights), size=64, changes=changes), path, Options("c2d"))
    assert written.origin.preprocessing.mean == mean
    assert not written.origin.backbone.arguments["transform_input"]
    assert verify_file(path, QUICK).passed


@pytest.mark.parametrize(("kernel", "stride", "size"), [(7, 2, 32), (7, 2, 33), (3, 2, 31), (2, 2, 31), (3, 3, 16)])
def test_padding_is_tensorflows(kernel: int, stride: int, size: int) -> None:
    image, wide = torch.randn(1, 4, size, size + 1), {"kernel_size": kernel, "stride": stride, "padding": kernel // 2}
    ours = nn.Sequential(nn.Conv2d(4, 5, **wide), nn.MaxPool2d(kernel, stride, kernel // 2, ceil_mode=True))
    theirs = nn.Sequential(Conv2dSame(4, 5, kernel, stride), MaxPool2dSame(kernel, stride))
    theirs[0].load_state_dict(ours[0].state_dict())
    pad_as_same(ours)
    assert torch.equal(ours(image), theirs(image))


def test_the_stem_of_inception_i3d_pads_time_and_space_alike() -> None:
    target = framework_of("pytorch-i3d").targets[0]
    model, origin = Source("googlenet", "random", size=32, changes=target.changed(Changes())).load()
    network = inflate_loaded(model, origin, Options(target.recipe, style=Style("mean", "zeros"))).requires_grad_(False)
    clip = torch.randn(1, 3, 16, 32, 32)
    kernel = network.get_parameter("conv1.conv.weight")
    expected = F.conv3d(F.pad(clip, (2, 3) * 3), kernel, stride=2)
    assert relative_error(expected, network.get_submodule("conv1.conv")(clip)) <= 1e-6


def test_a_fresh_head_is_all_that_differs(resnet18: tuple[nn.Module, Origin]) -> None:
    own = inflate_loaded(*resnet18).state_dict()
    fresh = inflate("resnet18", weights="random", num_classes=5, size=64)
    state = fresh.state_dict()
    assert state.keys() == own.keys()
    assert state["fc.weight"].shape == (5, 512)
    assert all(torch.equal(state[key], own[key]) for key in state if not key.startswith("fc."))
    again = inflate("resnet18", weights="random", num_classes=5, size=64).state_dict()
    assert torch.equal(state["fc.weight"], again["fc.weight"])
    assert fresh(torch.randn(1, 3, 4, 64, 64)).shape == (1, 5)


def test_verify_looks_behind_a_fresh_head() -> None:
    model, origin = Source("resnet18", "random", size=64, changes=Changes(head="fresh", classes=5)).load()
    network = inflate_loaded(model, origin)
    report = verify(model, network, QUICK)
    assert report.passed, report.reason
    assert [check.name.partition(",")[0] for check in report.checks[1:]] == ["forward equality of features"] * 2
    with torch.no_grad():
        for head in (model.get_parameter("fc.weight"), network.get_parameter("fc.weight")):
            head.zero_()  # no difference gets through it
        network.get_parameter("layer4.1.bn2.bias")[0] += 0.1
    failed = [check.name for check in verify(model, network, QUICK).checks if not check.passed]
    assert any(name.startswith("forward equality of features") for name in failed)
    assert isinstance(model.fc, nn.Linear)
    assert isinstance(network.get_submodule("fc"), nn.Linear)


@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1",
        "timm/convnext_atto",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "densenet121", "vit_b_32")),
    ],
)
def test_without_a_head(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    inflate_to_file(Source(name, weights="random", changes=Changes(head="none")), path)
    network = load(path)
    head = head_of(Source(name, "random").load()[0])
    assert f"{head}.weight" not in network.state_dict()
    size = 224 if name == "vit_b_32" else 64
    assert network(torch.randn(2, 3, 8, size, size)).dim() == 2
    report = verify_file(path, Settings(8, size, (torch.float64,)))
    assert report.passed, report.reason
    assert "of features" in report.checks[-1].name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet18", marks=pytest.mark.slow),
        "squeezenet1_1",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("densenet121", "googlenet", "timm/convnext_atto")),
        pytest.param("swin_t", marks=pytest.mark.sweep),
    ],
)
def test_feature_maps(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    inflate_to_file(Source(name, weights="random", size=64, changes=Changes(head="maps")), path)
    report = verify_file(path, Settings(16, 64, (torch.float64,)))
    assert report.passed, report.reason
    assert "of features" in report.checks[-1].name
    network, clip = load(path).requires_grad_(False), torch.randn(2, 3, 16, 64, 64)
    maps = network(clip)
    assert maps.dim() == 5
    head = head_of(Source(name, "random").load()[0])
    assert not any(key.startswith(f"{head}.") for key in network.state_dict())
    if name == "resnet18":
        scores = inflate(name, weights="random", size=64).eval()
        assert relative_error(scores(clip), scores.get_submodule("fc")(maps.mean((2, 3, 4)))) <= 1e-6


@pytest.mark.slow
def test_feature_maps_of_grey_volumes_are_exported(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    network = inflate("resnet18", "volumetric", weights="random", size=64, in_channels=1, head="maps").eval()
    export_onnx(network, path)
    clip = torch.randn(1, 1, 32, 64, 64)
    with torch.no_grad():
        assert network(clip).shape == (1, 512, 1, 2, 2)
        assert relative_error(network(clip), Runtime(path)(clip)[0]) <= 1e-5


@pytest.mark.slow
def test_scores_for_each_frame_left(resnet18: tuple[nn.Module, Origin], tmp_path: Path) -> None:
    each = inflate_loaded(*resnet18, Options("uniform", style=Style(temporal_pool="none"))).eval()
    pooled = inflate_loaded(*resnet18, Options("uniform")).eval()
    clip = torch.randn(2, 3, 5, 64, 64)
    with torch.no_grad():
        assert each(clip).shape == (2, 5, 1000)
        assert relative_error(pooled(clip), each(clip).mean(1)) <= 1e-6
    assert verify(resnet18[0], each, QUICK).passed
    done = export_onnx(each, tmp_path / "net.onnx")
    with torch.no_grad():
        assert relative_error(each(clip), Runtime(done.path)(clip)[0]) <= 1e-5
    with pytest.raises(RecipeError, match="unknown temporal pool 'max'"):
        inflate_loaded(*resnet18, Options(style=Style(temporal_pool="max")))


@pytest.mark.slow
def test_grey_frames_of_a_decoder(tmp_path: Path) -> None:
    model, origin = Source("resnet18", "random", size=64, changes=Changes(1, "sum", "fresh", 3)).load()
    done = export_onnx(inflate_loaded(model, origin, Options("uniform")), tmp_path / "net.onnx", uint8_input=True)
    assert done.shape == ("batch", "frames", "height", "width", 1)
    report = verify_file(done.path, QUICK)
    assert report.passed, report.reason


def test_changes_that_can_not_be_made_are_refused() -> None:
    def refused(name: str, changes: Changes) -> str:
        with pytest.raises(BackboneError) as caught:
            Source(name, "random", size=None if "/" in name or "vit" in name else 64, changes=changes).load()
        return str(caught.value)

    assert "head, head_dist" in refused("timm/deit_tiny_distilled_patch16_224", Changes(head="none"))
    assert "has no feature maps" in refused("vit_b_32", Changes(head="maps"))
    assert "has no feature maps" in refused("timm/swin_tiny_patch4_window7_224", Changes(head="maps"))
    assert "unknown --in-init 'max'" in refused("resnet18", Changes(2, "max"))
    assert "an integer from 0 to 4096" in refused("resnet18", Changes(10**9, "mean"))
    assert "no module 'pool'" in refused("resnet18", Changes(without="pool"))
    assert "no module 'layer9'" in refused("resnet18", Changes(dilated="layer9=2"))
    with pytest.raises(BackboneError, match="--num-classes needs a head"):
        inflate("resnet18", weights="random", num_classes=3, head="none")
    with pytest.raises(BackboneError, match="than 3"):
        inflate("resnet18", weights="random", in_init="sum")


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": "two"},
        {"channels": -1},
        {"head": "lost"},
        {"mouth": 1},
        {"dilated": "layer3"},
        {"same": 1},
        {"classes": 1.5},
        [],
        "x",
    ],
)
def test_changes_that_nobody_wrote_are_refused(changes: object, resnet18: tuple[nn.Module, Origin]) -> None:
    document = Document(inflate_loaded(*resnet18).inflation, resnet18[1])
    damaged = json.loads(document.dumps())
    damaged["origin"]["changes"] = changes
    with pytest.raises(I3DError):
        Document.loads(json.dumps(damaged), Path("net.safetensors"))


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = "--in-channels 1 --num-classes 3 --temporal-pool none"
    words = f"inflate resnet18 -w random -s 64 -r uniform -o a.safetensors {changes}"
    assert CliRunner().invoke(app, words.split()).exit_code == 0
    shown = CliRunner().invoke(app, "verify a.safetensors -f 4".split())
    assert shown.exit_code == 0, shown.output
    assert "input of 1 channel (sum) against RGB" in shown.output
    assert "forward equality of features" in shown.output
    assert load("a.safetensors")(torch.randn(1, 1, 4, 64, 64)).shape == (1, 4, 3)
    assert CliRunner().invoke(app, "inflate resnet18 -w random -s 64 --no-head -o b.safetensors".split()).exit_code == 0
    assert load("b.safetensors")(torch.randn(1, 3, 4, 64, 64)).shape == (1, 512)
