"""Rules: matching, merging, lengths, TOML, and everything that is refused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from i3dconvert.errors import RecipeError
from i3dconvert.recipes import (
    PRESETS,
    Attending,
    Geometry,
    InsertedPool,
    Recipe,
    Rule,
    Temporal,
    parse_rule,
    resolve,
    toml,
)

SPATIAL = Geometry("spatial", kernel=3, stride=2, padding=1)
AS_SPACE = Rule(kernel="spatial", stride="spatial", padding="spatial", dilation="spatial")


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
    even = Recipe("r", (Rule(kernel=2, stride=2, padding="same"),))
    assert even.temporal("a", SPATIAL, True) == Temporal(2, 2, ceil=True)
    assert Recipe("r", (Rule(kernel=3, padding="same"),)).temporal("a", SPATIAL) == Temporal(3, 1, 1, 1)


def test_attention_is_to_all_frames_of_the_clip_unless_it_says_otherwise() -> None:
    assert Attending() == Attending(group=0, shift=0, relative=False, divided=False, pairs=False)


def test_the_last_rule_for_a_norm_wins() -> None:
    recipe = Recipe("r", (Rule(kind="norm", span="all"), Rule("head.*", kind="norm", span=1)))
    assert recipe.normalises_frames("head.norm")
    assert not recipe.normalises_frames("stem.norm")


def test_toml_keeps_letters_as_they_are() -> None:
    assert 'name = "Größe"' in toml.dumps(Recipe("Größe", (Rule(kernel=1),)))


def test_pools_and_paddings_survive_toml() -> None:
    pools = InsertedPool("layer1", 2, 2), InsertedPool("layer4", 2, 1, kind="avg_pool")
    recipe = Recipe("r", (Rule("a", padding="same"), Rule("b", padding="spatial")), pools)
    assert toml.loads(toml.dumps(recipe)) == recipe
    as_space = toml.loads(toml.dumps(Recipe("s", (AS_SPACE,))))
    assert as_space.temporal("a", SPATIAL) == Temporal(3, 2, 1, 1)
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


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(0, 3))
def test_lengths_of_transposed_convolutions_are_those_of_torch(
    frames: int, kernel: int, stride: int, padding: int, beyond: int
) -> None:
    assume(beyond < stride)
    length = Temporal(kernel, stride, padding, beyond, transposed=True).length(frames)
    assume(length > 0)
    conv = nn.ConvTranspose1d(1, 1, kernel, stride, padding, beyond)
    assert conv(torch.zeros(1, 1, frames)).shape[-1] == length


@pytest.mark.parametrize(
    ("temporal", "first"),
    [
        (Temporal(2, 2, 0, 0, transposed=True), 0),
        (Temporal(3, 1, 1, 0, transposed=True), 1),
        (Temporal(4, 2, 1, 0, transposed=True), 1),
        (Temporal(5, 2, 2, 1, transposed=True), 2),
        (Temporal(4, 2, 0, 0, transposed=True), None),
        (Temporal(6, 2, 3, 0, transposed=True), 2),
        (Temporal(5, 2, 3, 1, transposed=True), 2),
    ],
)
def test_a_transposed_kernel_starts_where_every_frame_is_reached(temporal: Temporal, first: int | None) -> None:
    assert temporal.first_tap == first
    if first is not None:  # by taps first … first + stride - 1 alone, no frame is without input
        kernel = torch.zeros(1, 1, temporal.kernel)
        kernel[..., first : first + temporal.stride] = 1
        out = F.conv_transpose1d(torch.ones(1, 1, 7), kernel, None, temporal.stride, temporal.before, temporal.after)
        assert torch.equal(out, torch.ones_like(out))
        assert out.shape[-1] == temporal.length(7)


def test_attention_in_groups_counts_frames_and_pairs() -> None:
    four = Attending(group=4)
    assert [four.fits(frames) for frames in (1, 3, 4, 5, 8, 9)] == [True, True, True, False, True, False]
    assert Attending(group=0).fits(5)
    assert [replace(four, pairs=True).length(frames) for frames in (2, 4, 8)] == [4, 16, 32]
    assert Attending(group=0, pairs=True).length(5) == 25
    assert four.length(8) == 8


@pytest.mark.parametrize(
    ("rule", "geometry", "expected"),
    [
        (Rule(kernel="spatial", stride="spatial", padding="spatial"), Geometry("transposed", 4, 2, 1), (4, 2, 1, 0)),
        (
            Rule(kernel="spatial", stride="spatial", padding="spatial"),
            Geometry("transposed", 3, 2, 1, 1, 1),
            (3, 2, 1, 1),
        ),
        (Rule(kernel=3, stride=2), Geometry("transposed", 2, 2, 0), (3, 2, 1, 1)),
        (Rule(kernel=1, stride=2), Geometry("transposed", 2, 2, 0), (2, 2, 0, 0)),
        (Rule(kernel=3, stride=1, padding=0), Geometry("transposed", 2, 2, 0), (3, 1, 0, 0)),
        (Rule(stride=2), Geometry("upsample", 1, 2, 0), (2, 2, 0, 0)),
    ],
)
def test_what_makes_time_longer(rule: Rule, geometry: Geometry, expected: tuple[int, ...]) -> None:
    kernel, stride, before, after = expected
    temporal = Recipe("r", (rule,)).temporal("a", geometry)
    assert temporal == Temporal(kernel, stride, before, after, transposed=True)


def test_padding_of_another_operation_counts_as_the_layers_own() -> None:
    volumetric = Recipe("r", (AS_SPACE,))
    same = Geometry("spatial", 3, 1, 0, outside=(1, 1))
    assert volumetric.temporal("a", same) == Temporal(3, 1, 1, 1)
    uneven = Geometry("spatial", 4, 1, 0, outside=(1, 2))
    assert volumetric.temporal("a", uneven) == Temporal(4, 1, 2, 1)
    less = Geometry("spatial", 5, 1, 0, outside=(1, 0))
    assert volumetric.temporal("a", less) == Temporal(5, 1, 1, 0)
    wide = Geometry("spatial", 3, 1, 2, dilation=2)
    assert volumetric.temporal("a", wide) == Temporal(3, 1, 2, 2, 2)
    assert volumetric.temporal("a", Geometry("spatial", 3, 1, None)) == Temporal(3, 1, 1, 1)


def test_attentions_by_rule() -> None:
    assert Recipe("r").attending("a") is None
    assert Recipe("r", (Rule(kind="attention", span=1),)).attending("a") is None
    assert Recipe("r", (parse_rule("*=all"),)).attending("a") == Attending(group=0)
    assert Recipe("r", (parse_rule("*=span:4/2"),)).attending("a") == Attending(group=4, shift=2)
    assert Recipe("r", (parse_rule("*=divided"),)).attending("a") == Attending(group=0, divided=True)
    assert Recipe("r", (parse_rule("b=span:4"),)).attending("a") is None
    for rule, complaint in (
        (Rule(kind="attention", span=4, shift=4), "a shift of 4 frames"),
        (Rule(kind="attention", span="all", relative=True), "relative positions"),
        (Rule(kind="attention", span=4, divided=True), "needs the span 'all'"),
    ):
        with pytest.raises(RecipeError, match=complaint):
            Recipe("r", (rule,)).attending("a")


def test_a_rule_that_matches_nothing_is_said_with_its_numbers() -> None:
    rule = Rule("layer9.*", "spatial", kernel=3, stride=2)
    assert str(rule) == "layer9.* (spatial): kernel 3, stride 2"
    assert str(Rule("a", kernel=1)) == "a: kernel 1"
    with pytest.raises(
        RecipeError, match=r"layer9\.\* \(spatial\): kernel 3, stride 2' matches no layer \(layers: conv1, fc"
    ):
        Recipe("r", (rule,)).check_matches([("conv1", "spatial"), ("fc", "pointwise")], [])
    Recipe("r", (Rule(kind="transposed", kernel=3),)).check_matches([("conv1", "spatial")], [])
    with pytest.raises(RecipeError, match="no module 'pool9'"):
        Recipe("r", pools=(InsertedPool("pool9", 2, 2),)).check_matches([], ["pool1"])
    Recipe("r", pools=(InsertedPool("pool1", 2, 2),)).check_matches([], ["pool1"])


def test_an_inserted_pool_pads_nothing_unless_it_says_so() -> None:
    recipe = toml.loads('name = "r"\n[[pool]]\nafter = "a"\nkernel = 3\nstride = 2')
    assert recipe.pools == (InsertedPool("a", 3, 2, padding=0, kind="max_pool"),)


@pytest.mark.parametrize(
    ("key", "least", "most"), [("kernel", 1, 1024), ("stride", 1, 1024), ("padding", 0, 1024), ("dilation", 1, 1024)]
)
def test_numbers_have_bounds(key: str, least: int, most: int) -> None:
    for number in (least, most):
        assert getattr(toml.loads(f"[[rule]]\n{key} = {number}").rules[0], key) == number
    for number in (least - 1, most + 1):
        with pytest.raises(RecipeError, match=f"{key} must lie between {least} and {most}, got {number}"):
            toml.loads(f"[[rule]]\n{key} = {number}")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_toml(name: str) -> None:
    assert toml.loads(toml.dumps(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[rule]\n", "not TOML"),
        ("[[rule]]\nkernle = 3", "unknown key 'kernle'"),
        ("[[rule]]\nkernel = 'spatial'\nkernle = 3", "unknown key 'kernle'"),
        ("[[pool]]\nkernle = 3", "pool 1: unknown key 'kernle'"),
        ("[[rule]]\nkind = 'norm'\nspan = 1\nkernel = 3", "rule 1"),
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
