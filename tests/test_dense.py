"""Dense predictors: outputs that keep their time axis, verified frame by frame."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision import models

from i3dconvert.backbones import Source
from i3dconvert.errors import BackboneError
from i3dconvert.inflation import Options, inflate_loaded
from i3dconvert.lift.network import Network3d
from i3dconvert.verification import Settings, verify

PROOF = Settings(frames=3, size=64, dtypes=(torch.float64,))


def convolutions_lifted(network: Network3d) -> bool:
    layers = [layer for layer in network.inflation.layers if layer.geometry.kind in ("spatial", "pointwise")]
    return bool(layers) and all(layer.lifted for layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "lraspp_mobilenet_v3_large",
        "fcn_resnet50",
        "deeplabv3_mobilenet_v3_large",
        *(pytest.param(f"{n}", marks=pytest.mark.sweep) for n in ("fcn_resnet101", "deeplabv3_resnet50")),
    ],
)
@pytest.mark.parametrize("recipe", ["uniform", "volumetric"])
def test_torchvision_segmentation(name: str, recipe: str) -> None:
    model, origin = Source(name, "random", size=64).load()
    assert origin.classes == 21
    network = inflate_loaded(model, origin, Options(recipe))
    assert convolutions_lifted(network)
    report = verify(model, network, PROOF)
    assert report.passed, report.reason
    with torch.no_grad():
        out = network(torch.randn(1, 3, 5, 64, 64))
    assert out.keys() == {"out"}
    assert out["out"].shape == (1, 21, 5, 64, 64)
    network.get_parameter(next(key for key in network.inflation.fillings)).data *= 1.001
    assert not verify(model, network, PROOF).checks[1].passed


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet18", (2, 4, 8, 16)),
        pytest.param("convnext_atto", (1, 1, 1, 1), marks=pytest.mark.slow),
        ("mobilenetv3_small_050", (1, 1, 1, 1, 1)),
        pytest.param("deit_tiny_patch16_224", (1, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_timm_feature_maps(name: str, strides: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory) -> None:
    classifier, _ = Source(f"timm/{name}", "random").load()
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.save(classifier.state_dict(), path)
    model, origin = Source(f"timm/{name}", str(path), features=True).load()
    network = inflate_loaded(model, origin)
    size = 64 if network.inflation.any_size else 224
    report = verify(model, network, Settings(frames=16, size=size, dtypes=(torch.float64,)))
    assert report.passed, report.reason
    maps: list[Tensor] = network(torch.zeros(1, 3, 16, size, size))
    assert tuple(16 // m.shape[2] for m in maps)[-len(strides) :] == strides
    assert all(m.dim() == 5 for m in maps)
    theirs = {key.removeprefix("model.").replace(".", "_"): tensor for key, tensor in model.state_dict().items()}
    ours = {key.replace(".", "_"): tensor for key, tensor in classifier.state_dict().items()}
    assert all(torch.equal(tensor, ours[key]) for key, tensor in theirs.items())


def test_only_timm_gives_feature_maps() -> None:
    with pytest.raises(BackboneError, match="timm/NAME"):
        Source("resnet18", "random", features=True).load()


def test_pretrained_files_lose_their_auxiliary_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "deeplabv3_mobilenet_v3_large"
    weights = models.get_model_weights(name).DEFAULT
    file = models.get_model(name, weights=None, weights_backbone=None, aux_loss=True).state_dict()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(file, tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2])
    model, origin = Source(name).load()
    dropped = {key for key in file if key.startswith("aux_classifier.")}
    assert dropped
    assert set(model.state_dict()) == set(file) - dropped
    assert origin.class_names()[:2] == ["__background__", "aeroplane"]
    assert origin.preprocessing.resize == 520
