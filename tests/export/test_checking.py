"""The check behind an export: at other sizes, in a session as users make it, to the tolerance that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert import export_onnx, inflate
from i3dconvert.comparison.forward import relative_error, replicated
from i3dconvert.errors import CheckpointError, ExportError
from i3dconvert.export.runtime import Runtime
from tests.conftest import Run


class Halved(nn.Module):
    """Every second size has another rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.conv(images), scale_factor=0.5, mode="area")


class Tiled(Halved):
    """Always nine tiles, of another size at another size."""

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.conv(images), size=(3, 3), mode="area")


class OneWindow(nn.Module):
    """A pool over all of a picture of one size, and a head that takes no other."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.head = nn.AvgPool2d(7), nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.pool(images).flatten(1))
        return scores


@pytest.mark.parametrize(
    ("network", "size"),
    [*(pytest.param(one, 16, marks=pytest.mark.slow) for one in (Halved, Tiled)), (OneWindow, 7)],
)
def test_sizes_that_cannot_be_free_are_fixed_and_said(network: type[nn.Module], size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = network().eval()
    done = export_onnx(inflate(model, size=size), tmp_path / "net.onnx")
    assert done.shape == ("batch", 3, "frames", size, size)
    if network is not OneWindow:  # whose size the exporter itself may fix
        assert f"the graph is only for height {size}, width {size}: " in str(done.warning)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = model(images)
    (value,) = Runtime(done.path)(replicated(images, 3))
    assert relative_error(expected.unsqueeze(2) if expected.dim() == 4 else expected, value) < 1e-5


def test_a_file_that_fails_in_a_session_as_users_make_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Runtime.__call__

    def failing(self: Runtime, given: Tensor) -> Any:
        if self.session.get_session_options().enable_mem_reuse:
            raise CheckpointError("onnxruntime fails on a clip")
        return run(self, given)

    monkeypatch.setattr(Runtime, "__call__", failing)
    with pytest.raises(ExportError, match="onnxruntime fails on a clip"):
        export_onnx(inflate(nn.Sequential(nn.Conv2d(3, 4, 3)), size=16), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_tolerance_is_the_users_and_printed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\n\ndef net():\n    return torch.nn.Conv2d(3, 4, 3)\n")
    assert run("inflate", "mine.py:net", "-w", "random", "-s", 16, "-o", "net.safetensors", "-q").code == 0
    done = run("export", "net.safetensors", "--onnx", "--tolerance", "0.003")
    assert (done.code, "≤ 3e-03" in done.out) == (0, True)
    refused = run("export", "net.safetensors", "--onnx", "--tolerance", "1e-12", "--force")
    assert (refused.code, "> 1e-12" in refused.err, len(refused.err.splitlines())) == (1, True, 1)
    assert run("export", "net.safetensors", "--safetensors", "--tolerance", "1", "-o", "a.safetensors").code == 2
