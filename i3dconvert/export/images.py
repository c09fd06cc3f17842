"""2D layers that do over frames what a 3D layer does over a clip."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from i3dconvert.export.framewise import (
    ConvGeometry,
    FramesPool,
    LayerNormOverChannels,
)
from i3dconvert.lift.counterparts import ANY_RANK, full_name
from i3dconvert.lift.modules import BatchNormAct3d, GlobalAvgPool, LayerNorm3d, PaddedConv3d, PaddedPool3d, in_space
from i3dconvert.recipes import Temporal


def same_on_frames(module: nn.Module) -> nn.Module | None:
    """Return the 2D form of a layer that does not depend on time."""
    if isinstance(module, nn.GroupNorm):
        return None
    if isinstance(module, GlobalAvgPool | nn.Dropout3d) or full_name(module) in ANY_RANK:
        return module
    if isinstance(module, nn.BatchNorm3d):
        norm = nn.BatchNorm2d(module.num_features, module.eps, None, module.affine, module.track_running_stats)
        norm.load_state_dict(module.state_dict(), strict=False, assign=True)
        return nn.Sequential(norm, module.act) if isinstance(module, BatchNormAct3d) else norm
    if isinstance(module, LayerNorm3d):
        layer_norm = LayerNormOverChannels(module.normalized_shape, module.eps, module.elementwise_affine)
        layer_norm.weight, layer_norm.bias = module.weight, module.bias
        return layer_norm
    return None


def framewise_pool(module: Any, temporal: Temporal) -> nn.Module | None:
    """Return the pooling on frames, if it has such a form."""
    pool, space = (module.pool, module.space) if isinstance(module, PaddedPool3d) else (module, None)
    if not isinstance(pool, nn.MaxPool3d | nn.AvgPool3d):
        return None
    if isinstance(pool, nn.AvgPool3d) and pool is module and temporal.before:
        return None  # it averages zeros, not the border frames
    if temporal.ceil and temporal.kernel > 1 and temporal.stride > 1:
        # For a maximum, a last window that is cut off equals a full one if it never starts after the clip.
        starts_inside = temporal.stride <= temporal.span - temporal.after
        if not isinstance(pool, nn.MaxPool3d) or not starts_inside:
            return None
    largest = isinstance(pool, nn.MaxPool3d)
    gaps = largest and temporal.dilation > 1 and not isinstance(module, PaddedPool3d)
    return FramesPool(pool_of_images(pool, temporal.kernel), temporal, largest, space, gaps)


def pool_of_images(pool: nn.MaxPool3d | nn.AvgPool3d, kernel: int) -> nn.Module:
    """Return the 2D pooling that a 3D pooling of `kernel` frames applies to each frame."""
    size, stride, padding = (in_space(size) for size in (pool.kernel_size, pool.stride, pool.padding))
    if isinstance(pool, nn.MaxPool3d):
        return nn.MaxPool2d(size, stride, padding, in_space(pool.dilation), ceil_mode=pool.ceil_mode)
    divisor = pool.divisor_override and pool.divisor_override // kernel
    return nn.AvgPool2d(size, stride, padding, pool.ceil_mode, pool.count_include_pad, divisor)


class Folded(NamedTuple):
    """A convolution over clips as one in space with its taps along time."""

    kernel: Tensor
    """`(O, I/groups, T, kH, kW)`; `(I, O/groups, T, kH, kW)` if transposed."""
    bias: Tensor | None
    replicate: bool
    """Whether border frames are replicated; otherwise the clip is padded with zeros."""
    geometry: ConvGeometry


def folded(module: Any, norm: Any) -> Folded:
    """Return a convolution, transposed or not, and the BatchNorm after it if there is one, as one convolution."""
    kernel: Tensor = module.kernel() if isinstance(module, PaddedConv3d) else module.weight
    bias: Tensor | None = module.bias
    if norm is not None:
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        kernel, bias = fuse_conv_bn_weights(kernel, bias, *statistics)
    spatial = (in_space(module.stride), in_space(module.padding), in_space(module.dilation))
    beyond = in_space(module.output_padding) if isinstance(module, nn.ConvTranspose3d) else None
    geometry = ConvGeometry(*spatial, module.groups, getattr(module, "space", None), beyond)
    replicate = isinstance(module, PaddedConv3d) and module.time[2] == "replicate"
    return Folded(kernel.detach(), None if bias is None else bias.detach(), replicate, geometry)
