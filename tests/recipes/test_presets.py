"""The presets do to their networks what their sources say."""

import pytest
import torch

from i3dconvert import backbones
from i3dconvert.backbones import Source
from i3dconvert.errors import RecipeError
from i3dconvert.inflation import Options, inflate_loaded
from i3dconvert.lift.describe import describe
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.network import Network3d
from i3dconvert.lift.planning import plan
from i3dconvert.recipes import PRESETS, Attending, Geometry, Temporal, default_recipe, resolve
from i3dconvert.verification import Settings, verify


def lifted(name: str, recipe: str | None = None) -> Network3d:
    source, bare = backbones.parse(name)
    model = backbones.build(backbones.Backbone.of(source, bare))
    chosen = resolve(recipe) if recipe else default_recipe(name)
    return plan(model, chosen, Style(), (3, 224, 224)).network(model)


def layers(network: Network3d) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    return {row.name: (row.kernel3d, row.stride3d) for row in describe(network)}


@pytest.mark.parametrize(
    ("name", "recipe", "shrinks", "minimum"),
    [
        ("resnet50", "resnet", 16, 1),
        ("resnet18", "resnet", 16, 1),
        ("densenet121", "densenet", 8, 8),
        ("googlenet", "i3d", 8, 3),
        ("resnet50", "i3d-resnet", 8, 1),
        ("resnet50", "slow", 1, 1),
        ("resnet50", "c2d", 1, 1),
        ("resnet50", "uniform", 1, 1),
        ("resnet50", "volumetric", 32, 1),
    ],
)
def test_how_far_time_shrinks(name: str, recipe: str, shrinks: int, minimum: int) -> None:
    network = lifted(name, recipe)
    assert network.frames_left(64) == 64 // shrinks
    assert network.inflation.minimum_frames == minimum


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("resnet50", "resnet"), ("timm/resnet26", "resnet"), ("densenet161", "densenet"), ("googlenet", "i3d"),
     ("wide_resnet50_2", "resnet"), ("vgg16", "uniform"), ("timm/densenet121.ra_in1k", "densenet"),
     ("timm/resnetv2_50", "uniform")],
)  # fmt: skip
def test_defaults(name: str, recipe: str) -> None:
    assert default_recipe(name).name == recipe


def test_resnet_as_in_the_original_scripts() -> None:
    found = layers(lifted("resnet50"))
    assert found["conv1"] == ((3, 7, 7), (1, 2, 2))
    assert found["maxpool"] == ((3, 3, 3), (2, 2, 2))
    assert found["layer2.0.conv1"] == ((1, 1, 1), (1, 1, 1))
    assert found["layer2.0.conv2"] == ((3, 3, 3), (2, 2, 2))
    assert found["layer2.0.downsample.0"] == ((1, 1, 1), (2, 2, 2))


def test_densenet_as_in_the_original_scripts() -> None:
    found = layers(lifted("densenet121"))
    assert found["features.conv0"] == ((1, 7, 7), (1, 2, 2))
    assert found["features.pool0"] == ((1, 3, 3), (1, 2, 2))
    assert found["features.denseblock1.denselayer1.conv2"] == ((3, 3, 3), (1, 1, 1))
    assert found["features.transition1.pool"] == ((2, 2, 2), (2, 2, 2))


def test_inception_as_in_i3d() -> None:
    found = layers(lifted("googlenet"))
    assert found["conv1.conv"] == ((7, 7, 7), (2, 2, 2))
    assert found["maxpool1"] == found["maxpool2"] == ((1, 3, 3), (1, 2, 2))
    assert found["maxpool3"] == ((3, 3, 3), (2, 2, 2))
    assert found["maxpool4"] == ((2, 2, 2), (2, 2, 2))
    assert found["inception3a.branch4.0"] == ((3, 3, 3), (1, 1, 1))


def test_uniform_is_three_frames_of_every_spatial_convolution() -> None:
    found = layers(lifted("resnet18", "uniform"))
    assert found["conv1"] == ((3, 7, 7), (1, 2, 2))
    assert found["layer2.0.conv1"] == ((3, 3, 3), (1, 2, 2))
    assert found["layer2.0.downsample.0"] == ((1, 1, 1), (1, 2, 2))


def test_the_slow_pathway_sees_time_late() -> None:
    found = layers(lifted("resnet50", "slow"))
    in_time = {name for name, (kernel, _) in found.items() if kernel[0] > 1}
    assert in_time == {f"layer{stage}.{block}.conv1" for stage, blocks in ((3, 6), (4, 3)) for block in range(blocks)}
    assert found["layer3.0.conv1"] == ((3, 1, 1), (1, 1, 1))


def test_non_local_inflates_every_second_block_and_pools() -> None:
    found = layers(lifted("resnet101", "i3d-resnet"))
    inflated = [name for name, (kernel, _) in found.items() if name.startswith("layer3") and kernel[0] == 3]
    assert inflated == [f"layer3.{block}.conv1" for block in range(0, 23, 2)]
    assert found["conv1"] == ((5, 7, 7), (2, 2, 2))
    assert found["layer1_temporal_pool"] == ((3, 1, 1), (2, 1, 1))


@pytest.mark.parametrize(
    ("recipe", "first", "second"),
    [
        ("uniform", None, None),
        ("factorised", None, None),
        ("joint", Attending(), Attending()),
        ("divided", Attending(divided=True), Attending(divided=True)),
        ("video-swin", Attending(group=8, relative=True), Attending(group=8, shift=4, relative=True)),
    ],
)
def test_to_which_frames_an_attention_attends(recipe: str, first: Attending | None, second: Attending | None) -> None:
    assert resolve(recipe).attending("features.1.0.attn") == first
    assert resolve(recipe).attending("features.1.1.attn") == second


@pytest.mark.parametrize(("name", "recipe"), [("resnet18", "i3d-resnet"), ("vgg11", "densenet"), ("resnet50", "i3d")])
def test_a_preset_that_does_not_fit_is_refused(name: str, recipe: str) -> None:
    with pytest.raises(RecipeError, match="does not fit"):
        lifted(name, recipe)


@pytest.mark.parametrize(
    "name",
    [
        "timm/deit_tiny_patch16_224",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit_b_32", "timm/swin_tiny_patch4_window7_224")),
    ],
)
def test_tubelets_take_two_frames_and_start_from_the_central_one(name: str) -> None:
    model, origin = Source(name, "random").load()
    network = inflate_loaded(model, origin, Options("tubelet"))
    (embedding,) = (layer for layer in network.inflation.layers if layer.temporal.kernel > 1)
    kernel = network.get_parameter(f"{embedding.name}.weight")
    assert network.get_submodule(embedding.name).stride[0] == kernel.shape[2] == 2
    assert kernel[:, :, 1].count_nonzero() > 0
    assert kernel[:, :, 0].count_nonzero() == 0
    assert network.inflation.minimum_frames == 2
    assert network.frames_left(16) == 8
    report = verify(model, network, Settings(frames=5, dtypes=(torch.float64,)))
    assert report.passed, report.reason


@pytest.mark.parametrize("name", ["resnet50_clip", "resnet32ts", "resnext26ts", "resnet51q", "resnet50_mlp"])
def test_names_like_resnets_with_other_modules_get_a_recipe_that_fits(name: str) -> None:
    assert lifted(f"timm/{name}").inflation.recipe.name == "uniform"


def test_the_pool_of_i3d_resnet_spans_three_frames() -> None:
    assert PRESETS["i3d-resnet"].temporal("maxpool", Geometry("max_pool", 3, 2, 1)) == Temporal(3, 2, 1, 1)
