"""The convolution that float64 proofs stand on is torch's."""

import pytest
import torch
import torch.nn.functional as F

from i3dconvert.comparison import taps


@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize(("dilation", "groups", "bias"), [(1, 1, True), (2, 2, False)])
def test_as_torch(kernel: int, stride: int, padding: int, dilation: int, groups: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for length in (length for length in (1, 2, 8, 13) if length + 2 * padding > dilation * (kernel - 1)):
        clip, weight, shift = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((2, 4, length, 6, 7), (6, 4 // groups, kernel, 3, 2), (6,))
        )
        weight[:, :, 0] = 0
        arguments = (clip, weight, shift if bias else None, (stride, 2, 1), (padding, 1, 0), (dilation, 1, 2), groups)
        expected = F.conv3d(*arguments)
        with taps.TapByTap():
            found = F.conv3d(*arguments)
        assert torch.allclose(found, expected, rtol=0, atol=1e-13)
        assert found.is_contiguous() == expected.is_contiguous()


def test_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, weight = torch.randn(2, 3, 5, 9, 9).double(), torch.randn(4, 3, 3, 3, 3).double()
    monkeypatch.setattr(taps, "COLUMNS", 1)
    found = taps.convolution(clip, weight, None, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1)
    assert torch.allclose(found, F.conv3d(clip, weight, padding=1), rtol=0, atol=1e-13)


def test_what_is_not_finite_is_not_hidden() -> None:
    clip, weight = torch.randn(1, 3, 5, 9, 9).double(), torch.randn(4, 3, 3, 3, 3).double()
    weight[0, 0, 0, 0, 0] = torch.nan
    assert taps.convolution(clip, weight, None, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1).isnan().any()
