"""Weight identity: every 3D tensor equals what its 2D tensor inflates to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from i3dconvert.comparison.report import Check
from i3dconvert.errors import listed
from i3dconvert.lift.kernels import deflate
from i3dconvert.lift.record import Inflation

NAME = "weight identity"


def check_weights(inflation: Inflation, state2d: Mapping[str, Tensor], state3d: Mapping[str, Tensor]) -> Check:
    """Compare bit for bit for `center` and tensors that are not inflated, to rounding for `mean`; one tensor at a time.

    The positions of taps count, not only their sum. The detail names the tensors that differ.
    """
    expected = inflation.keys(state2d)
    if keys := sorted(set(expected) ^ set(state3d)):
        return Check(NAME, False, f"{len(keys)} keys are in only one of the networks, such as {keys[0]}")
    problems = [
        f"{key} ({problem})"
        for key in expected
        if (problem := _difference(inflation, key, inflation.source(key, state2d), state3d[key]))
    ]
    if problems:
        differ = "differs" if len(problems) == 1 else "differ"
        return Check(NAME, False, f"{listed(problems, most=1)} {differ} from the 2D network")
    how = "bit for bit" if inflation.style.init == "center" else "to rounding"
    count = len(inflation.fillings)
    return Check(NAME, True, f"{count} inflated kernels {how}, {len(expected) - count} others equal")


def _difference(inflation: Inflation, key: str, tensor2d: Tensor, tensor3d: Tensor) -> str:
    tensor3d = tensor3d.detach().cpu()
    source = tensor2d.detach().cpu().to(tensor3d.dtype)
    expected = inflation.tensor(key, source)
    if expected.shape != tensor3d.shape:
        return f"shape {tuple(tensor3d.shape)} instead of {tuple(expected.shape)}"
    if _same_bits(expected, tensor3d):
        return ""
    kernel = key in inflation.fillings and inflation.fillings[key].is_kernel
    if kernel and inflation.style.init == "mean" and _same_to_rounding(expected, tensor3d):
        return ""
    if kernel and torch.equal(deflate(tensor3d), deflate(expected)):
        return "its taps sum to the 2D kernel, but are at other positions"
    difference = (tensor3d.double() - expected.double()).abs()
    return (
        f"off by up to {float(difference.max()):.3g} in {int((difference != 0).sum())} of {difference.numel()} values"
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def _same_to_rounding(a: Tensor, b: Tensor) -> bool:
    eps = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=4 * eps, atol=0.0)
