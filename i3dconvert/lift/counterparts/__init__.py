"""The table of 3D counterparts: which 2D modules are lifted, and to what.

A row maps the full name of a 2D type to functions for its 3D module, its geometry along time, and the fillings of its
tensors; `conv.py`, `pool.py` and `norm.py` define those of their families.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from i3dconvert.lift.counterparts import conv, norm, pool
from i3dconvert.lift.counterparts.row import Counterpart, full_name

__all__ = ["ANY_RANK", "COUNTERPARTS", "UPSAMPLES", "Counterpart", "counterpart", "counterpart_of_base", "draws_rows"]
__all__ += ["full_name", "is_layer"]

COUNTERPARTS: dict[str, Counterpart] = {
    "torch.nn.modules.conv.Conv2d": conv.CONV,
    "timm.layers.conv2d_same.Conv2dSame": conv.CONV,
    "i3dconvert.backbones.same.Conv2dSame": conv.CONV,
    **dict.fromkeys(conv.STANDARDIZED, conv.CONV),
    "torch.nn.modules.conv.ConvTranspose2d": conv.CONV_TRANSPOSE,
    "torch.nn.modules.pooling.MaxPool2d": pool.MAX_POOL,
    "timm.layers.pool2d_same.MaxPool2dSame": pool.MAX_POOL,
    "i3dconvert.backbones.same.MaxPool2dSame": pool.MAX_POOL,
    "torch.nn.modules.pooling.AvgPool2d": pool.AVG_POOL,
    "timm.layers.pool2d_same.AvgPool2dSame": pool.AVG_POOL,
    "timm.layers.blur_pool.BlurPool2d": pool.BLUR_POOL,
    "torch.nn.modules.padding.ReflectionPad2d": pool.padding(nn.ReflectionPad3d),
    "torch.nn.modules.padding.ReplicationPad2d": pool.padding(nn.ReplicationPad3d),
    "torch.nn.modules.padding.CircularPad2d": pool.padding(nn.CircularPad3d),
    "torch.nn.modules.batchnorm.BatchNorm2d": norm.BATCH_NORM,
    "torch.nn.modules.instancenorm.InstanceNorm2d": norm.INSTANCE_NORM,
    "timm.layers.norm_act.BatchNormAct2d": norm.BATCH_NORM_ACT,
    "timm.layers.norm.LayerNorm2d": norm.LAYER_NORM,
    "torchvision.models.convnext.LayerNorm2d": norm.LAYER_NORM,
    "torch.nn.modules.dropout.Dropout2d": norm.DROPOUT,
}
"""Counterparts by full name, so that no library is imported. Subclasses count as the class whose forward they run."""

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
"""Modules that accept clips like images, with the channels at axis 1."""


def draws_rows(module: nn.Module) -> bool:
    """Return whether a module without weights drops whole images at random in training (stochastic depth)."""
    if type(module).__module__.startswith("torch.nn.") or any(True for _ in module.parameters()):
        return False
    if "training" not in getattr(getattr(type(module).forward, "__code__", None), "co_names", ()):
        return False
    probe = copy.deepcopy(module).train()
    for name in ("p", "drop_prob", "drop_rate", "prob", "rate"):
        if isinstance(getattr(probe, name, None), float):
            setattr(probe, name, 0.5)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = probe(torch.ones(64, 2, 3))
    except Exception:  # noqa: BLE001 - a module with another purpose
        return False
    if not isinstance(found, Tensor) or found.shape != (64, 2, 3):
        return False
    by_row = found.flatten(1)
    return bool((by_row == by_row[:, :1]).all()) and bool((by_row != by_row[:1]).any())


UPSAMPLES = {
    f"torch.nn.modules.upsampling.{name}" for name in ("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d")
}


def counterpart(module: nn.Module) -> Counterpart | None:
    """Return the table's entry for this module's type, if there is one."""
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return pool.GLOBAL_AVG_POOL
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        return None
    return COUNTERPARTS.get(full_name(module))


def counterpart_of_base(module: nn.Module) -> Counterpart | None:
    """Return the entry of the nearest base class of a module that never runs, so that only its tensors count."""
    bases = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)
    return counterpart(module) or next((COUNTERPARTS[name] for name in bases if name in COUNTERPARTS), None)


def is_layer(module: nn.Module) -> bool:
    """Return whether the table has an entry for this module, so that tracing does not enter it."""
    return counterpart(module) is not None
