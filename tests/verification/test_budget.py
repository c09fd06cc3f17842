"""How much is verified: what fits the budget, said where it is less than usual, and what the user set."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from i3dconvert import inflate
from i3dconvert.errors import VerificationError
from i3dconvert.lift.arithmetic import flops
from i3dconvert.verification import Report, Settings, verify
from i3dconvert.verification.budget import legal_lengths, within_budget
from i3dconvert.verification.meter import Meter
from tests.conftest import Run


def small(size: int = 96) -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, padding=1)).eval()
    return model, inflate(model, "volumetric", size=size)


def test_lengths_are_those_of_the_recipe() -> None:
    strided = inflate(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2)).eval(), "volumetric", size=32)
    assert strided.inflation.minimum_frames == 3
    assert legal_lengths(strided, 6) == [6, 5, 4, 3]
    assert legal_lengths(small()[1], 3) == [3, 2]


COUNTED = "2 of 2 convolutions became 3D"
"""The note that stands in every report."""


def test_without_a_budget_the_least_is_verified_and_said() -> None:
    report = verify(*small(256), Settings(gflop=0.0))
    assert report.passed
    assert "2×128×128" in report.checks[1].name
    assert report.notes[0].startswith(
        "2 frames of 128×128, one clip: reduced to fit the budget of 0 GFLOP; --frames 16 --size 256"
    )
    assert report.notes[1:] == [COUNTED]


@pytest.mark.parametrize(
    ("share", "chosen"), [(1.0, "16×256×256"), (0.6, "9×256×256"), (0.1, "2×192×192"), (0.06, "2×128×128")]
)
def test_frames_go_first_and_size_after_them(share: float, chosen: str) -> None:
    network, report = small(256)[1], Report()
    gflop = share * flops(network, (2, 3, 16, 256, 256)) / 1e9
    settings = within_budget(network, Settings(gflop=gflop), report)
    size = settings.size or 256
    assert f"{settings.frames}×{size}×{size}" == chosen
    assert flops(network, (2, 3, settings.frames or 0, size, size)) <= gflop * 1e9
    assert bool(report.notes) == (chosen != "16×256×256")


@pytest.mark.parametrize("settings", [Settings(frames=5, gflop=0.0), Settings(frames=5, size=32, gflop=0.0)])
def test_what_was_told_is_done(settings: Settings) -> None:
    report = verify(*small(), settings)
    size = settings.size or 96
    assert f"5×{size}×{size}" in report.checks[1].name
    assert report.notes == [COUNTED]


def test_within_the_budget_nothing_is_left_out() -> None:
    report = verify(*small(), Settings())
    assert "16×96×96" in report.checks[1].name
    assert report.notes == [COUNTED]


def test_the_share_of_the_work_grows_to_the_whole() -> None:
    told: list[tuple[str, float | None]] = []
    verify(*small(32), Settings(frames=2), progress=lambda step, share=None: told.append((step, share)))
    shares = [share for _, share in told if share is not None]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    assert len(shares) > 6


def test_the_meter_leaves_no_hook_behind() -> None:
    _, network = small(32)
    with pytest.raises(ZeroDivisionError), Meter(lambda *_: None, network, 1.0).during("step", 1.0, 1):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.slow
def test_pictures_in_batches_are_the_pictures(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    words = []
    for index in range(5):
        Image.new("RGB", (64, 64), (40 * index, 90, 200 - 40 * index)).save(f"{index}.png")
        words += ["-i", f"{index}.png"]
    monkeypatch.setattr("i3dconvert.verification.proof.FRAMES_AT_ONCE", 1)
    done = run("verify", checkpoint, "-f", 2, "-s", 64, *words)
    assert done.code == 0, done.err
    assert sum("top classes" in line for line in done.out.splitlines()) == 5


class Stops(nn.Module):
    """Takes images of its own size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 16 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


def test_a_network_that_stops_is_an_error_of_ours() -> None:
    model = Stops().eval()
    network = inflate(model, size=16)
    assert verify(model, network, Settings(frames=2)).passed
    with pytest.raises(VerificationError, match="the 2D network fails on an input of 3×20×20: mat1 and mat2"):
        verify(model, network, Settings(frames=2, size=20))
    network.head = nn.Linear(3, 2, dtype=torch.float32)
    with pytest.raises(VerificationError, match="the 3D network fails on an input of 3×2×16×16"):
        verify(model, network, Settings(frames=2, dtypes=(torch.float32,)))


def test_a_network_by_name_beyond_the_budget() -> None:
    report = Report()
    settings = within_budget(inflate("resnet18", weights="random"), Settings(gflop=50), report)
    assert (settings.frames, settings.size) != (16, None)
    assert report.notes


class Reads(nn.Module):
    """A head that reads a value of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0 if x.sum().item() > 0 else x


def test_what_the_meta_device_can_not_run_is_verified_as_usual() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity()).eval()
    network = inflate(model, "c2d", size=16)
    network[3] = Reads()
    assert verify(model, network, Settings(clips=2)).passed
    network[3] = nn.Linear(3, 2)
    with pytest.raises(VerificationError, match="the 3D network fails on an input of 3×16×16×16"):
        verify(model, network, Settings(dtypes=(torch.float32,)))
