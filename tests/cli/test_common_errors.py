"""docs/errors.md: each mistake is made, and answered with the line that stands there and names what to type next."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from i3dconvert import names
from i3dconvert.backbones import Source
from i3dconvert.inflation import Options, inflate_to_file
from i3dconvert.recipes import Recipe, Rule
from tests.conftest import Run

PAGE = Path(__file__).parent.parent.parent / "docs" / "errors.md"
ROWS = re.findall(r"^\| `([^`]+)`(.*?) \| (.+?) \| .+ \|$", PAGE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the mistakes are made with; they write nothing."""
    path = tmp_path_factory.mktemp("mistakes")
    for file, name in (("resnet34.pth", "resnet34"), ("flat.pth", "resnet18"), ("theirs.pth", "resnet18")):
        torch.save(Source(name, "random", size=32).load()[0].state_dict(), path / file)
    (path / "there.safetensors").touch()
    recipe = Recipe("five", (Rule("conv1", kernel=5, padding=0),))
    inflate_to_file(Source("resnet18", weights="random", size=32), path / "net.safetensors", Options(recipe))
    return path


def test_there_are_ten() -> None:
    assert len(ROWS) == 10


@pytest.mark.parametrize(("typed", "where", "said"), ROWS, ids=[row[0] for row in ROWS])
def test_the_line_is_said(
    typed: str, where: str, said: str, run: Run, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.chdir(folder)
    if "timm" in where:
        monkeypatch.setattr(names, "find_spec", lambda name: None)
        names.names.cache_clear()
    if "network" in where:
        monkeypatch.setenv("TORCH_HOME", str(folder / "hub"))
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    result = run(*shlex.split(typed))
    names.names.cache_clear()
    assert result.code == 1
    assert "Traceback" not in result.err
    assert said in " ".join(result.err.split())
