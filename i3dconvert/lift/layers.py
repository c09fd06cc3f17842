"""The table of 3D counterparts: which 2D modules are lifted, and into what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from i3dconvert.errors import RecipeError
from i3dconvert.fillings import Filling, Identity, Phases, Taps
from i3dconvert.kernels import INITS, Style
from i3dconvert.lift.modules import (
    AvgPool3d,
    BatchNormAct3d,
    BlurPool3d,
    GlobalAvgPool,
    LayerNorm3d,
    PaddedConv3d,
    PaddedPool3d,
    Pair,
    SpatialPad,
    StandardizedConv3d,
    pair,
)
from i3dconvert.recipes import Geometry, Temporal


def _is_same(layer: nn.Module) -> bool:
    """Whether the layer pads as TensorFlow's 'SAME' does, which depends on the size of the image."""
    return type(layer).__name__.endswith("2dSame") and getattr(layer, "same_pad", True)


def _padding(conv: nn.Conv2d) -> Pair | None:
    """Of height and width; None where it follows from the kernel or the size."""
    if conv.padding == "same" or _is_same(conv):
        return None
    return (0, 0) if isinstance(conv.padding, str) else pair(conv.padding)


def _spatial_pad(conv: nn.Conv2d) -> SpatialPad | None:
    """What `nn.Conv3d`'s own padding can't do for this convolution."""
    if _is_same(conv):
        return SpatialPad("constant", None, pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation))
    if _padding(conv) is not None and conv.padding_mode == "zeros":
        return None
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    return SpatialPad("constant" if conv.padding_mode == "zeros" else conv.padding_mode, (left, right, top, bottom))


def _conv(conv: Any, temporal: Temporal, style: Style) -> nn.Module:
    along, behind = temporal, None
    if _factorised(temporal, style):
        along, behind = Temporal(), _temporal_conv(conv, temporal, style)
    space = _spatial_pad(conv)
    padding, time = _time_padding(along, style)
    candidates: dict[str, Any] = {"time": time, "space": space, "temporal": behind}
    own = {name: value for name, value in candidates.items() if value is not None}
    arguments: dict[str, Any] = {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": (along.kernel, *pair(conv.kernel_size)),
        "stride": (along.stride, *pair(conv.stride)),
        "padding": (padding, *((0, 0) if space else _padding(conv) or (0, 0))),
        "dilation": (along.dilation, *pair(conv.dilation)),
        "groups": conv.groups,
        "bias": conv.bias is not None,
        **_like(conv),
    }
    if full_name(conv) in STANDARDIZED:
        shares = INITS[style.init].inflate(torch.ones(1, 1, 1, 1), along.kernel)
        return StandardizedConv3d(
            **arguments, **own, eps=conv.eps, scale=getattr(conv, "scale", None), shares=shares.flatten()
        )
    return PaddedConv3d(**arguments, **own) if own else nn.Conv3d(**arguments)


def _like(layer: Any) -> dict[str, Any]:
    return {"device": layer.weight.device, "dtype": layer.weight.dtype}


