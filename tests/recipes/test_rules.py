"""Rules: matching, merging, lengths, TOML, and everything that is refused."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from i3dconvert.errors import RecipeError
from i3dconvert.recipes import PRESETS, Geometry, InsertedPool, Recipe, Rule, Temporal, parse_rule, resolve, toml

SPATIAL = Geometry("spatial", kernel=3, stride=2, padding=1)


def test_the_last_match_wins_field_by_field() -> None:
    recipe = Recipe("r", (Rule(kernel=3, stride="spatial"), Rule("layer4.*", kernel=5)))
    assert recipe.temporal("layer1.0", SPATIAL) == Temporal(3, 2, 1, 1)
    assert recipe.temporal("layer4.0", SPATIAL) == Temporal(5, 2, 2, 2)
    assert recipe.temporal("layer4.0", Geometry("pointwise", 1, 1, 0)) == Temporal(5, 1, 2, 2)


def test_a_new_kernel_brings_its_own_padding() -> None:
    recipe = Recipe("r", (Rule(kernel=2, stride=2, padding=0), Rule("a", kernel=3)))
    assert recipe.temporal("b", SPATIAL) == Temporal(2, 2, 0, 0)
    assert recipe.temporal("a", SPATIAL) == Temporal(3, 2, 1, 1)


def test_an_even_kernel_stays_aligned_by_uneven_padding() -> None:
    assert Recipe("r", (Rule(kernel=4),)).temporal("a", SPATIAL) == Temporal(4, 1, 2, 1)


def test_tensorflow_pads_the_odd_frame_behind() -> None:
    recipe = Recipe("r", (Rule(kernel=7, stride=2, padding="same"),))
    assert recipe.temporal("a", SPATIAL) == Temporal(7, 2, 2, 3)
    assert Recipe("r", (Rule(kernel=2, stride=2, padding="same"),)).temporal("a", SPATIAL, True) == Temporal(2, 2)
    assert Recipe("r", (Rule(kernel=3, padding="same"),)).temporal("a", SPATIAL) == Temporal(3, 1, 1, 1)


def test_pools_and_paddings_survive_toml() -> None:
    pools = InsertedPool("layer1", 2, 2), InsertedPool("layer4", 2, 1, kind="avg_pool")
    recipe = Recipe("r", (Rule("a", padding="same"), Rule("b", padding="spatial")), pools)
    assert toml.loads(toml.dumps(recipe)) == recipe
    assert "kind" not in recipe.to_dict()["pool"][0]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(1, 3), st.booleans())
def test_lengths_are_those_of_torch(
    frames: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool
) -> None:
    assume(padding <= kernel // 2)
    temporal = Temporal(kernel, stride, padding, padding, dilation, ceil)
    pool = nn.MaxPool1d(kernel, stride, padding, dilation, ceil_mode=ceil)
    try:
        expected = pool(torch.zeros(1, 1, frames)).shape[-1]
    except RuntimeError:
        expected = 0
    assert max(temporal.length(frames), 0) == expected


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_toml(name: str) -> None:
    assert toml.loads(toml.dumps(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[rule]\n", "not TOML"),
        ("[[rule]]\nkernle = 3", "unknown key 'kernle'"),
        ("[[rule]]\nkernel = 'three'", "kernel must be int"),
        ("[[rule]]\nkernel = true", "kernel must be int"),
        ("[[rule]]\nkernel = 0", "between 1 and"),
        ("[[rule]]\nkernel = 1000000", "between 1 and"),
        ("[[rule]]\nkind = 'convolution'", "unknown kind"),
        ("rule = 3", "rule must be list"),
        ("rule = [3]", "expected a table"),
        ("[[pool]]\nafter = 'layer1'", "lacks kernel, stride"),
        ("[[pool]]\nafter = 'layer1'\nkernel = 2\nstride = 2\nkind = 'spatial'", "known: max_pool, avg_pool"),
        ("[[rule]]\nkernel = 'same'", "kernel must be int"),
    ],
)
def test_a_bad_recipe_is_refused_with_the_place(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        toml.loads(text, "file.toml")


@pytest.mark.parametrize("text", ["layer4", "=3", "a=", "a=x", "a=3/", "a=0", "a=3/0", "a=-1"])
def test_a_bad_rule_on_the_command_line_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_rule(text)


def test_a_rule_on_the_command_line() -> None:
    assert parse_rule("layer4.*=5/2") == Rule("layer4.*", kernel=5, stride=2)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="resnet, densenet, i3d"):
        resolve("rsenet")
