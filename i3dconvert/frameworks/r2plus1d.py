"""torchvision's `r2plus1d_18`, made of ResNet-18: a k×k kernel, a BatchNorm, a ReLU and a t×1×1 kernel where it has one
k×k kernel (Tran et al., "A Closer Look at Spatiotemporal Convolutions", arXiv:1711.11248, section 3.5).

The BatchNorm between the kernels is the identity and the ReLU sees nothing negative, so that the two are the 2D kernel:

- in the blocks, whose input is a ReLU's output, kernels are lifted until none of their weights is negative, and what
  was added is a further channel that the second kernel subtracts: the positive and the negative part of each kernel
  where there are channels for both, parts shared by two or more kernels where there are not;
- in the stem, whose 45 channels are fewer than its 64 kernels, those are approximated by their 44 principal components,
  which are raised by more than any image lowers them; the 45th channel is constant and takes that back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from i3dconvert.backbones.changes import principal
from i3dconvert.errors import LayoutError
from i3dconvert.frameworks.keys import Rows, translated
from i3dconvert.weights import State

STEM = 45
TAPS = 3
BRIGHTEST = 3.0
"""No normalised pixel is further from zero."""
_EPS = 1e-5
"""Of torchvision's BatchNorms."""

_UNITS: Rows = (("conv1", "stem"), ("layer{}.{}.conv{}", "layer{}.{}.conv{}.0"))
_OTHERS: Rows = (
    ("bn1", "stem.4"),
    ("layer{}.{}.bn{}", "layer{}.{}.conv{}.1"),
    ("layer{}.{}.downsample.{}", "layer{}.{}.downsample.{}"),
    ("fc", "fc"),
)


def factorised(state2d: Mapping[str, Tensor]) -> State:
    """The tensors of `r2plus1d_18` from those of ResNet-18; raises `LayoutError` where its stem is not finite."""
    if not state2d["conv1.weight"].isfinite().all():
        raise LayoutError("r2plus1d_18 can't be made of weights that are not finite: conv1.weight")
    state: State = {}
    for key, tensor in state2d.items():
        if name := translated(_OTHERS, key):
            state[name] = tensor[:, :, None] if tensor.dim() == 4 else tensor
            continue
        unit = str(translated(_UNITS, key)).removesuffix(".weight")
        raised = _components(tensor) if unit == "stem" else _lifted(tensor, _middle(state2d, key))
        state |= {f"{unit}.{leaf}": part for leaf, part in _unit(*raised, tensor.dtype).items()}
    return state


def _middle(state2d: Mapping[str, Tensor], key: str) -> int:
    """The channels between the two kernels: as many as give a block the parameters of its 3D form."""
    outer, inner = state2d[f"{key.rpartition('.conv')[0]}.conv1.weight"].shape[:2]
    return int(inner * outer * 27 // (inner * 9 + outer * 3))


def _lifted(kernels: Tensor, middle: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kernels `(O, I, k, k)` → those of `middle` channels, what is added behind them, and the `(O, middle)` weights."""
    count = len(kernels)
    shared = min(middle - count, count)
    member = torch.arange(count) % shared
    wide = kernels.double()
    lifts = torch.stack([(-wide[member == group]).clamp(min=0).amax(0) for group in range(shared)])
    spare = wide.new_zeros(middle - count - shared, *wide.shape[1:])
    weights = torch.cat([torch.eye(count), -F.one_hot(member, shared), torch.zeros(count, len(spare))], 1)
    return torch.cat([wide + lifts[member], lifts, spare]), wide.new_zeros(middle), weights


def _components(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the stem."""
    weights, components = principal(STEM - 1, kernels)
    sign = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    components, weights = components * sign, weights * sign.T
    raised = BRIGHTEST * components.abs().sum(1)
    spatial = torch.cat([components, components.new_zeros(1, components.shape[1])]).view(STEM, *kernels.shape[1:])
    return spatial, torch.cat([raised, raised.new_ones(1)]), torch.cat([weights, -weights @ raised[:, None]], 1)


def _unit(spatial: Tensor, raised: Tensor, weights: Tensor, dtype: torch.dtype) -> State:
    temporal = F.pad(weights[:, :, None, None, None], (0, 0, 0, 0, TAPS // 2, TAPS // 2))
    norm = {
        "weight": torch.ones_like(raised),
        "bias": raised,
        "running_mean": torch.zeros_like(raised),
        "running_var": torch.full_like(raised, 1 - _EPS),
    }
    tensors = {"0.weight": spatial[:, :, None], "3.weight": temporal} | {f"1.{leaf}": t for leaf, t in norm.items()}
    return {leaf: tensor.to(dtype) for leaf, tensor in tensors.items()} | {"1.num_batches_tracked": torch.tensor(0)}