def _time_padding(temporal: Temporal, style: Style) -> tuple[int, tuple[int, int, str] | None]:
    """The temporal padding that `nn.Conv3d` can do itself, else 0 and what has to be done before it."""
    middle = temporal.dilation * (temporal.kernel // 2)
    strict = style.init == "center" and style.padding == "zeros"
    if strict and (temporal.before > middle or temporal.after > temporal.span - 1 - middle):
        raise RecipeError(
            f"with a temporal kernel of {temporal.kernel}, padding {max(temporal.before, temporal.after)} puts the "
            "middle tap on the padding, and frames of zeros come out at the border"
        )
    if temporal.before != temporal.after or (style.padding != "zeros" and temporal.before > 0):
        return 0, (temporal.before, temporal.after, style.padding)
    return temporal.before, None


def _factorised(temporal: Temporal, style: Style) -> bool:
    return style.conv == "2plus1d" and (temporal.kernel > 1 or temporal.stride > 1)


def _temporal_conv(conv: nn.Conv2d, temporal: Temporal, style: Style) -> nn.Module:
    """The second half of a (2+1)D convolution: t×1×1, of as many channels and groups as the first half gives."""
    padding, time = _time_padding(temporal, style)
    arguments: dict[str, Any] = {
        "in_channels": conv.out_channels,
        "out_channels": conv.out_channels,
        "kernel_size": (temporal.kernel, 1, 1),
        "stride": (temporal.stride, 1, 1),
        "padding": (padding, 0, 0),
        "dilation": (temporal.dilation, 1, 1),
        "groups": conv.groups,
        "bias": False,
        **_like(conv),
    }
    return PaddedConv3d(**arguments, time=time) if time else nn.Conv3d(**arguments)


def _conv_fillings(conv: nn.Conv2d, temporal: Temporal, style: Style) -> dict[str, Filling]:
    if _factorised(temporal, style):
        channels = (conv.out_channels, conv.out_channels // conv.groups)
        return {"weight": Taps(1), "temporal.weight": Identity(*channels, temporal.kernel, like=("weight",))}
    return {"weight": Taps(temporal.kernel)}


def _refuse_dilation(temporal: Temporal, layer: str) -> None:
    if temporal.dilation > 1 and temporal.kernel > 1:
        raise RecipeError(f"{layer} has no temporal dilation")


def _conv_transpose(conv: Any, temporal: Temporal, style: Style) -> nn.Module:
    _refuse_dilation(temporal, "a transposed convolution")
    if temporal.after >= temporal.stride:
        raise RecipeError("a transposed convolution's temporal kernel and stride must be both even or both odd")
    return nn.ConvTranspose3d(
        conv.in_channels,
        conv.out_channels,
        (temporal.kernel, *pair(conv.kernel_size)),
        (temporal.stride, *pair(conv.stride)),
        (temporal.before, *pair(conv.padding)),
        (temporal.after, *pair(conv.output_padding)),
        conv.groups,
        conv.bias is not None,
        (1, *pair(conv.dilation)),
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )


def _conv_transpose_fillings(conv: nn.ConvTranspose2d, temporal: Temporal, style: Style) -> dict[str, Filling]:
    first = temporal.first_tap
    if first is None:
        raise RecipeError(
            f"a transposed convolution of temporal kernel {temporal.kernel}, stride {temporal.stride}, padding "
            f"{temporal.before} leaves frames at the border without input"
        )
    return {"weight": Phases(temporal.kernel, first, temporal.stride)}


def _pool_pad(pool: Any, value: float) -> SpatialPad | None:
    if not _is_same(pool):
        return None
    kernel, stride, dilation = pair(pool.kernel_size), pair(pool.stride), pair(getattr(pool, "dilation", 1))
    return SpatialPad("constant", None, kernel, stride, dilation, value)


def _max_pool(pool: nn.MaxPool2d, temporal: Temporal, style: Style) -> nn.Module:
    even = temporal.before == temporal.after and temporal.before * 2 <= temporal.kernel
    space = _pool_pad(pool, float("-inf"))
    lifted = nn.MaxPool3d(
        (temporal.kernel, *pair(pool.kernel_size)),
        (temporal.stride, *pair(pool.stride or pool.kernel_size)),
        (temporal.before if even else 0, *pair(pool.padding)),
        (temporal.dilation, *pair(pool.dilation)),
        ceil_mode=pool.ceil_mode,
    )
    before, after = (0, 0) if even else (temporal.before, temporal.after)
    return PaddedPool3d(lifted, before, after, space) if before or after or space else lifted


def _avg_pool(pool: nn.AvgPool2d, temporal: Temporal, style: Style) -> nn.Module:
    _refuse_dilation(temporal, "an average pool")
    divisor = None if pool.divisor_override is None else pool.divisor_override * temporal.kernel
    space = _pool_pad(pool, 0.0)
    lifted = (AvgPool3d if pool.ceil_mode or any(pair(pool.padding)) else nn.AvgPool3d)(
        (temporal.kernel, *pair(pool.kernel_size)),
        (temporal.stride, *pair(pool.stride or pool.kernel_size)),
        (0, *pair(pool.padding)),
        ceil_mode=pool.ceil_mode,
        count_include_pad=pool.count_include_pad,
        divisor_override=divisor,
    )
    before, after = temporal.before, temporal.after
    return PaddedPool3d(lifted, before, after, space) if before or after or space else lifted


def _blur_pool(blur: Any, temporal: Temporal, style: Style) -> nn.Module:
    _refuse_dilation(temporal, "a blur pool")
    return BlurPool3d(blur, temporal.kernel, temporal.stride, temporal.before, temporal.after)


def _pad(cls: type[nn.Module]) -> Callable[[Any, Temporal, Style], nn.Module]:
    return lambda pad, temporal, style: cls((*pad.padding, 0, 0))


def _norm(cls: type[nn.Module]) -> Callable[[Any, Temporal, Style], nn.Module]:
    def lift(norm: Any, temporal: Temporal, style: Style) -> nn.Module:
        like = norm.weight if norm.affine else norm.running_mean
        options = {} if like is None else {"device": like.device, "dtype": like.dtype}
        return cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, **options)

    return lift


def _norm_act(norm: Any, temporal: Temporal, style: Style) -> nn.Module:
    lifted = _norm(BatchNormAct3d)(norm, temporal, style)
    lifted.drop, lifted.act = norm.drop, norm.act
    return lifted


def _layer_norm(norm: Any, temporal: Temporal, style: Style) -> nn.Module:
    options = {"bias": norm.bias is not None, **_like(norm)} if norm.elementwise_affine else {}
    return LayerNorm3d(norm.normalized_shape, norm.eps, norm.elementwise_affine, **options)


def _dropout(dropout: nn.Dropout2d, temporal: Temporal, style: Style) -> nn.Module:
    return nn.Dropout3d(dropout.p, dropout.inplace)


def _conv_geometry(conv: nn.Conv2d) -> Geometry:
    kernel, padding = pair(conv.kernel_size), _padding(conv)
    kind = "pointwise" if kernel == (1, 1) else "spatial"
    return Geometry(kind, kernel[0], pair(conv.stride)[0], padding and padding[0], pair(conv.dilation)[0])


def _conv_transpose_geometry(conv: Any) -> Geometry:
    kernel, stride, padding = pair(conv.kernel_size)[0], pair(conv.stride)[0], pair(conv.padding)[0]
    dilation, beyond = pair(conv.dilation)[0], pair(conv.output_padding)[0]
    return Geometry("transposed", kernel, stride, padding, dilation, beyond)


def _pool_geometry(kind: str) -> Callable[[Any], Geometry]:
    def geometry(pool: Any) -> Geometry:
        kernel = pair(pool.kernel_size)[0]
        stride = pair(pool.stride or pool.kernel_size)[0]
        dilation = pair(getattr(pool, "dilation", 1))[0]
        return Geometry(kind, kernel, stride, None if _is_same(pool) else pair(pool.padding)[0], dilation)

    return geometry


def _blur_geometry(blur: Any) -> Geometry:
    return Geometry("avg_pool", pair(blur.filt_size)[0], pair(blur.stride)[0], blur.padding[-1])


def _no_fillings(layer: Any, temporal: Temporal, style: Style) -> dict[str, Filling]:
    return {}


@dataclass(frozen=True)
class Counterpart:
    """How one type of 2D module is lifted; `geometry` is given for those that a recipe has a say in."""

    lift: Callable[[Any, Temporal, Style], nn.Module]
    geometry: Callable[[Any], Geometry] | None = None
    fillings: Callable[[Any, Temporal, Style], Mapping[str, Filling]] = _no_fillings
    """The tensors that gain a temporal axis, or are new, by their names in the 3D module."""


_CONV = Counterpart(_conv, _conv_geometry, _conv_fillings)
_MAX_POOL = Counterpart(_max_pool, _pool_geometry("max_pool"))
_AVG_POOL = Counterpart(_avg_pool, _pool_geometry("avg_pool"))

STANDARDIZED = frozenset(
    f"timm.layers.std_conv.{name}" for name in ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
)

COUNTERPARTS: dict[str, Counterpart] = {
    "torch.nn.modules.conv.Conv2d": _CONV,
    "timm.layers.conv2d_same.Conv2dSame": _CONV,
    "i3dconvert.backbones.same.Conv2dSame": _CONV,
    **dict.fromkeys(STANDARDIZED, _CONV),
    "torch.nn.modules.conv.ConvTranspose2d": Counterpart(
        _conv_transpose, _conv_transpose_geometry, _conv_transpose_fillings
    ),
    "torch.nn.modules.pooling.MaxPool2d": _MAX_POOL,
    "timm.layers.pool2d_same.MaxPool2dSame": _MAX_POOL,
    "i3dconvert.backbones.same.MaxPool2dSame": _MAX_POOL,
    "torch.nn.modules.pooling.AvgPool2d": _AVG_POOL,
    "timm.layers.pool2d_same.AvgPool2dSame": _AVG_POOL,
    "timm.layers.blur_pool.BlurPool2d": Counterpart(_blur_pool, _blur_geometry),
    "torch.nn.modules.padding.ReflectionPad2d": Counterpart(_pad(nn.ReflectionPad3d)),
    "torch.nn.modules.padding.ReplicationPad2d": Counterpart(_pad(nn.ReplicationPad3d)),
    "torch.nn.modules.padding.CircularPad2d": Counterpart(_pad(nn.CircularPad3d)),
    "torch.nn.modules.batchnorm.BatchNorm2d": Counterpart(_norm(nn.BatchNorm3d)),
    "torch.nn.modules.instancenorm.InstanceNorm2d": Counterpart(_norm(nn.InstanceNorm3d)),
    "timm.layers.norm_act.BatchNormAct2d": Counterpart(_norm_act),
    "timm.layers.norm.LayerNorm2d": Counterpart(_layer_norm),
    "torchvision.models.convnext.LayerNorm2d": Counterpart(_layer_norm),
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
    "torch.nn.modules.padding.ZeroPad2d",
    "torch.nn.modules.padding.ConstantPad2d",
    "torchvision.ops.stochastic_depth.StochasticDepth",
    "timm.layers.drop.DropPath",
}
"""Modules that take a clip as they take an image, with the channels at axis 1."""

UPSAMPLES = {
    f"torch.nn.modules.upsampling.{name}" for name in ("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d")
}


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
