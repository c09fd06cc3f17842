"""Convolutions whose kernel the network's code computes from its parameters, or uses in its own way.

Weight and spectral norm, weight standardisation, pruning, LoRA, `F.conv2d(x, self.weight * self.mask)`: the parameter
with the kernel's shape gets the temporal axis, under its own name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from i3dconvert.lift import layout
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.fillings import Filling
from i3dconvert.lift.modules import PaddedConv3d, pad_time

CLASSES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "conv2d": (nn.Conv2d, ("stride", "padding", "dilation", "groups")),
    "conv_transpose2d": (nn.ConvTranspose2d, ("stride", "padding", "output_padding", "groups", "dilation")),
}
"""The functions of convolution: their layers, and their arguments after image, kernel and bias."""


OF_ANY_IMAGE = ("dtype", "device")
"""Attributes of a tensor that equal those of the weights."""


@dataclass(frozen=True)
class Called:
    """A call of a convolution function in the 2D graph."""

    image: Any
    kernel: Any
    bias: Any
    layer: nn.Module
    """The 2D layer that computes the same, on the meta device."""


def called(node: fx.Node) -> Called | None:
    """Return the arguments of a convolution function; None if some of them depend on the image."""
    cls, names = CLASSES[layout.operation(node)]
    given = dict(zip(("input", "weight", "bias", *names), node.args, strict=False)) | dict(node.kwargs)
    image, kernel, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    options: list[Any] = []
    fx.node.map_aggregate(given, options.append)
    if not isinstance(kernel, fx.Node) or any(isinstance(value, fx.Node) for value in options):
        return None
    return Called(image, kernel, bias, layer_of(cls, facts_of(kernel)["value"], given, bias is not None))


def layer_of(cls: type[nn.Module], kernel: Tensor, options: dict[str, Any], bias: bool) -> nn.Module:
    """Return the layer with a kernel of this shape and these options."""
    rows, columns = kernel.shape[:2]
    groups = options.get("groups", 1)
    channels = (rows, columns * groups) if cls is nn.ConvTranspose2d else (columns * groups, rows)
    return cls(*channels, tuple(kernel.shape[2:]), bias=bias, device="meta", dtype=kernel.dtype, **options)


def parameter_of(kernel: fx.Node) -> fx.Node | None:
    """Return the first tensor with the kernel's shape from which the kernel is computed, parameters before buffers.

    Returns None if there is none, or if the kernel depends on the image.
    """
    seen, found = [kernel], []
    for node in seen:
        if node.op == "placeholder":
            return None
        if node.target is getattr and node.args[1] in OF_ANY_IMAGE:
            continue
        if node.op == "get_attr" and facts_of(node)["value"].shape == facts_of(kernel)["value"].shape:
            found.append(node)
        seen += [source for source in node.all_input_nodes if source not in seen]
    trained = [node for node in found if isinstance(facts_of(node)["value"], nn.Parameter)]
    return next(iter(trained or found), None)


class ComputedConv3d(nn.Module):
    """A 3D convolution, transposed or not, which gets its taps together with the kernel that the 2D code computes.

    Tap t is `w_t + share_t · (k − Σ w)`, where the 2D code computes `k` from the sum of the taps `Σ w`, and the shares
    are those with which a 2D kernel fills the taps. So the taps sum to the 2D network's kernel for all weights, also in
    training, and their differences are unchanged.
    """

    shares: Tensor

    def __init__(self, layer: Any, filling: Filling, init: str) -> None:
        super().__init__()
        self.transposed, self.copies = isinstance(layer, nn.ConvTranspose3d), filling.copies
        self.time = getattr(layer, "time", (0, 0, "zeros"))
        self.space = getattr(layer, "space", None)
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.output_padding, self.groups = layer.output_padding, layer.groups
        self.register_buffer("shares", filling(torch.ones(1, 1, 1, 1), init).reshape(-1, 1, 1), persistent=False)

    def taps(self, weight: Tensor, kernel: Tensor | None) -> Tensor:
        """Map `(O, I, T, kH, kW)` and `(O, I, kH, kW)` to `(O, I, T, kH, kW)`; without a kernel, return the weight."""
        if kernel is None:
            return weight
        shares = self.shares.to(weight)
        whole = weight.sum(2, keepdim=True) / self.copies
        return weight - shares * whole + shares * kernel.unsqueeze(2)

    def with_kernel(self, weight: Tensor, kernel: Tensor | None, bias: Tensor | None) -> nn.Module:
        """Return the layer that holds these taps itself."""
        taps = self.taps(weight, kernel)
        outputs, inputs = taps.shape[:2]
        channels = (outputs, inputs * self.groups) if self.transposed else (inputs * self.groups, outputs)
        options: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        options |= {"groups": self.groups, "bias": bias is not None, "device": "meta", "dtype": taps.dtype}
        cls: Any = nn.ConvTranspose3d if self.transposed else PaddedConv3d
        own = {"output_padding": self.output_padding} if self.transposed else {"time": self.time, "space": self.space}
        layer: nn.Module = cls(*channels, tuple(taps.shape[2:]), **own, **options)
        held = {"weight": taps} | ({} if bias is None else {"bias": bias})
        layer.load_state_dict(held, assign=True)
        return layer

    def forward(self, clip: Tensor, weight: Tensor, kernel: Tensor | None, bias: Tensor | None) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C', T', H', W')`."""
        clip = pad_time(clip, *self.time)
        clip = self.space(clip) if self.space else clip
        taps = self.taps(weight, kernel)
        if self.transposed:
            sizes = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
            return F.conv_transpose3d(clip, taps, bias, *sizes)
        return F.conv3d(clip, taps, bias, self.stride, self.padding, self.dilation, self.groups)
