"""Exports of networks with unusual operations and outputs: the file is right wherever its axes are free."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from i3dconvert import export_onnx, inflate
from i3dconvert.comparison.forward import check_outputs, outputs
from i3dconvert.export.runtime import quietly
from i3dconvert.export.spectra import RealInverses


class Between(nn.Module):
    """A function between two convolutions, with parameters `mix` for it."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], last: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.mix = nn.Parameter(torch.randn(2, 4, 4, 3, 3) / 6)
        self.function, self.last = function, last

    def forward(self, images: Tensor) -> Any:
        return self.last(self.second(self.function(self, self.first(images).relu())))


def spectra(net: Any, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(spectrum * torch.exp(-spectrum.abs()), s=x.shape[-2:], norm="ortho")


def kernels_of_each_image(net: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    weights = x.mean((2, 3))[:, :2].softmax(1)
    kernels = torch.einsum("ne,eoikl->noikl", weights, net.mix).reshape(n * c, c, 3, 3)
    return nn.functional.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n).view(n, c, h, w)


def unchanged(net: Any, x: Tensor) -> Tensor:
    return x


def scores(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def maps_with_more(x: Tensor) -> Any:
    return {"out": x, "mask": x.argmax(1), "above": x > 0, "size": x.shape[2:], "name": "maps", "none": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "last", "fixed"),
    [
        (spectra, scores, "None"),
        (kernels_of_each_image, scores, "batch 1"),
        (unchanged, maps_with_more, "outputs of type int, str are left out"),
    ],
)
def test_the_file_is_right_wherever_its_axes_are_free(
    function: Callable[[Any, Tensor], Tensor], last: Callable[[Tensor], Any], fixed: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = inflate(Between(function, last), "uniform", size=32).eval()
    done = export_onnx(network, tmp_path / "net.onnx")
    assert fixed in str(done.warning)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (given,) = session.get_inputs()
    for wanted in ((1, 3, 1, 33, 47), (3, 3, 6, 32, 32), (2, 3, 5, 17, 60)):
        shape = [size if isinstance(size, int) else other for size, other in zip(given.shape, wanted, strict=True)]
        clip = torch.randn(shape)
        with torch.no_grad():
            expected = outputs(network(clip))
        found = [torch.from_numpy(array) for array in session.run(None, {given.name: clip.numpy()})]
        assert check_outputs("onnxruntime", expected, found, 1e-5).passed


class Named(nn.Module):
    """Its parts have names that torch's exporter uses itself."""

    def __init__(self) -> None:
        super().__init__()
        self.meta, self.graph = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.graph(self.meta(images))


@pytest.mark.slow
def test_parts_may_have_names_that_the_exporter_uses(tmp_path: Path) -> None:
    done = export_onnx(inflate(Named(), "uniform", size=16), tmp_path / "net.onnx")
    assert done.check.passed


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_inverse_transforms_are_torchs(size: int) -> None:
    given = torch.randn(2, 3, 5, size // 2 + 1, dtype=torch.complex128)
    calls: list[Callable[[], Tensor]] = [
        lambda: torch.fft.irfft(given, size, norm="ortho"),
        lambda: torch.fft.irfft2(given, (5, size), dim=(2, 3)),
        lambda: torch.fft.irfftn(given, (3, 5, size), norm="forward"),
    ]
    calls += [lambda: torch.fft.irfft2(given)] if size > 2 else []
    calls += [lambda: torch.fft.irfft(given, 16), lambda: torch.fft.irfft2(given, (-1, 3))]
    for call in calls:
        with RealInverses():
            ours = call()
        torch.testing.assert_close(ours, call(), rtol=0, atol=1e-12)


def test_flags_and_indices_may_differ_where_rounding_decides_only() -> None:
    flags = torch.zeros(100, 100, dtype=torch.bool)
    assert "proves nothing" in check_outputs("flags", [flags], [flags], 1e-12).detail
    flags[:, 50:] = True
    assert check_outputs("flags", [flags], [flags], 1e-12).passed
    few, many = flags.clone(), flags.clone()
    few[0, :5], many[0, :50] = True, True
    assert check_outputs("flags", [flags], [few], 1e-5).passed
    assert not check_outputs("flags", [flags], [few], 1e-12).passed
    assert "0.50% of the indices or flags differ" in check_outputs("flags", [flags], [many], 1e-5).detail


def test_what_exporters_print_is_unheard(capfd: pytest.CaptureFixture[str]) -> None:
    import sys

    with quietly():
        print("a graph")
        print("a graph", file=sys.stderr)
    assert capfd.readouterr() == ("", "")
