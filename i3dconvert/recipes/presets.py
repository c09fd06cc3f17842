"""Recipes from the literature, named after their sources, and the default recipe of each backbone."""

from __future__ import annotations

from fnmatch import fnmatchcase

from i3dconvert.errors import RecipeError
from i3dconvert.names import near
from i3dconvert.recipes.rules import InsertedPool, Recipe, Rule

RESNET = Recipe(
    "resnet",
    (
        Rule(kind="spatial", kernel=3, stride="spatial"),
        Rule(kind="pointwise", kernel=1, stride="spatial"),
        Rule(kind="avg_pool", kernel=1, stride="spatial"),  # the shortcuts of ResNet-D
        Rule("conv1*", kind="spatial", kernel=3, stride=1),
        Rule("maxpool", kind="max_pool", kernel=3, stride=2),
    ),
    source="github.com/hassony2/inflated_convnets_pytorch, ResNets",
)
DENSENET = Recipe(
    "densenet",
    (
        Rule(kind="spatial", kernel=3),
        Rule("features.conv0", kernel=1),
        Rule("features.transition*.pool", kind="avg_pool", kernel=2, stride=2, padding=0),
    ),
    source="github.com/hassony2/inflated_convnets_pytorch, DenseNets",
)
I3D = Recipe(
    "i3d",
    (
        Rule(kind="spatial", kernel=3),
        Rule("conv1.conv", kernel=7, stride=2),
        Rule("inception*.branch4.0", kind="max_pool", kernel=3),
        Rule("maxpool3", kind="max_pool", kernel=3, stride=2, padding=0),
        Rule("maxpool4", kind="max_pool", kernel=2, stride=2, padding=0),
    ),
    source="Carreira & Zisserman, arXiv:1705.07750, fig. 3",
)
I3D_RESNET = Recipe(
    "i3d-resnet",
    (
        Rule("conv1", kernel=5, stride=2),
        Rule("maxpool", kind="max_pool", kernel=3, stride=2),
        Rule("layer[1-4].*[02468].conv1", kind="pointwise", kernel=3),
    ),
    (InsertedPool(after="layer1", kernel=3, stride=2, padding=1),),
    source="Wang et al., Non-local Neural Networks, arXiv:1711.07971, table 1",
)
SLOW = Recipe(
    "slow",
    (Rule("layer[34].*.conv1", kind="pointwise", kernel=3),),
    source="Feichtenhofer et al., SlowFast Networks, arXiv:1812.03982, table 1",
)
C2D = Recipe("c2d", (Rule(kind="norm", span=1),), source="every temporal kernel 1: the frame-wise baseline")
UNIFORM = Recipe("uniform", (Rule(kind="spatial", kernel=3),), source="spatial convolutions 3, temporal stride 1")
VOLUMETRIC = Recipe(
    "volumetric",
    (
        Rule(kernel="spatial", stride="spatial", padding="spatial", dilation="spatial"),
        Rule(kind="global", span="all"),
    ),
    source="depth treated exactly as height and width",
)

JOINT = Recipe(
    "joint",
    (*UNIFORM.rules, Rule(kind="attention", span="all")),
    source="Arnab et al., ViViT, arXiv:2103.15691, section 3.3, model 1: attention over the tokens of all frames",
)

DIVIDED = Recipe(
    "divided",
    (Rule(kind="attention", span="all", divided=True),),
    source="Bertasius et al., TimeSformer, arXiv:2102.05095, section 3: attention over time, then over space",
)

FACTORISED = Recipe(
    "factorised",
    (*UNIFORM.rules, Rule(kind="attention", span=1)),
    source="Arnab et al., ViViT, arXiv:2103.15691, section 3.3, model 2, its frames averaged: attention within a frame",
)

TUBELET = Recipe(
    "tubelet",
    (
        Rule(
            "patch_embed.proj|patch_embed.[01].proj|patch_embed1.proj|patch_embeds.0.proj|stem.proj|conv_proj|features.0.0"
            "|*embeddings.patch_embeddings.projection",
            kind="spatial",
            kernel=2,
            stride=2,
            padding=0,
        ),
    ),
    source="Arnab et al., ViViT, arXiv:2103.15691, section 3.2 (tubelets of 2 frames) and 4.2 (central frame)",
)

VIDEO_SWIN = Recipe(
    "video-swin",
    (
        *TUBELET.rules,
        Rule(kind="attention", span=8, relative=True),
        Rule("*[13579].attn|*[13579].attention", kind="attention", shift=4),
    ),
    source="Liu et al., Video Swin Transformer, arXiv:2106.13230, sections 3.2 and 3.3 (windows of 8 frames)",
)

PRESETS = {recipe.name: recipe for recipe in tuple(globals().values()) if isinstance(recipe, Recipe)}

_DEFAULTS = (
    *((glob, UNIFORM) for glob in ("resnet*_clip*", "resn[ex]*ts", "resnet*q", "resnet50_mlp")),  # other module names
    ("resnet[0-9]*", RESNET),
    ("resnext[0-9]*", RESNET),
    ("wide_resnet[0-9]*", RESNET),
    ("densenet[0-9]*", DENSENET),
    ("googlenet", I3D),
)


def default_recipe(name: str) -> Recipe:
    """Return the preset for a backbone called `name` (`resnet50`, `timm/densenet121`, `timm/resnet50.a1_in1k`, …)."""
    if name.startswith("hf/"):  # its layers have other names
        return UNIFORM
    bare = name.rpartition("/")[2].partition(".")[0]
    return next((recipe for glob, recipe in _DEFAULTS if fnmatchcase(bare, glob)), UNIFORM)


def preset(name: str) -> Recipe:
    """Return the preset called `name`; raises `RecipeError`, which lists the known names."""
    try:
        return PRESETS[name]
    except KeyError:
        known = f"{near(name, PRESETS)}known: {', '.join(PRESETS)}, or the path of a .toml file"
        raise RecipeError(f"unknown preset {name!r}; {known}") from None
