"""Networks nobody here wrote: equal, written and read back, exported; and nothing but our own errors on the way."""

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from i3dconvert import export_onnx, inflate, load, save
from i3dconvert.verification import Settings, verify
from i3dconvert.weights import randomise
from tools.others import OTHERS
from tools.outside import CATALOGUE
from tools.sweep import inflate_with_remedies

PROOF = Settings(frames=2, dtypes=(torch.float64,))
HEAVY = {
    "monai/SENet",
    "monai/VNet",
    "smp/DPT-vit_tiny",
    "smp/MAnet-resnet18",
    "transformers/UperNetForSemanticSegmentation",
}
"""Those of more than a second or two."""

YOUNG = (
    "Idefics3VisionTransformer",
    "SmolVLMVisionTransformer",
    "Tipsv2VisionBackbone",
    "Tipsv2VisionModel",
    "UVDocBackbone",
)
"""Networks of transformers whose code was different a year ago, or missing."""
IS_OLD = Version(transformers.__version__) < Version("5.20")


def marks(name: str) -> list[pytest.MarkDecorator]:
    too_old = name.rpartition("/")[2] in YOUNG and IS_OLD
    return [pytest.mark.sweep] * (name in HEAVY) + [pytest.mark.skip("transformers is too old")] * too_old


names = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks(name)) for name in CATALOGUE if name not in OTHERS]
)


@names
def test_equal(name: str) -> None:
    model, shape = CATALOGUE[name].build().eval(), CATALOGUE[name].shape
    randomise(model, 0, shape)
    network = inflate(model, size=shape[-1])
    assert any(layer.lifted for layer in network.inflation.layers)
    report = verify(model, network, PROOF)
    assert report.passed, report.reason


@pytest.mark.sweep
@names
def test_equal_in_volumes(name: str) -> None:
    model, shape = CATALOGUE[name].build().eval(), CATALOGUE[name].shape
    randomise(model, 0, shape)
    network, _ = inflate_with_remedies(model, shape[-1])
    frames = max(2, network.inflation.minimum_frames)
    report = verify(model, network, Settings(frames=frames, dtypes=(torch.float64,)))
    assert report.passed, report.reason


@pytest.mark.sweep
@names
def test_written_read_and_exported(name: str, tmp_path: Path) -> None:
    model, shape = CATALOGUE[name].build().eval(), CATALOGUE[name].shape
    randomise(model, 0, shape)
    network = inflate(model, size=shape[-1]).eval()
    save(network, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", model)
    clip = torch.randn(1, shape[0], 3, *shape[1:])
    with torch.no_grad():
        ours, theirs = network(clip), again(clip)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert export_onnx(network, tmp_path / "net.onnx").check.passed


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("smp/Segformer-resnet18", 0),
        ("smp/Segformer-mit_b0", 6),
        ("transformers/DINOv3ViTModel", 0),
        ("transformers/PvtV2ForImageClassification", 3),
        ("transformers/MobileNetV2ForImageClassification", 0),
        ("monai/EfficientNet", 0),
        ("monai/SwinUNETR", 4),
    ],
)
def test_a_recipe_that_breaks_a_join_names_the_rule_that_mends_it(name: str, rules: int) -> None:
    model, shape = CATALOGUE[name].build().eval(), CATALOGUE[name].shape
    randomise(model, 0, shape)
    network, told = inflate_with_remedies(model, shape[-1])
    assert len(told) == rules
    frames = max(2, network.inflation.minimum_frames)
    report = verify(model, network, Settings(frames=frames, dtypes=(torch.float64,)))
    assert report.passed, report.reason


@pytest.mark.parametrize("name", ["transformers/BeitBackbone", "transformers/SwinBackbone"])
def test_exports_of_masked_attention_and_of_tuples(name: str, tmp_path: Path) -> None:
    model, shape = CATALOGUE[name].build().eval(), CATALOGUE[name].shape
    randomise(model, 0, shape)
    assert export_onnx(inflate(model, size=shape[-1]), tmp_path / "net.onnx").check.passed
