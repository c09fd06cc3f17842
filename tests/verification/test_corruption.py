"""The proof can't be fooled: corrupted checkpoints are caught, with the layer named; sound ones pass."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from i3dconvert import I3DError
from i3dconvert.backbones import Source
from i3dconvert.checkpoint import KEY
from i3dconvert.inflation import Options, inflate_to_file
from i3dconvert.lift.kernels import Style
from i3dconvert.recipes import PRESETS
from i3dconvert.verification import Settings, verify_file
from i3dconvert.weights import digest

NETWORKS = ("resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "densenet121")))
SIZE = 64
QUICK = Settings(frames=4, size=SIZE, dtypes=(torch.float64,))

Tensors = dict[str, Tensor]
Corruption = Callable[[Tensors, Tensors, random.Random], str]
"""Changes the first tensors, those of another seed being the second; returns the key of the one that it changed."""


def floats(state: Tensors) -> list[str]:
    return sorted(key for key, tensor in state.items() if tensor.is_floating_point())


def kernels(state: Tensors) -> list[str]:
    return sorted(key for key, tensor in state.items() if tensor.dim() == 5 and tensor.shape[2] > 1)


def one_element(state: Tensors, other: Tensors, chance: random.Random) -> str:
    key = chance.choice([key for key in floats(state) if bool(state[key].any())])
    flat = state[key].view(-1)
    flat[chance.choice(flat.nonzero().flatten().tolist()[:9999])] *= 1.001
    return key


def one_bit(state: Tensors, other: Tensors, chance: random.Random) -> str:
    key = chance.choice(sorted(state))
    data = state[key].view(-1).view(torch.uint8)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return key


def two_taps(state: Tensors, other: Tensors, chance: random.Random) -> str:
    key = chance.choice(kernels(state))
    middle = state[key].shape[2] // 2
    taps = list(range(state[key].shape[2]))
    taps[middle], taps[0] = 0, middle
    state[key] = state[key][:, :, taps].clone()
    return key


def two_filters(state: Tensors, other: Tensors, chance: random.Random) -> str:
    key = chance.choice([key for key in floats(state) if state[key].dim() > 1])
    first, second = chance.sample(range(len(state[key])), 2)
    state[key][[first, second]] = state[key][[second, first]].clone()
    return key


def another_seed(state: Tensors, other: Tensors, chance: random.Random) -> str:
    key = chance.choice([key for key in floats(state) if not torch.equal(state[key], other[key])])
    state[key] = other[key].clone()
    return key


def a_statistic(state: Tensors, other: Tensors, chance: random.Random) -> str:
    key = chance.choice([key for key in floats(state) if ".running_" in key])
    state[key] *= chance.choice([0.5, 0.999, 1.001, 2])
    return key


CORRUPTIONS: tuple[Corruption, ...] = (one_element, one_bit, two_taps, two_filters, another_seed, a_statistic)


@pytest.fixture(scope="module", params=NETWORKS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of a network, from weights of two seeds."""
    folder = tmp_path_factory.mktemp(request.param)
    for seed in (0, 1):
        weights = folder / f"weights{seed}.pth"
        torch.save(Source(request.param, "random", seed, size=SIZE).load()[0].state_dict(), weights)
        inflate_to_file(Source(request.param, weights=str(weights), size=SIZE), folder / f"{seed}.safetensors")
    return folder / "0.safetensors", folder / "1.safetensors"


def read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}, json.loads(file.metadata()[KEY])  # noqa: SIM118


def caught(path: Path) -> str:
    """Everything that `verify` says against a file."""
    frames = max(QUICK.frames or 1, read(path)[1]["minimum_frames"])
    try:
        report = verify_file(path, replace(QUICK, frames=frames))
    except I3DError as error:
        return str(error)
    assert not report.passed
    return " ".join([report.reason, *(check.detail for check in report.checks if not check.passed)])


def corrupted(
    files: tuple[Path, Path], corruption: Corruption, chance: random.Random, forged: bool, path: Path
) -> tuple[str, str]:
    """The key that was changed, and what was said. A forged file carries the hash of what it holds."""
    (state, document), (other, _) = map(read, files)
    key = corruption(state, other, chance)
    if forged:
        document["sha256"] = digest(state)
    save_file(state, path, {KEY: json.dumps(document)})
    return key, caught(path)


@pytest.mark.parametrize(
    "corruption",
    [one if one in (one_bit, another_seed) else pytest.param(one, marks=pytest.mark.slow) for one in CORRUPTIONS],
)
def test_each_corruption_is_caught_and_named(corruption: Corruption, files: tuple[Path, Path]) -> None:
    path = files[0].with_name("corrupted.safetensors")
    key, said = corrupted(files, corruption, random.Random(0), True, path)
    assert key in said


def test_another_recipe_is_caught(files: tuple[Path, Path]) -> None:
    state, document = read(files[0])
    for name in ("c2d", "uniform", "volumetric"):
        told = document | {"recipe": PRESETS[name].to_dict()}
        path = files[0].with_name("renamed.safetensors")
        save_file(state, path, {KEY: json.dumps(told)})
        assert caught(path)


@pytest.mark.sweep
def test_five_hundred_of_each_network_are_caught(files: tuple[Path, Path]) -> None:
    path, chance = files[0].with_name("corrupted.safetensors"), random.Random(1)
    named = 0
    for index in range(500):
        key, said = corrupted(files, CORRUPTIONS[index % len(CORRUPTIONS)], chance, bool(index % 4), path)
        named += key in said
    assert named >= 495


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("recipe", "init"),
    [(None, "center"), (None, "mean"), ("uniform", "mean"), ("c2d", "center"), ("volumetric", "mean")],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_false_alarm(name: str, recipe: str | None, init: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    inflate_to_file(Source(name, weights="random", seed=seed, size=SIZE), path, Options(recipe, style=Style(init=init)))
    report = verify_file(path, replace(QUICK, frames=None, dtypes=(torch.float64, torch.float32)))
    assert report.passed, report.reason
