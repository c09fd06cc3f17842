"""Tables of torch's functions that are not simply a step of a recording."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN = {
    Tensor.dim, Tensor.ndimension, Tensor.is_floating_point, Tensor.is_complex, Tensor.is_contiguous,
    Tensor.element_size, Tensor.get_device, Tensor.is_same_size, Tensor.is_pinned,
    torch.is_floating_point, torch.is_complex, torch.is_tensor,
    torch.is_same_size, torch.get_default_dtype, torch.result_type, torch.promote_types,
}  # fmt: skip
PLAIN_ATTRIBUTES = frozenset(
    "requires_grad grad_fn is_leaf layout ndim is_cuda is_sparse is_quantized is_meta itemsize names grad is_nested "
    "is_mkldnn is_cpu is_xpu is_mps output_nr device dtype nbytes is_sparse_csr retains_grad".split()
)
DEVICES = frozenset(("device", "is_cpu", "is_cuda", "is_xpu", "is_mps", "is_meta"))
"""Attributes that tell a tensor's device."""
SIZES = {Tensor.size, Tensor.numel, Tensor.nelement, torch.numel, Tensor.__len__, Tensor.stride}
VALUES = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
    Tensor.equal, Tensor.allclose, Tensor.__array__, Tensor.__contains__,
    torch.equal, torch.allclose, torch.is_nonzero,
}  # fmt: skip
NO_STEP = {torch._assert}
FIRST: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys([torch.cat, torch.concat, torch.stack, torch.hstack, torch.vstack], ("tensors",)),
    **dict.fromkeys([torch.tensor, torch.as_tensor], ("data",)),
    **dict.fromkeys([torch.where, torch.searchsorted, F.scaled_dot_product_attention], ()),
}
"""The first parameter of functions where it is not `input`."""
ACCESS = ("__get__", "__set__")
NORMS = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm}
"""Functions whose output has the shape of their input; they are not run, since that takes longest."""
INTERPOLATE = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
"""The parameters of `F.interpolate`."""
SLOW_MODES = frozenset(("bilinear", "bicubic"))
"""Modes that are Python code on the meta device; the nearest pixels have the same shape."""
MAY_GIVE_BACK = frozenset("contiguous to type type_as float double half bfloat16 cpu reshape flatten".split())
"""Functions that may return their input itself."""
CASTS = frozenset("type type_as float double half bfloat16".split())
UNSEEN = {
    Tensor.__repr__,
    Tensor.__format__,
    Tensor.requires_grad_,
    Tensor.__hash__,
    Tensor.untyped_storage,
    Tensor.retain_grad,
    torch.device,
}
