"""3D modules that torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from math import comb
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Pair = tuple[int, int]
Function = TypeVar("Function", bound=Callable[..., Any])
OVER_VOLUMES = (
    nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.Dropout3d,
    nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, nn.LPPool3d, nn.FractionalMaxPool3d,
    nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d, nn.ConstantPad3d,
)  # fmt: skip
"""torch's layers that take clips, unless a 2D network itself has them, over its channels, for example."""


def one_step(function: Function) -> Function:
    """Return a function that torch.fx's tracers record as one node, as its code depends on sizes."""

    @wraps(function)
    def step(*args: Any) -> Any:
        traced = next((one for one in args if isinstance(one, fx.Proxy)), None)
        return function(*args) if traced is None else traced.tracer.create_proxy("call_function", step, args, {})

    return cast(Function, step)


def pair(value: int | Sequence[int]) -> Pair:
    """Return `(height, width)` from an int for both or a pair, as torch's 2D modules accept."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def in_space(size: int | Sequence[int]) -> Pair:
    """Return `(height, width)` of a 2D or 3D layer's kernel, stride, padding or dilation."""
    return (size, size) if isinstance(size, int) else (size[-2], size[-1])


def pad_time(clip: Tensor, before: int, after: int, mode: str) -> Tensor:
    """Pad `(N, C, T, H, W)` to `(N, C, before + T + after, H, W)`, with zeros or replicated border frames."""
    if not before and not after:
        return clip
    pads = (0, 0, 0, 0, before, after)
    return F.pad(clip, pads) if mode == "zeros" else F.pad(clip, pads, mode="replicate")


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """Return the padding of TensorFlow's 'SAME' before and after an axis of `size` pixels."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True)
class SpatialPad:
    """Padding of height and width that a 3D layer can't express: another mode, uneven, or depending on the size."""

    mode: str
    """`constant`, `reflect`, `replicate`, `circular`."""
    fixed: tuple[int, int, int, int] | None
    """`(left, right, top, bottom)`; `None` for TensorFlow's 'SAME'."""
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    value: float = 0.0

    def __call__(self, clip: Tensor) -> Tensor:
        """Pad height and width of `(N, C, T, H, W)` or `(N, C, H, W)`."""
        return pad_space(clip, self.mode, self.fixed, (self.kernel, self.stride, self.dilation), self.value)


@one_step
def pad_space(
    clip: Tensor, mode: str, fixed: tuple[int, int, int, int] | None, window: tuple[Pair, Pair, Pair], value: float
) -> Tensor:
    """Pad height and width by `fixed`, or as TensorFlow's 'SAME' for a window's kernel, stride and dilation."""
    if fixed is not None:
        top_bottom, left_right = fixed[2:], fixed[:2]
    else:
        top_bottom, left_right = (
            same_padding(clip.shape[axis - 2], *(size[axis] for size in window)) for axis in (0, 1)
        )
    if mode == "constant":
        return F.pad(clip, (*left_right, *top_bottom), value=value)
    time = (0, 0) if clip.dim() == 5 else ()
    return F.pad(clip, (*left_right, *top_bottom, *time), mode=mode)


