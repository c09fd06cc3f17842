"""Normalisation and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from i3dconvert.lift.counterparts.row import Counterpart, like
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.modules import BatchNormAct3d, LayerNorm3d
from i3dconvert.recipes import Temporal


def _norm(cls: type[nn.Module]) -> Callable[[Any, Temporal, Style], nn.Module]:
    def lift(norm: Any, temporal: Temporal, style: Style) -> nn.Module:
        weight = norm.weight if norm.affine else norm.running_mean
        options = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
        return cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, **options)

    return lift


def _norm_act(norm: Any, temporal: Temporal, style: Style) -> nn.Module:
    lifted = _norm(BatchNormAct3d)(norm, temporal, style)
    lifted.drop, lifted.act = norm.drop, norm.act
    return lifted


def _layer_norm(norm: Any, temporal: Temporal, style: Style) -> nn.Module:
    options = {"bias": norm.bias is not None, **like(norm)} if norm.elementwise_affine else {}
    return LayerNorm3d(norm.normalized_shape, norm.eps, norm.elementwise_affine, **options)


BATCH_NORM = Counterpart(_norm(nn.BatchNorm3d))
INSTANCE_NORM = Counterpart(_norm(nn.InstanceNorm3d))
BATCH_NORM_ACT = Counterpart(_norm_act)
LAYER_NORM = Counterpart(_layer_norm)
DROPOUT = Counterpart(lambda dropout, temporal, style: nn.Dropout3d(dropout.p, dropout.inplace))
