"""Pooling and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from i3dconvert.errors import RecipeError
from i3dconvert.lift.counterparts.row import Counterpart, is_same, refuse_dilation
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.modules import AvgPool3d, BlurPool3d, GlobalAvgPool, PaddedPool3d, SpatialPad, pair
from i3dconvert.recipes import Geometry, Temporal


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
    refuse_dilation(temporal, "an average pool")
    if pool.divisor_override is not None and pool.ceil_mode and temporal.kernel > 1:
        raise RecipeError("an average pool with divisor_override and ceil_mode can't be averaged over time")
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
    refuse_dilation(temporal, "a blur pool")
    return BlurPool3d(blur, temporal.kernel, temporal.stride, temporal.before, temporal.after)


def _pool_geometry(kind: str) -> Callable[[Any], Geometry]:
    def geometry(pool: Any) -> Geometry:
        kernel = pair(pool.kernel_size)[0]
        stride = pair(pool.stride or pool.kernel_size)[0]
        dilation = pair(getattr(pool, "dilation", 1))[0]
        return Geometry(kind, kernel, stride, None if is_same(pool) else pair(pool.padding)[0], dilation)

    return geometry


def _blur_geometry(blur: Any) -> Geometry:
    return Geometry("avg_pool", pair(blur.filt_size)[0], pair(blur.stride)[0], blur.padding[-1])


def _pool_pad(pool: Any, value: float) -> SpatialPad | None:
    if not is_same(pool):
        return None
    kernel, stride, dilation = pair(pool.kernel_size), pair(pool.stride), pair(getattr(pool, "dilation", 1))
    return SpatialPad("constant", None, kernel, stride, dilation, value)


def padding(cls: type[nn.Module]) -> Counterpart:
    """Return the counterpart of a padding of images: it pads space and leaves time alone."""
    return Counterpart(lambda pad, temporal, style: cls((*pad.padding, 0, 0)))


MAX_POOL = Counterpart(_max_pool, _pool_geometry("max_pool"))
AVG_POOL = Counterpart(_avg_pool, _pool_geometry("avg_pool"))
BLUR_POOL = Counterpart(_blur_pool, _blur_geometry)
GLOBAL_AVG_POOL = Counterpart(lambda *_: GlobalAvgPool())
