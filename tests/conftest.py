"""What several tests stand on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import nn

from i3dconvert import export_onnx, load
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
    return Source("resnet18", "random", size=64).load()


Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A file that is made once a session, by the first worker that asks for it; the others wait. Tests copy it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    folder.mkdir(exist_ok=True)

    def make(name: str, maker: Callable[[Path], object]) -> Path:
        path = folder / name
        with FileLock(f"{path}.lock"):
            if not path.exists():
                maker(path)
        return path

    return make


@pytest.fixture(scope="session")
def checkpoint(made: Made) -> Path:
    """An inflated ResNet-18 with seeded random weights."""
    return made(
        "resnet18-i3d.safetensors", lambda path: inflate_to_file(Source("resnet18", weights="random", size=64), path)
    )


@pytest.fixture(scope="session")
def exported(made: Made, checkpoint: Path) -> Path:
    """`checkpoint`, exported: over frames, any batch, number of frames, height and width."""
    return made("resnet18-i3d.onnx", lambda path: export_onnx(load(checkpoint), path))


@pytest.fixture
def weight_file(tmp_path: Path) -> Path:
    """2D weights of a ResNet-18, as a user would have them."""
    model, _ = Source("resnet18", "random", seed=5, size=64).load()
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    return path
