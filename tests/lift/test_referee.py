"""`torch.export` reads the same networks independently: it has to agree wherever it can read them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i3dconvert import inflate
from i3dconvert.comparison.forward import outputs, relative_error
from tests.lift.anybody import Net, clip_of
from tests.lift.test_anybodys_code import FORWARDS

SIZE = 52
TIMM = (
    "convnext_atto",
    "vit_tiny_patch16_224",
    "levit_128s",
    "edgenext_xx_small",
    "ghostnet_100",
    "xcit_nano_12_p16_224",
)


def frames_of(clip: Tensor) -> Tensor:
    return clip.transpose(1, 2).flatten(0, 1)


def exported(model: nn.Module, clip: Tensor) -> Any:
    return torch.export.export(model, (frames_of(clip),), strict=False).module()


def compared(model: nn.Module, program: Any, clip: Tensor) -> float:
    """The error of the frame-wise network on a moving clip, the exported 2D program being the reference."""
    network = inflate(model, "c2d", temporal_pool="none", size=clip.shape[-1])
    with torch.no_grad():
        pairs = zip(outputs(program(frames_of(clip))), outputs(network(clip)), strict=True)
        return max(relative_error(ours, _by_frame(theirs, ours)) for ours, theirs in pairs)


def _by_frame(value: Tensor, frames: Tensor) -> Tensor:
    """`(N, C, T, …)` or `(N, T, …)` as the frames `(N·T, …)` of the 2D network's."""
    return (value.transpose(1, 2) if frames.dim() == 4 else value).flatten(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("forward", FORWARDS)
def test_peoples_networks(forward: Any) -> None:
    model, clip = Net(forward), clip_of(2, 3, SIZE)
    try:
        program = exported(model, clip)
    except (torch._dynamo.exc.UserError, RuntimeError, ValueError) as error:
        pytest.skip(f"torch.export does not read it: {str(error).splitlines()[0][:80]}")
    assert compared(model, program, clip) <= 1e-12


@pytest.mark.sweep
@pytest.mark.parametrize("name", TIMM)
def test_timms(name: str) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name).eval().double()
    clip = torch.randn(1, 3, 2, 224, 224, dtype=torch.float64)
    assert compared(model, exported(model, clip), clip) <= 1e-10
