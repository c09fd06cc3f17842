"""The table of 3D counterparts: which 2D modules are lifted, and into what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from i3dconvert.recipes import Geometry, Temporal

Pair = tuple[int, int]


def pair(value: int | Sequence[int]) -> Pair:
    """An int for both axes, or `(height, width)`, as torch's 2D modules take them."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def pad_time(clip: Tensor, before: int, after: int, mode: str) -> Tensor:
    """`(N, C, T, H, W)` → `(N, C, before + T + after, H, W)`, with zeros or with the border frames replicated."""
    if not before and not after:
        return clip
    pads = (0, 0, 0, 0, before, after)
    return F.pad(clip, pads) if mode == "zeros" else F.pad(clip, pads, mode="replicate")


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """What TensorFlow's 'SAME' pads before and after an axis of `size` pixels."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True)
class SpatialPad:
    """Padding of height and width that `nn.Conv3d` can't express: another mode, uneven, or depending on the size."""

    mode: str
    """`constant`, `reflect`, `replicate`, `circular`."""
    fixed: tuple[int, int, int, int] | None
    """`(left, right, top, bottom)`; `None` for TensorFlow's 'SAME'."""
    kernel: Pair
    stride: Pair
    dilation: Pair

    def __call__(self, clip: Tensor) -> Tensor:
        """`(N, C, T, H, W)` → the clip with height and width padded."""
        if self.fixed is not None:
            top_bottom, left_right = self.fixed[2:], self.fixed[:2]
        else:
            top_bottom, left_right = (
                same_padding(clip.shape[axis - 2], self.kernel[axis], self.stride[axis], self.dilation[axis])
                for axis in (0, 1)
            )
        if self.mode == "constant":
            return F.pad(clip, (*left_right, *top_bottom))
        return F.pad(clip, (*left_right, *top_bottom, 0, 0), mode=self.mode)


