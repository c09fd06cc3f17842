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
from i3dconvert.lift.reading.records import leaves

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
    if not isinstance(kernel, fx.Node) or any(isinstance(value, fx.Node) for value in leaves(given)):
        return None
    return Called(image, kernel, bias, layer_of(cls, facts_of(kernel)["value"], given, bias is not None))


def layer_of(cls: type[nn.Module], kernel: Tensor, options: dict[str, Any], bias: bool) -> nn.Module:
    """Return the layer with a kernel of this shape and these options."""
    rows, columns = kernel.shape[:2]
    groups = options.get("groups", 1)
    channels = (rows, columns * groups) if cls is nn.ConvTranspose2d else (columns * groups, rows)
    return cls(*channels, tuple(kernel.shape[2:]), bias=bias, device="meta", dtype=kernel.dtype, **options)


@dataclass(frozen=True)
class Held:
    """A tensor of the network from which a kernel is computed, or a part of its channels."""

    tensor: fx.Node
    parts: tuple[fx.Node, ...] = ()
    """The operations that take the part, in order; they work on a kernel with a temporal axis alike."""


def parameter_of(kernel: fx.Node) -> Held | None:
    """Return the first tensor with the kernel's shape from which the kernel is computed, parameters before buffers.

    Returns None if there is none, or if the kernel depends on the image.
    """
    before = _before(kernel)
    shape = facts_of(kernel)["value"].shape
    found = [held for node in before or () if facts_of(node)["value"].shape == shape and (held := _held(node))]
    trained = [held for held in found if isinstance(facts_of(held.tensor)["value"], nn.Parameter)]
    return next(iter(trained or found), None)


def is_fixed(kernel: fx.Node) -> bool:
    """Return whether a kernel is computed from constants alone, such as a blur's."""
    before = _before(kernel)
    return before is not None and all(node.op != "get_attr" for node in before)


def _before(kernel: fx.Node) -> list[fx.Node] | None:
    """Return the tensors from which a kernel is computed; None if it depends on the image."""
    seen = [kernel]
    for node in seen:
        if node.op == "placeholder":
            return None
        if not (node.target is getattr and node.args[1] in OF_ANY_IMAGE):
            seen += [source for source in node.all_input_nodes if source not in seen]
    return [node for node in seen if isinstance(facts_of(node).get("value"), Tensor)]


def _held(node: fx.Node) -> Held | None:
    """Return what a node takes of a tensor of the network; None if it computes something else."""
    parts: tuple[fx.Node, ...] = ()
    while node.op != "get_attr":
        if not _takes_channels(node):
            return None
        node, parts = node.all_input_nodes[0], (node, *parts)
    return Held(node, parts)


_OF_CHANNELS = {"chunk": 2, "split": 2, "tensor_split": 2, "narrow": 1}
"""Operations that take a part along one axis, with the position of `dim`."""


def _takes_channels(node: fx.Node) -> bool:
    """Return whether a node takes a part of a kernel along its first two axes, by constant numbers."""
    if len(node.all_input_nodes) != 1:
        return False
    name, source = layout.operation(node), node.args[0]
    if name in _OF_CHANNELS:
        return layout.argument(node, "dim", _OF_CHANNELS[name], 0) in (0, 1)
    if name != "getitem" or not isinstance(source, fx.Node):
        return False
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if layout.operation(source) in _OF_CHANNELS:
        return True
    return all(isinstance(part, slice) for part in index) and all(part == slice(None) for part in index[2:])


class ComputedConv3d(nn.Module):
    """A 3D convolution, transposed or not, which gets its taps together with the kernel that the 2D code computes.

    Tap t is `w_t + share_t · (k − Σ w)`, where the 2D code computes `k` from the sum of the taps `Σ w`, and the shares
    are those with which a 2D kernel fills the taps. So the taps sum to the 2D network's kernel for all weights, also in
    training, and their differences are unchanged. A kernel that is fixed has no `w`.
    """

    shares: Tensor

    def __init__(self, layer: Any, filling: Filling, init: str) -> None:
        super().__init__()
        self.transposed, self.copies = isinstance(layer, nn.ConvTranspose3d), filling.copies
        self.time = getattr(layer, "time", (0, 0, "zeros"))
        self.space = getattr(layer, "space", None)
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = layer.padding, layer.dilation
        self.output_padding, self.groups = layer.output_padding, layer.groups
        self.register_buffer("shares", filling(torch.ones(1, 1, 1, 1), init).reshape(-1, 1, 1), persistent=False)

    def taps(self, weight: Tensor | None, kernel: Tensor | None) -> Tensor:
        """Map `(O, I, T, kH, kW)` and `(O, I, kH, kW)` to `(O, I, T, kH, kW)`; one of them is enough."""
        if weight is None:
            assert kernel is not None
            return self.shares.to(kernel) * kernel.unsqueeze(2)
        if kernel is None:
            return weight
        shares = self.shares.to(weight)
        whole = weight.sum(2, keepdim=True) / self.copies
        return weight - shares * whole + shares * kernel.unsqueeze(2)

    def with_kernel(self, weight: Tensor | None, kernel: Tensor | None, bias: Tensor | None) -> nn.Module:
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

    def forward(self, clip: Tensor, weight: Tensor | None, kernel: Tensor | None, bias: Tensor | None) -> Tensor:
        """Map `(N, C, T, H, W)` to `(N, C', T', H', W')`."""
        clip = pad_time(clip, *self.time)
        clip = self.space(clip) if self.space else clip
        taps = self.taps(weight, kernel)
        if self.transposed:
            sizes = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
            return F.conv_transpose3d(clip, taps, bias, *sizes)
        return F.conv3d(clip, taps, bias, self.stride, self.padding, self.dilation, self.groups)
