"""r2plus1d_18, whose tensors are made of ResNet-18's by sums and products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from i3dconvert import inflate, load
from i3dconvert.adoption import adopt
from i3dconvert.backbones import Changes, Source
from i3dconvert.checkpoint import Document, entries_in, save, write
from i3dconvert.cli import app
from i3dconvert.comparison.forward import relative_error
from i3dconvert.errors import LayoutError
from i3dconvert.frameworks import r2plus1d
from i3dconvert.inflation import Manner, inflate_to_file
from i3dconvert.kernels import Style
from i3dconvert.verification import Settings, verify_file


@pytest.mark.parametrize(("count", "middle"), [(4, 9), (4, 8), (4, 6), (4, 5)])
def test_kernels_go_through_a_relu(count: int, middle: int) -> None:
    kernels, image = torch.randn(count, 3, 3, 3, dtype=torch.float64), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    spatial, raised, weights = r2plus1d._lifted(kernels, middle)
    assert (len(spatial), tuple(weights.shape)) == (middle, (count, middle))
    between = F.conv2d(image, spatial, raised)
    assert between.min() >= 0
    assert relative_error(F.conv2d(image, kernels), F.conv2d(between, weights.double()[:, :, None, None])) <= 1e-14


def test_the_stem_goes_through_a_relu_for_every_image() -> None:
    kernels = Source("resnet18", "random", changes=Changes(stem_rank=44)).load()[0].get_parameter("conv1.weight")
    spatial, raised, weights = r2plus1d._components(kernels.detach())
    bounds = spatial.flatten(1).clamp(max=0).sum(1) * (1 / 0.225 - 0.406 / 0.225)  # a white pixel, a negative weight
    assert (bounds + raised >= 0).all()
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 4 - 2
    found = F.conv2d(F.conv2d(image, spatial, raised).relu(), weights[:, :, None, None])
    assert relative_error(F.conv2d(image, kernels.detach().double()), found) <= 1e-6


@pytest.mark.slow
def test_r2plus1d_is_for_its_network_alone(tmp_path: Path) -> None:
    path, layout = tmp_path / "net.pth", "torchvision-video:r2plus1d_18"

    def inflated(changes: Changes = Changes(), **manner: Any) -> None:  # noqa: B008 - frozen
        source = Source("resnet18", weights="random", size=32, changes=changes)
        inflate_to_file(source, path, Manner(layout=layout, **manner), force=True)

    with pytest.raises(LayoutError, match="--init center alone"):
        inflated(style=Style("mean"))
    with pytest.raises(LayoutError, match="--dtype float32"):
        inflated(dtype=torch.float16)
    inflated(Changes(1, "sum", "fresh", 7))
    small = Settings(4, 32, (torch.float32,))
    assert verify_file(path, small).passed
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "stem_rank" in shown.output
    with pytest.raises(LayoutError, match=r"for torchvision-video:r2plus1d_18 alone"):
        load(path)
    with pytest.raises(LayoutError, match="can't be read back"):
        adopt(path, layout)
    with pytest.raises(LayoutError, match="compared on noise only"):
        verify_file(path, Settings(4, 32, (torch.float32,), images=(tmp_path / "cat.png",)))
    with pytest.raises(LayoutError, match="not for torchvision-video:r3d_18"):
        verify_file(path, small, layout="torchvision-video:r3d_18")
    with pytest.raises(LayoutError, match=r"not for torch$"):
        verify_file(path, small, layout="torch")
    strange = tmp_path / "strange.pth"
    other = inflate("resnet34", "c2d", weights="random", size=32)
    forged, tensors = Document(other.inflation, other.meta["origin"], layout=layout), other.state_dict()
    write(strange, forged, entries_in(tensors), lambda entry: [tensors[entry.key]], force=True)
    with pytest.raises(LayoutError, match="no 3D form of resnet34"):
        verify_file(strange, small)
    ours = inflate("resnet18", "c2d", weights="random", size=32)
    with pytest.raises(LayoutError, match="of another 2D network"):
        save(ours, tmp_path / "ours.pth", layout=layout)
    state: Any = torch.load(path)
    state["layer3.1.conv2.0.3.weight"][0, 0, 1] += 1e-3
    torch.save(state, path)
    problems = [check for check in verify_file(path, small).checks if not check.passed]
    assert [check.name.partition(" of ")[0] for check in problems] == ["integrity", "weight identity"]
    assert problems[1].detail.startswith("layer3.1.conv2.0.3.weight (off by up to 0.001 in 1 of")
