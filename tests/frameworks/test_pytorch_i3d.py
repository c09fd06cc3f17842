"""InceptionI3d, made of GoogLeNet."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from i3dconvert.backbones import Source
from i3dconvert.cli import app
from i3dconvert.inflation import Options, inflate_to_file
from tests.frameworks.harness import Shapes, norm, shapes


def test_names_and_shapes_of_inception_i3d() -> None:
    mixed = {
        "3b": (192, 64, 96, 128, 16, 32, 32),
        "3c": (256, 128, 128, 192, 32, 96, 64),
        "4b": (480, 192, 96, 208, 16, 48, 64),
        "4c": (512, 160, 112, 224, 24, 64, 64),
        "4d": (512, 128, 128, 256, 24, 64, 64),
        "4e": (512, 112, 144, 288, 32, 64, 64),
        "4f": (528, 256, 160, 320, 32, 128, 128),
        "5b": (832, 256, 160, 320, 32, 128, 128),
        "5c": (832, 384, 192, 384, 48, 128, 128),
    }
    units = {
        "Conv3d_1a_7x7": (64, 3, 7, 7, 7),
        "Conv3d_2b_1x1": (64, 64, 1, 1, 1),
        "Conv3d_2c_3x3": (192, 64, 3, 3, 3),
    }
    for name, (given, b0, b1a, b1b, b2a, b2b, b3b) in mixed.items():
        units |= {
            f"Mixed_{name}.b0": (b0, given, 1, 1, 1),
            f"Mixed_{name}.b1a": (b1a, given, 1, 1, 1),
            f"Mixed_{name}.b1b": (b1b, b1a, 3, 3, 3),
            f"Mixed_{name}.b2a": (b2a, given, 1, 1, 1),
            f"Mixed_{name}.b2b": (b2b, b2a, 3, 3, 3),
            f"Mixed_{name}.b3b": (b3b, given, 1, 1, 1),
        }
    wanted: Shapes = {"logits.conv3d.weight": (400, 1024, 1, 1, 1), "logits.conv3d.bias": (400,)}
    for name, shape in units.items():
        wanted |= {f"{name}.conv3d.weight": shape} | norm(f"{name}.bn", shape[0])
    found = shapes("pytorch-i3d", "googlenet")
    assert found == wanted


@pytest.mark.slow
@pytest.mark.slow
def test_what_a_reader_has_to_know_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inflate_to_file(Source("googlenet", weights="random", size=64), Path("net.pt"), Options(layout="pytorch-i3d"))
    shown = CliRunner().invoke(app, "inspect net.pt --from-layout pytorch-i3d".split())
    assert shown.exit_code == 0, shown.output
    assert "for clips of a multiple of 8 frames" in shown.output.replace("\n", " ")
