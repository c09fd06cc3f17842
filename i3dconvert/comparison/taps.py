"""Compute float64 3D convolutions on the CPU one temporal tap at a time, each as a 2D convolution over frames.

torch unrolls the windows of the whole clip (11 GB for VGG's second layer on 16×224×224) and takes two to three times as
long. The sum is over the same products; zero taps are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

COLUMNS = 2**28
"""Bytes of windows to unroll at once."""


class TapByTap(TorchFunctionMode):
    """Computes `conv3d` of float64 tensors on the CPU with `convolution`; other functions are unchanged."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.conv3d or args[0].dtype != torch.float64 or args[0].device.type != "cpu" or kwargs:
            return func(*args, **kwargs)
        return convolution(*args)


def convolution(
    clip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    dilation: tuple[int, int, int],
    groups: int,
) -> Tensor:
    """Convolve `(N, C, T, H, W)` with `(O, I, t, kH, kW)` to `(N, O, T', H', W')`, like `F.conv3d`."""
    batch, _, *sizes = clip.shape
    shape = [
        (size + 2 * pad - spread * (taps - 1) - 1) // step + 1
        for size, pad, spread, taps, step in zip(sizes, padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    frames, total = clip.transpose(1, 2), clip.new_zeros((batch, shape[0], len(weight), *shape[1:]))
    for tap, kernel in enumerate(weight.unbind(2)):
        offset = tap * dilation[0] - padding[0]
        first, last = max(-(offset // stride[0]), 0), min((sizes[0] - 1 - offset) // stride[0], shape[0] - 1)
        if last < first or not bool(kernel.any()):
            continue
        seen = frames[:, first * stride[0] + offset : last * stride[0] + offset + 1 : stride[0]]
        part = _frame_by_frame(seen.flatten(0, 1), kernel, stride[1:], padding[1:], dilation[1:], groups)
        total[:, first : last + 1] += torch.unflatten(part, 0, (batch, -1))
    if bias is not None:
        total += bias.reshape(-1, 1, 1)
    return total.transpose(1, 2).contiguous()  # as torch returns it: views depend on it


def _frame_by_frame(frames: Tensor, kernel: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """Convolve `(B, C, H, W)` to `(B, O, H', W')`, as many frames at once as `COLUMNS` allows."""
    windows = frames[0].nbytes * kernel[0, 0].numel()
    count = max(COLUMNS // windows, torch.get_num_threads())
    parts = [F.conv2d(part, kernel, None, stride, padding, dilation, groups) for part in torch.split(frames, count)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