class PaddedConv3d(nn.Conv3d):
    """A `Conv3d` that pads time separately: unevenly or with replicated border frames.

    With `temporal`, a `t×1×1` convolution after it, it is the (2+1)D convolution of Tran et al., arXiv:1711.11248.
    """

    def __init__(
        self,
        *args: Any,
        time: tuple[int, int, str] = (0, 0, "zeros"),
        space: SpatialPad | None = None,
        temporal: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.time, self.space, self.temporal = time, space, temporal

    def kernel(self) -> Tensor:
        """Return the kernel `(O, I, T, kH, kW)` that convolves the clip."""
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C', T', H', W')`."""
        clip: Tensor = pad_time(input, *self.time)
        clip = self._conv_forward(self.space(clip) if self.space else clip, self.kernel(), self.bias)
        if self.temporal is not None:
            clip = self.temporal(clip)
        return clip

    def extra_repr(self) -> str:
        convolution: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{convolution}, time={self.time}" + (f", space={self.space}" if self.space else "")


class StandardizedConv3d(PaddedConv3d):
    """A convolution with standardised weights (arXiv:1903.10520; with a `gain` per filter, arXiv:2101.08692).

    The 2D layer standardises its kernel in every forward pass. The statistics of a 3D kernel would differ, as zero taps
    count too. This layer uses those of the sum of the taps: tap t becomes `(w_t − share_t·μ) · gain / σ`, with shares
    that sum to one. So the standardised taps sum to the standardised sum of the taps for all weights, also during
    fine-tuning: the layer is always the inflation of a weight-standardised 2D one.
    """

    shares: Tensor

    def __init__(self, *args: Any, eps: float, scale: float | None, shares: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eps, self.scale = eps, scale
        self.register_buffer("shares", shares, persistent=False)
        if scale is not None:
            self.gain = nn.Parameter(self.weight.new_empty(self.out_channels, 1, 1, 1))

    def kernel(self) -> Tensor:
        """Return the standardised kernel, `(O, I, T, kH, kW)`."""
        variance, mean = torch.var_mean(self.weight.sum(2), dim=(1, 2, 3), correction=0, keepdim=True)
        factor = torch.rsqrt(variance + self.eps)
        if self.scale is not None:
            factor = factor * (self.gain * self.scale)
        shares = self.shares.to(self.weight.dtype).reshape(-1, 1, 1)
        return (self.weight - mean.unsqueeze(2) * shares) * factor.unsqueeze(2)


class PaddedPool3d(nn.Module):
    """A 3D pooling after replicated border frames, with the weights of the 2D pooling, and its own padding."""

    def __init__(self, pool: nn.Module, before: int, after: int, space: SpatialPad | None = None) -> None:
        super().__init__()
        self.pool, self.before, self.after, self.space = pool, before, after, space

    def forward(self, clip: Tensor) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C, T', H', W')`."""
        clip = pad_time(clip, self.before, self.after, "replicate")
        pooled: Tensor = self.pool(self.space(clip) if self.space else clip)
        return pooled


class AvgPool3d(nn.AvgPool3d):
    """torch's pooling, extended to images smaller than the window, which torch accepts only in 2D."""

    def forward(self, input: Tensor) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C, T', H', W')`."""
        window = _triple(self.kernel_size), _triple(self.stride), _triple(self.padding)
        return average(input, window, (self.ceil_mode, self.count_include_pad), self.divisor_override)


@one_step
def average(
    clip: Tensor, window: tuple[tuple[int, ...], ...], options: tuple[bool, bool], divisor: int | None
) -> Tensor:
    """Apply `avg_pool3d` with a kernel, stride and padding; in two steps to a clip smaller than the window."""
    kernel, stride, padding = window
    if all(size >= width for size, width in zip(clip.shape[2:], kernel, strict=True)):
        return F.avg_pool3d(clip, kernel, stride, padding, *options, divisor)
    divisor = divisor and divisor // kernel[0]
    frames = F.avg_pool2d(clip.flatten(1, 2), kernel[1:], stride[1:], padding[1:], *options, divisor)
    rows = torch.unflatten(frames, 1, clip.shape[1:3]).flatten(3)
    over_time = F.avg_pool2d(rows, (kernel[0], 1), (stride[0], 1), (padding[0], 0), *options)
    return torch.unflatten(over_time, 3, frames.shape[2:])


def _triple(size: int | Sequence[int]) -> tuple[int, ...]:
    return (size,) * 3 if isinstance(size, int) else tuple(size)


