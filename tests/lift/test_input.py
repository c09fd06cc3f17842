"""What images an own network is read at, and what it is called with beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i3dconvert import inflate, load, save, verify
from i3dconvert.errors import BackboneError, I3DError, LiftError
from i3dconvert.verification import Settings
from tests.conftest import Run


class Patches(nn.Module):
    """A patch embedding of linear layers, behind which the first convolution stands."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Linear(3 * 8 * 8, 6), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2] // 8, x.shape[3] // 8
        patches = x.unflatten(3, (columns, 8)).unflatten(2, (rows, 8)).permute(0, 2, 4, 3, 5, 1).flatten(3)
        y: Tensor = self.conv(self.embedding(patches.flatten(1, 2)).transpose(1, 2).unflatten(2, (rows, columns)))
        return y


class Denoiser(nn.Module):
    """It adds a channel of its own, which holds the noise's level."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        y: Tensor = self.conv(torch.cat([x, torch.full_like(x[:, :1], sigma)], 1))
        return y


class Grey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.mean(1, keepdim=True))
        return y


@pytest.mark.parametrize(
    ("model", "options", "shape"),
    [
        (Patches(), {"size": 16}, (3, 16, 16)),
        (Denoiser(), {"size": 16, "constants": {"sigma": 0.1}}, (3, 16, 16)),
        (Grey(), {"size": 16}, (1, 16, 16)),
        (Grey(), {"input": (3, 16, 24)}, (3, 16, 24)),
        (nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 2, 3)), {"size": 16}, (3, 16, 16)),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 1, 1), nn.Conv2d(4, 2, 3)), {"size": 16}, (3, 16, 16)),
    ],
)
def test_the_image_is_one_that_the_network_takes(model: nn.Module, options: Any, shape: tuple[int, int, int]) -> None:
    assert inflate(model.eval(), **options).inflation.input == shape


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"input": (3, 32, 32), "size": 16}, BackboneError, r"input=\(3, 32, 32\) and size=16 contradict each other"),
        ({"input": (3, 32, 32), "in_channels": 1}, BackboneError, "in_channels=1 contradict each other"),
        ({"num_classes": 0}, BackboneError, "num_classes is 0; give an integer above 0, or head='none' for features"),
        ({"num_classes": "x"}, BackboneError, "num_classes is 'x'; give an integer above 0"),
        ({"in_channels": 0}, BackboneError, "in_channels is 0; give an integer above 0"),
        ({"size": 0}, BackboneError, "size is 0; give an integer above 0"),
        ({"size": "big"}, BackboneError, "size is 'big'; give an integer above 0"),
        ({"input": (3, 32)}, BackboneError, "must be \\(channels, height, width\\)"),
        ({"size": 16}, LiftError, "Denoiser takes sigma besides the image: give constant values"),
        ({"size": 16, "constants": {"sigma": torch.ones(1)}}, LiftError, "is a Tensor, and not a number"),
    ],
)
def test_what_contradicts_itself_is_refused(options: Any, error: type[I3DError], said: str) -> None:
    with pytest.raises(error, match=said):
        inflate(Denoiser().eval(), **options)


def test_constants_are_in_the_file_and_in_the_proof(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Denoiser().eval()
    network = inflate(model, size=16, constants={"sigma": 0.5})
    assert verify(model, network, Settings(frames=2, size=16)).passed
    save(network, tmp_path / "net.safetensors")
    again, clip = load(tmp_path / "net.safetensors", model), torch.randn(1, 3, 2, 16, 16)
    assert again.inflation.constants == {"sigma": 0.5}
    assert torch.equal(again(clip), network(clip))
    other = inflate(model, size=16, constants={"sigma": 0.1})
    assert not torch.equal(other(clip), network(clip))


def test_on_the_command_line(run: Run) -> None:
    Path("nets.py").write_text(
        "from torch import nn\n"
        "def grey(): return nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    assert run("inflate", "nets.py:grey", "--input", "2x32x48", "-o", "net.safetensors").code == 0
    assert "2, 32, 48" in run("inspect", "net.safetensors").out
    for words, said in (
        (("nets.py:grey", "--input", "32x48"), "give channels, height and width"),
        (("nets.py:grey", "--input", "2x32x48", "-s", "64"), "contradict each other"),
        (("resnet18", "-w", "random", "--input", "3x64x64"), "--input is for your own network"),
    ):
        result = run("inflate", *words, "-o", "other.safetensors")
        assert result.code in (1, 2)
        assert said in result.err
