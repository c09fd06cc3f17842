"""What several tests stand on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from i3dconvert.backbones import Origin, Source
from i3dconvert.cli import main
from i3dconvert.inflation import inflate_to_file

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


@dataclass(frozen=True)
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*words: object) -> Result:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def resnet18() -> tuple[nn.Module, Origin]:
    """A ResNet-18 with seeded random weights; tests do not change it."""
    return Source("resnet18", "random").load()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inflated ResNet-18 with seeded random weights."""
    path = tmp_path_factory.mktemp("checkpoint") / "resnet18-i3d.safetensors"
    inflate_to_file(Source("resnet18", weights="random"), path)
    return path


@pytest.fixture
def weight_file(tmp_path: Path) -> Path:
    """2D weights of a ResNet-18, as a user would have them."""
    model, _ = Source("resnet18", "random", seed=5).load()
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    return path
