"""Names and shapes as SlowFast and MMAction2 have them, by their sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.frameworks.harness import Shapes, norm, shapes


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
