"""Count the arithmetic of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from i3dconvert.lift.network import Network3d


def flops(network: Network3d, shape: Sequence[int]) -> int:
    """Return the floating-point operations of a forward pass on a clip `(N, C, T, H, W)`; a multiply-add counts as two.

    The pass runs on the meta device and needs no memory. Gradients are on: without them, torch's attention calls
    nothing that is counted.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None)
    clip = torch.empty(tuple(shape), device="meta", dtype=dtype)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            functional_call(network, {name: tensor.to("meta") for name, tensor in tensors.items()}, (clip,))
    finally:
        for module, training in modes.items():
            module.training = training
    return int(counter.get_total_flops())