class BlurPool3d(nn.Module):
    """Anti-aliased subsampling (Zhang, arXiv:1904.11486) of clips: a binomial filter along time like in space."""

    filt: Tensor
    taps: Tensor

    def __init__(self, blur: Any, kernel: int, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.kernel_size = (kernel, *pair(blur.filt_size))
        self.stride = (stride, *pair(blur.stride))
        self.before, self.after = before, after
        self.space = SpatialPad("constant" if blur.pad_mode == "zeros" else blur.pad_mode, tuple(blur.padding))
        self.register_buffer("filt", blur.filt, persistent=False)
        taps = [comb(kernel - 1, i) / 2 ** (kernel - 1) for i in range(kernel)]
        self.register_buffer("taps", torch.tensor(taps), persistent=False)

    def forward(self, clip: Tensor) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C, T', H', W')`."""
        padded = self.space(pad_time(clip, self.before, self.after, "replicate"))
        channels = padded.shape[1]
        kernel = self.filt.unsqueeze(2) * self.taps.to(self.filt.dtype).reshape(-1, 1, 1)
        return F.conv3d(padded, kernel.expand(channels, *kernel.shape[1:]), stride=self.stride, groups=channels)


class BatchNormAct3d(nn.BatchNorm3d):
    """timm's BatchNorm with an activation, for clips; `drop` and `act` are the 2D module's."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C, T, H, W)`."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated

    def _check_input_dim(self, input: Any) -> None:
        if not isinstance(input, fx.Proxy):  # while torch.fx traces, nothing has a size
            super()._check_input_dim(input)


class LayerNorm3d(nn.LayerNorm):
    """LayerNorm over the channels of every position of a clip."""

    def forward(self, input: Tensor) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C, T, H, W)`."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class GlobalAvgPool(nn.Module):
    """Adaptive pooling to one pixel, `(N, C, T, H, W)` → `(N, C, T, 1, 1)`, in a form that exports with any T."""

    def forward(self, clip: Tensor) -> Tensor:
        """Average over height and width."""
        return clip.mean(dim=(-2, -1), keepdim=True)


class TimeEmbedding(nn.Module):
    """A table over frames, added to every position of a clip (TimeSformer, arXiv:2102.05095, section 3).

    Clips of another length are spread evenly over it, with linear interpolation.
    """

    def __init__(self, channels: int, frames: int, **options: Any) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(channels, frames, **options))

    def forward(self, clip: Tensor) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C, T, H, W)`."""
        frames, last = clip.shape[2], self.table.shape[1] - 1
        place = (
            torch.arange(frames, device=clip.device, dtype=clip.dtype)
            * last
            / torch.clamp_min(torch.ones((), device=clip.device, dtype=clip.dtype) * (frames - 1), 1)
        )
        before = place.floor().clamp(max=max(last - 1, 0))
        share, index = place - before, before.long()
        row = self.table[:, index] * (1 - share) + self.table[:, (index + 1).clamp(max=last)] * share
        return clip + row.unsqueeze(-1).unsqueeze(-1)


class SinusoidalTime(nn.Module):
    """Sinusoids of each frame's index (Vaswani et al., arXiv:1706.03762, section 3.5) through a learned projection.

    The projection applies to clips of any length; a frame's embedding does not depend on it.
    """

    def __init__(self, channels: int, waves: int, **options: Any) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(channels, waves, **options))

    def forward(self, clip: Tensor) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C, T, H, W)`."""
        half = self.table.shape[1] // 2
        places = torch.arange(clip.shape[2], device=clip.device, dtype=clip.dtype)
        speeds = 10000 ** (-torch.arange(half, device=clip.device, dtype=clip.dtype) / half)
        angles = speeds.unsqueeze(1) * places
        row = self.table @ torch.cat((angles.sin(), angles.cos()))
        return clip + row.unsqueeze(-1).unsqueeze(-1)


TIME_EMBEDDINGS: dict[str, type[TimeEmbedding | SinusoidalTime]] = {
    "zeros": TimeEmbedding,
    "sinusoidal-learned": SinusoidalTime,
}
"""Classes by `kernels.Style.time_embedding`, built with channels and columns."""
