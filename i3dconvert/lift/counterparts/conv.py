"""Convolutions and transposed convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from i3dconvert.errors import RecipeError
from i3dconvert.lift.counterparts.row import Counterpart, full_name, is_same, like, refuse_dilation
from i3dconvert.lift.fillings import Filling, Identity, Phases, Taps
from i3dconvert.lift.kernels import INITS, Style
from i3dconvert.lift.modules import PaddedConv3d, Pair, SpatialPad, StandardizedConv3d, pair
from i3dconvert.recipes import Geometry, Temporal

STANDARDIZED = frozenset(
    f"timm.layers.std_conv.{name}" for name in ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
)


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
        **like(conv),
    }
    if full_name(conv) in STANDARDIZED:
        shares = INITS[style.init].inflate(torch.ones(1, 1, 1, 1), along.kernel)
        return StandardizedConv3d(
            **arguments, **own, eps=conv.eps, scale=getattr(conv, "scale", None), shares=shares.flatten()
        )
    return PaddedConv3d(**arguments, **own) if own else nn.Conv3d(**arguments)


def _time_padding(temporal: Temporal, style: Style) -> tuple[int, tuple[int, int, str] | None]:
    """Return the temporal padding that `nn.Conv3d` supports, else 0 and the padding to apply before it."""
    middle = temporal.dilation * (temporal.kernel // 2)
    strict = style.init == "center" and style.padding == "zeros"
    if strict and (temporal.before > middle or temporal.after > temporal.span - 1 - middle):
        raise RecipeError(
            f"with a temporal kernel of {temporal.kernel}, padding {max(temporal.before, temporal.after)} puts the "
            "middle tap on the padding, so that border frames become zeros"
        )
    if temporal.before != temporal.after or (style.padding != "zeros" and temporal.before > 0):
        return 0, (temporal.before, temporal.after, style.padding)
    return temporal.before, None


def _temporal_conv(conv: nn.Conv2d, temporal: Temporal, style: Style) -> nn.Module:
    """Return the second half of a (2+1)D convolution: t×1×1, with the first half's output channels and groups."""
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
        **like(conv),
    }
    return PaddedConv3d(**arguments, time=time) if time else nn.Conv3d(**arguments)


def _factorised(temporal: Temporal, style: Style) -> bool:
    return style.conv == "2plus1d" and (temporal.kernel > 1 or temporal.stride > 1)


def _conv_fillings(conv: nn.Conv2d, temporal: Temporal, style: Style) -> dict[str, Filling]:
    if _factorised(temporal, style):
        channels = (conv.out_channels, conv.out_channels // conv.groups)
        return {"weight": Taps(1), "temporal.weight": Identity(*channels, temporal.kernel, like=("weight",))}
    return {"weight": Taps(temporal.kernel)}


def _conv_geometry(conv: nn.Conv2d) -> Geometry:
    kernel, padding = pair(conv.kernel_size), _padding(conv)
    kind = "pointwise" if kernel == (1, 1) else "spatial"
    return Geometry(kind, kernel[0], pair(conv.stride)[0], padding and padding[0], pair(conv.dilation)[0])


def _padding(conv: nn.Conv2d) -> Pair | None:
    """Return the padding of height and width; None if it follows from the kernel or the size."""
    if conv.padding == "same" or is_same(conv):
        return None
    return (0, 0) if isinstance(conv.padding, str) else pair(conv.padding)


def _spatial_pad(conv: nn.Conv2d) -> SpatialPad | None:
    """Return the spatial padding of this convolution that `nn.Conv3d` does not support."""
    if is_same(conv):
        return SpatialPad("constant", None, pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation))
    if _padding(conv) is not None and conv.padding_mode == "zeros":
        return None
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    return SpatialPad("constant" if conv.padding_mode == "zeros" else conv.padding_mode, (left, right, top, bottom))


def _conv_transpose(conv: Any, temporal: Temporal, style: Style) -> nn.Module:
    refuse_dilation(temporal, "a transposed convolution")
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


def _conv_transpose_geometry(conv: Any) -> Geometry:
    kernel, stride, padding = pair(conv.kernel_size)[0], pair(conv.stride)[0], pair(conv.padding)[0]
    dilation, beyond = pair(conv.dilation)[0], pair(conv.output_padding)[0]
    return Geometry("transposed", kernel, stride, padding, dilation, beyond)


CONV = Counterpart(_conv, _conv_geometry, _conv_fillings)
CONV_TRANSPOSE = Counterpart(_conv_transpose, _conv_transpose_geometry, _conv_transpose_fillings)
