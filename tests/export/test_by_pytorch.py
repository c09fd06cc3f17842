"""PyTorch's own exporters take the 3D network: clips of any number and length, strides over time included."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from i3dconvert import inflate

SIZES = ((1, 5), (3, 7), (2, 16), (1, 33))
"""Clips and frames."""


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    image = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    return inflate(image.eval(), "volumetric", "mean", size=16)


def clip(clips: int, frames: int) -> Tensor:
    return torch.randn(clips, 3, frames, 16, 16, generator=torch.Generator().manual_seed(frames))


def exported(network: nn.Module) -> ExportedProgram:
    """Export for clips that leave at least two frames: torch fixes a length of one at any layer."""
    return torch.export.export(network, (clip(2, 8),), dynamic_shapes=({0: Dim("n"), 2: Dim("t", min=5)},))


def test_torch_export_has_free_clips_and_frames(network: Any) -> None:
    program = exported(network).module()
    for size in SIZES:
        torch.testing.assert_close(program(clip(*size)), network(clip(*size)))


@pytest.mark.slow
def test_torch_onnx_export_by_hand(network: Any, tmp_path: Path) -> None:
    free = {0: "n", 2: "t"}
    torch.onnx.export(
        network, (clip(2, 8),), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=(free,), input_names=["clip"]
    )
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for size in SIZES:
        (scores,) = session.run(None, {"clip": clip(*size).numpy()})
        torch.testing.assert_close(torch.from_numpy(scores), network(clip(*size)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_aot_inductor(network: Any, tmp_path: Path) -> None:
    path = torch._inductor.aoti_compile_and_package(exported(network), package_path=str(tmp_path / "net.pt2"))
    compiled = torch._inductor.aoti_load_package(path)
    for size in SIZES:
        torch.testing.assert_close(compiled(clip(*size)), network(clip(*size)), rtol=1e-5, atol=1e-6)