class PaddedConv3d(nn.Conv3d):
    """A `Conv3d` that pads time on its own terms: unevenly, or by replicating the border frames."""

    def __init__(self, *args: Any, time: tuple[int, int, str], space: SpatialPad | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.time, self.space = time, space

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, T, H, W)` → `(N, C', T', H', W')`."""
        clip = pad_time(input, *self.time)
        return super().forward(self.space(clip) if self.space else clip)

    def extra_repr(self) -> str:
        convolution: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{convolution}, time={self.time}" + (f", space={self.space}" if self.space else "")


class PaddedPool3d(nn.Module):
    """A 3D pooling behind replicated border frames, so that they weigh as in the 2D pooling."""

    def __init__(self, pool: nn.Module, before: int, after: int) -> None:
        super().__init__()
        self.pool, self.before, self.after = pool, before, after

    def forward(self, clip: Tensor) -> Tensor:
        """`(N, C, T, H, W)` → `(N, C, T', H', W')`."""
        pooled: Tensor = self.pool(pad_time(clip, self.before, self.after, "replicate"))
        return pooled


class BatchNormAct3d(nn.BatchNorm3d):
    """timm's BatchNorm with an activation, over clips; `drop` and `act` are the 2D module's own."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, T, H, W)` → `(N, C, T, H, W)`."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


class GlobalAvgPool(nn.Module):
    """`(N, C, T, H, W)` → `(N, C, T, 1, 1)`: an adaptive pool to one pixel, in the form that exports with any T."""

    def forward(self, clip: Tensor) -> Tensor:
        """The mean over height and width."""
        return clip.mean(dim=(-2, -1), keepdim=True)


def _padding(conv: nn.Conv2d) -> Pair | None:
    """Of height and width; None where it follows from the kernel or the size."""
    if conv.padding == "same" or type(conv).__name__ == "Conv2dSame":
        return None
    return (0, 0) if isinstance(conv.padding, str) else pair(conv.padding)


def _spatial_pad(conv: nn.Conv2d) -> SpatialPad | None:
    """What `nn.Conv3d`'s own padding can't do for this convolution."""
    kernel, stride, dilation = pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation)
    if type(conv).__name__ == "Conv2dSame":
        return SpatialPad("constant", None, kernel, stride, dilation)
    if _padding(conv) is not None and conv.padding_mode == "zeros":
        return None
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return SpatialPad(mode, (left, right, top, bottom), kernel, stride, dilation)


def _conv(conv: nn.Conv2d, temporal: Temporal, padding: str) -> nn.Module:
    space = _spatial_pad(conv)
    spatial_padding = (0, 0) if space else _padding(conv) or (0, 0)
    uneven = temporal.before != temporal.after
    explicit = uneven or (padding != "zeros" and temporal.before > 0)
    arguments: dict[str, Any] = {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": (temporal.kernel, *pair(conv.kernel_size)),
        "stride": (temporal.stride, *pair(conv.stride)),
        "padding": (0 if explicit else temporal.before, *spatial_padding),
        "dilation": (temporal.dilation, *pair(conv.dilation)),
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "device": conv.weight.device,
        "dtype": conv.weight.dtype,
    }
    if not explicit and space is None:
        return nn.Conv3d(**arguments)
    time = (temporal.before, temporal.after, padding) if explicit else (0, 0, padding)
    return PaddedConv3d(**arguments, time=time, space=space)


def _max_pool(pool: nn.MaxPool2d, temporal: Temporal, padding: str) -> nn.Module:
    even = temporal.before == temporal.after and temporal.before * 2 <= temporal.kernel
    lifted = nn.MaxPool3d(
        (temporal.kernel, *pair(pool.kernel_size)),
        (temporal.stride, *pair(pool.stride or pool.kernel_size)),
        (temporal.before if even else 0, *pair(pool.padding)),
        (temporal.dilation, *pair(pool.dilation)),
        ceil_mode=pool.ceil_mode,
    )
    return lifted if even else PaddedPool3d(lifted, temporal.before, temporal.after)


def _avg_pool(pool: nn.AvgPool2d, temporal: Temporal, padding: str) -> nn.Module:
    divisor = None if pool.divisor_override is None else pool.divisor_override * temporal.kernel
    lifted = nn.AvgPool3d(
        (temporal.kernel, *pair(pool.kernel_size)),
        (temporal.stride, *pair(pool.stride or pool.kernel_size)),
        (0, *pair(pool.padding)),
        ceil_mode=pool.ceil_mode,
        count_include_pad=pool.count_include_pad,
        divisor_override=divisor,
    )
    return PaddedPool3d(lifted, temporal.before, temporal.after) if temporal.before or temporal.after else lifted


def _norm(cls: type[nn.Module]) -> Callable[[Any, Temporal, str], nn.Module]:
    def lift(norm: Any, temporal: Temporal, padding: str) -> nn.Module:
        like = norm.weight if norm.affine else norm.running_mean
        options = {} if like is None else {"device": like.device, "dtype": like.dtype}
        return cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, **options)

    return lift


def _norm_act(norm: Any, temporal: Temporal, padding: str) -> nn.Module:
    lifted = _norm(BatchNormAct3d)(norm, temporal, padding)
    lifted.drop, lifted.act = norm.drop, norm.act
    return lifted


def _dropout(dropout: nn.Dropout2d, temporal: Temporal, padding: str) -> nn.Module:
    return nn.Dropout3d(dropout.p, dropout.inplace)


def _conv_geometry(conv: nn.Conv2d) -> Geometry:
    kernel, padding = pair(conv.kernel_size), _padding(conv)
    kind = "pointwise" if kernel == (1, 1) else "spatial"
    return Geometry(kind, kernel[0], pair(conv.stride)[0], padding and padding[0], pair(conv.dilation)[0])


def _pool_geometry(kind: str) -> Callable[[Any], Geometry]:
    def geometry(pool: nn.MaxPool2d | nn.AvgPool2d) -> Geometry:
        kernel = pair(pool.kernel_size)[0]
        stride = pair(pool.stride or pool.kernel_size)[0]
        dilation = pair(getattr(pool, "dilation", 1))[0]
        return Geometry(kind, kernel, stride, pair(pool.padding)[0], dilation)

    return geometry


@dataclass(frozen=True)
class Counterpart:
    """How one type of 2D module is lifted; `geometry` is given for those that a recipe has a say in."""

    lift: Callable[[Any, Temporal, str], nn.Module]
    geometry: Callable[[Any], Geometry] | None = None


COUNTERPARTS: dict[str, Counterpart] = {
    "torch.nn.modules.conv.Conv2d": Counterpart(_conv, _conv_geometry),
    "timm.layers.conv2d_same.Conv2dSame": Counterpart(_conv, _conv_geometry),
    "torch.nn.modules.pooling.MaxPool2d": Counterpart(_max_pool, _pool_geometry("max_pool")),
    "torch.nn.modules.pooling.AvgPool2d": Counterpart(_avg_pool, _pool_geometry("avg_pool")),
    "torch.nn.modules.batchnorm.BatchNorm2d": Counterpart(_norm(nn.BatchNorm3d)),
    "torch.nn.modules.instancenorm.InstanceNorm2d": Counterpart(_norm(nn.InstanceNorm3d)),
    "timm.layers.norm_act.BatchNormAct2d": Counterpart(_norm_act),
    "torch.nn.modules.dropout.Dropout2d": Counterpart(_dropout),
}
"""By the full name of the type, so that no library is imported for it; subclasses behave otherwise and don't count."""

_ACTIVATIONS = """
    CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU
    Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Threshold
""".split()

ANY_RANK = {
    *(f"torch.nn.modules.activation.{name}" for name in _ACTIVATIONS),
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.dropout.AlphaDropout",
    "torch.nn.modules.normalization.GroupNorm",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "torchvision.ops.stochastic_depth.StochasticDepth",
    "timm.layers.drop.DropPath",
}
"""Modules that take a clip as they take an image, with the channels at axis 1."""


def full_name(module: nn.Module) -> str:
    """The name of the module's type, as the tables above have it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def counterpart(module: nn.Module) -> Counterpart | None:
    """The entry of the table for this module's type, if there is one."""
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return Counterpart(lambda *_: GlobalAvgPool())
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        return None
    return COUNTERPARTS.get(full_name(module))


def is_layer(module: nn.Module) -> bool:
    """Whether the table has an entry for this module, so that tracing keeps it whole."""
    return counterpart(module) is not None
