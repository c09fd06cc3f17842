"""Other frameworks' networks: they load the weights, compute what the 2D network computes, and are read back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from i3dconvert import inflate, save
from i3dconvert.backbones import Changes, Source
from i3dconvert.checkpoint import filled, read, rebuild
from i3dconvert.checkpoint.adoption import adopt
from i3dconvert.cli import app
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import FramesError, LayoutError, VerificationError
from i3dconvert.export.runtime import Runtime
from i3dconvert.files import in_folder
from i3dconvert.frameworks import FRAMEWORKS, framework_of, statements
from i3dconvert.inflation import Options, inflate_to_file
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.planning import plan
from i3dconvert.verification import Settings, verify_file
from i3dconvert.weights import State, read_state
from tests.conftest import Run
from tests.frameworks.harness import quiet_build, strangers


def outside(*row: Any) -> Any:
    """A row that needs the framework itself."""
    return pytest.param(*row, marks=pytest.mark.outside)


INSTALLED = (
    outside("resnet50", "pytorchvideo", 8, 224),
    pytest.param("resnet50", "pytorchvideo:c2d_r50", 8, 224, marks=pytest.mark.sweep),
    pytest.param("resnet50", "pytorchvideo:i3d_r50", 8, 224, marks=pytest.mark.sweep),
    outside("resnet18", "monai", 16, 64),
    pytest.param("resnet50", "monai", 16, 64, marks=pytest.mark.sweep),
    outside("resnet18", "monai:resnet_stride1", 16, 32),
    outside("densenet121", "monai", 32, 64),
    pytest.param("resnet18", "torchvision-video", 8, 64, marks=pytest.mark.slow),
    pytest.param("resnet18", "torchvision-video:mc3_18", 8, 64, marks=pytest.mark.slow),
    pytest.param("swin_t", "torchvision-video:swin3d_t", 8, 224, marks=pytest.mark.sweep),
    pytest.param("swin_t", "torchvision-video:swin3d_t", 32, 224, marks=pytest.mark.sweep),
    pytest.param("swin_s", "torchvision-video:swin3d_s", 8, 224, marks=pytest.mark.sweep),
    pytest.param("swin_b", "torchvision-video:swin3d_b", 8, 224, marks=pytest.mark.sweep),
    pytest.param("timm/vit_tiny_patch16_224", "transformers", 16, 224, marks=pytest.mark.sweep),
    pytest.param("timm/deit_small_patch16_224", "transformers", 16, 224, marks=pytest.mark.sweep),
    outside("timm/resnet18", "timm-3d", 32, 32),
    outside("timm/densenet121", "timm-3d", 32, 64),
    outside("timm/convnext_atto", "timm-3d", 32, 32),
    outside("timm/efficientnet_b0", "timm-3d", 32, 32),
    pytest.param("densenet161", "monai", 32, 64, marks=pytest.mark.sweep),
    outside("resnet50", "slowfast", 8, 224),
    outside("resnet50", "slowfast:c2d", 8, 224),
    outside("resnet101", "slowfast:i3d", 8, 224),
    outside("resnet50", "mmaction2", 8, 64),
    outside("resnet50", "mmaction2:i3d", 8, 64),
    outside("resnet34", "3d-resnets", 16, 64),
    outside("googlenet", "pytorch-i3d", 16, 224),
    outside("resnet50", "i3resnet", 16, 64),
    outside("resnet50", "i3resnet:conv_class", 16, 64),
    outside("densenet121", "i3resnet:i3densenet", 16, 224),
)
"""The frameworks that are in no package index are tested where their sources are on PYTHONPATH."""


@pytest.mark.parametrize(("backbone", "layout", "frames", "size"), INSTALLED)
def test_the_framework_loads_them_and_computes_the_2d_network(
    backbone: str, layout: str, frames: int, size: int, tmp_path: Path
) -> None:
    known = framework_of(layout)
    path = tmp_path / f"net{known.suffix}"
    written = inflate_to_file(Source(backbone, weights="random", size=size), path, Options(layout=layout))
    network = quiet_build(layout, written.origin)
    network.load_state_dict(read_state(in_folder(path)), strict=True)
    pasted = statements(known.target(written.origin.backbone.qualified, layout.partition(":")[2]), written.origin)
    if pasted and "i3densenet" not in layout:  # which torch builds with a patch alone, as its note says
        names: dict[str, Any] = {"FOLDER": str(path)}
        exec("\n".join(pasted), names)
        names["network"].load_state_dict(read_state(in_folder(path)), strict=True)
    report = verify_file(path, Settings(frames, size, (torch.float64,)), layout=layout)
    assert report.passed, report.reason
    assert any(check.name.startswith(f"forward equality of {known.name}'s") for check in report.checks)


@pytest.mark.parametrize(
    ("backbone", "layout"),
    [
        pytest.param("resnet18", "torchvision-video:mc3_18", marks=pytest.mark.slow),
        outside("resnet18", "monai"),
        outside("densenet121", "monai"),
        outside("resnet50", "pytorchvideo:i3d_r50"),
        outside("timm/resnet18", "timm-3d"),
    ],
)
def test_what_the_command_prints_runs_as_pasted(backbone: str, layout: str, run: Run) -> None:
    """With other classes, and other channels where the framework's constructor takes them."""
    channels = [] if "torchvision" in layout else ["--in-channels", "1"]
    done = run("inflate", backbone, "-w", "random", "--num-classes", "5", *channels, "--layout", layout)
    assert done.code == 0, done.err
    pasted = [line for line in done.out.splitlines() if line.startswith(("import ", "network = "))]
    names: dict[str, Any] = {}
    exec("\n".join(pasted), names)
    (path,) = Path.cwd().glob(f"*{framework_of(layout).suffix}")
    names["network"].load_state_dict(read_state(path), strict=True)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_names_read_both_ways(name: str) -> None:
    known, rows = FRAMEWORKS[name], [getattr(row, "values", row) for row in INSTALLED]
    backbone = next(backbone for backbone, layout, *_ in rows if layout.partition(":")[0] == name)
    model, origin = Source(backbone, "random", size=None if name == "transformers" else 64).load()
    for target in known.targets:
        if target.takes(origin.backbone.qualified):
            inflation = plan(model, target.recipe, target.style, origin.input).inflation
            state = dict(inflation.state(model.state_dict()))
            theirs = known.state(target, state)
            assert theirs.keys() != state.keys() or name in ("i3resnet", "3d-resnets", "timm-3d", "monai")
            back = known.restored(target, theirs, "it")
            assert back.keys() == state.keys()
            assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("backbone", "layout", "given", "shape"),
    [
        outside("resnet50", "pytorchvideo:slow_r50", "pytorchvideo", (8, 224, 224)),
        pytest.param("resnet50", "pytorchvideo:i3d_r50", "pytorchvideo", (8, 224, 224), marks=pytest.mark.sweep),
        pytest.param("resnet18", "torchvision-video:r3d_18", "torchvision-video", (8, 32, 32)),
        pytest.param("resnet18", "torchvision-video:mc3_18", "torchvision-video", (8, 64, 64), marks=pytest.mark.slow),
        pytest.param(
            "swin_t", "torchvision-video:swin3d_t", "torchvision-video", (32, 224, 224), marks=pytest.mark.sweep
        ),
        outside("resnet18", "monai:resnet", "monai:resnet", (16, 64, 64)),
        outside("resnet18", "monai:resnet_stride1", "monai:resnet_stride1", (16, 32, 32)),
        outside("densenet121", "monai:densenet", "monai", (32, 64, 64)),
        outside("timm/resnet18", "timm-3d:timm", "timm-3d:resnet18", (32, 32, 32)),
        outside("resnet50", "slowfast:slow", "slowfast:slow", (8, 224, 224)),
        outside("resnet50", "slowfast:i3d", "slowfast:i3d", (8, 224, 224)),
        outside("resnet50", "mmaction2:slowonly", "mmaction2:slowonly", (8, 64, 64)),
        outside("resnet50", "mmaction2:i3d", "mmaction2:i3d", (16, 64, 64)),
        outside("resnet50", "i3resnet:i3resnet", "i3resnet", (16, 64, 64)),
        outside("resnet50", "i3resnet:conv_class", "i3resnet:conv_class", (16, 64, 64)),
        outside("resnet34", "3d-resnets:resnet", "3d-resnets", (16, 64, 64)),
        outside("googlenet", "pytorch-i3d:InceptionI3d", "pytorch-i3d", (24, 224, 224)),
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


@pytest.mark.slow
def test_another_networks_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pyth"

    def refused(layout: str, recipe: str | None = None, backbone: str = "resnet50", **style: str) -> str:
        options = Options(recipe, style=Style(**style), layout=layout)
        with pytest.raises(LayoutError) as caught:
            inflate_to_file(Source(backbone, weights="random", size=64), path, options)
        assert not path.exists()
        return str(caught.value)

    assert "conv1: a temporal kernel of 3 instead of 1" in refused("pytorchvideo", "uniform")
    assert "the temporal pool after layer1" in refused("mmaction2:i3d", "i3d-resnet")
    assert "the temporal pool after layer1" in refused("pytorchvideo:c2d_r50", "c2d")
    assert "conv1: a temporal stride of 2 instead of 1" in refused("3d-resnets", "volumetric")
    assert "--padding zeros" in refused("pytorchvideo", padding="replicate")
    assert "--conv 3d" in refused("pytorchvideo", conv="2plus1d")
    assert "only for resnet50" in refused("pytorchvideo", backbone="resnet18")
    assert "it has slow_r50" in refused("pytorchvideo:x3d")
    assert "known: i3resnet, mmaction2, monai, pytorch-i3d" in refused("keras")


def test_a_swapped_tensor_in_a_frameworks_file_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    inflate_to_file(Source("resnet18", weights="random", size=32), path, Options(layout="torchvision-video"))
    document: Any = torch.load(path)
    first, second = "layer1.0.conv1.1.weight", "layer1.0.conv1.1.bias"
    document[first], document[second] = document[second], document[first]
    torch.save(document, path)
    report = verify_file(path, Settings(4, 32, (torch.float64,)), layout="torchvision-video")
    failed = {check.name.partition(",")[0] for check in report.checks if not check.passed}
    assert {"integrity", "weight identity", "forward equality of torchvision-video's r3d_18"} <= failed


@pytest.mark.outside
def test_what_verify_can_not_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pyth"
    inflate_to_file(Source("resnet50", weights="random", size=32), path, Options(layout="slowfast"))
    small = Settings(4, 32, (torch.float64,))
    assert verify_file(path, small).passed
    for module in ("slowfast", "slowfast.config.defaults"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(VerificationError, match=r"slowfast is not installed .* see its INSTALL.md"):
        verify_file(path, small, layout="slowfast")
    headless = tmp_path / "headless.pth"
    changes = Changes(head="maps")
    inflate_to_file(
        Source("resnet18", weights="random", size=32, changes=changes), headless, Options(layout="torchvision-video")
    )
    with pytest.raises(LayoutError, match="the checkpoint has none"):
        verify_file(headless, small, layout="torchvision-video")
    with pytest.raises(LayoutError, match="is a graph"):
        verify_file(path.with_suffix(".onnx"), small, layout="slowfast")
    with pytest.raises(FramesError, match="can't run on a clip of 4×32×32"):
        verify_file(path, small, layout="pytorchvideo:slow_r50")
    with pytest.raises(LayoutError, match="differs in the temporal pool after layer1"):
        verify_file(path, small, layout="pytorchvideo:i3d_r50")


@pytest.mark.slow
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"

    def refused(state: State, layout: str) -> str:
        torch.save(state, path)
        with pytest.raises(LayoutError) as caught:
            adopt(path, layout)
        return str(caught.value)

    model, _ = Source("resnet18", "random", size=32).load()
    assert "is not a checkpoint of pytorchvideo's slow_r50: it has conv1.weight" in refused(
        model.state_dict(), "pytorchvideo"
    )
    assert "but 3d-resnets's resnet has" in refused(model.state_dict(), "3d-resnets")
    known = framework_of("3d-resnets")
    inflation = plan(model, known.targets[0].recipe, Style(), (3, 32, 32)).inflation
    state = known.state(known.targets[0], dict(inflation.state(model.state_dict())))
    assert "of no known network" in refused({k: v for k, v in state.items() if "layer4" not in k}, "3d-resnets")
    assert "monai:resnet and monai:resnet_stride1, which have the same" in refused(_as_volumetric(model), "monai")
    assert "timm-3d has many networks; name that of" in refused(state, "timm-3d")
    assert "has no network 'x'" in refused(state, "3d-resnets:x")


def _as_volumetric(model: nn.Module) -> State:
    known = framework_of("monai")
    inflation = plan(model, known.targets[0].recipe, Style(), (3, 32, 32)).inflation
    return known.state(known.targets[0], dict(inflation.state(model.state_dict())))


@pytest.mark.outside
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


def test_a_network_without_the_frameworks_changes_is_refused(tmp_path: Path) -> None:
    """r3d_18 has no max-pool, which a ResNet-18 inflated without the layout keeps."""
    path = tmp_path / "net.pth"
    with pytest.raises(LayoutError, match=r"r3d_18 is the 3D form of another 2D network: .*; inflate with --layout"):
        save(inflate("resnet18", "c2d", weights="random", size=32), path, layout="torchvision-video:r3d_18")
    assert not path.exists()
