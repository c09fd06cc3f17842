"""The two layouts of a value, how one becomes the other, and which operations of a graph work on clips as they are.

* **clip**: `(N, C, T, H, W)`
* **frames**: `(N·T, …)`, time folded into the batch
"""

from __future__ import annotations

import enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from i3dconvert.errors import FramesError


class Layout(enum.Enum):
    """`PLAIN` values do not vary with the clip: parameters, sizes, constants."""

    CLIP = "clip"
    FRAMES = "frames"
    PLAIN = "plain"


def check_clip(clip: Any, channels: int, frames: int, size: tuple[int, int] | None = None) -> Any:
    """Return `clip` if it is `(N, channels, T, H, W)` with T ≥ `frames`, else raise `FramesError`.

    `size` are the height and width, where they are fixed.
    """
    if isinstance(clip, fx.Proxy):
        return clip  # as torch.fx traces: nothing has a size, and nothing can be decided
    if clip.dim() != 5 or clip.shape[1] != channels:
        raise FramesError(f"expected a clip (N, {channels}, T, H, W), got {tuple(clip.shape)}")
    if clip.shape[2] < frames:
        raise FramesError(f"the clip has {clip.shape[2]} frames; the recipe's strides need at least {frames}")
    if size is not None and tuple(clip.shape[3:]) != size:
        (height, width), (h, w) = clip.shape[3:], size
        raise FramesError(
            f"the clip is {height}×{width}; the network was inflated for {h}×{w} alone, and may do something else at "
            f"other sizes: inflate it at this one (size=)"
        )
    return clip


def fold(clip: Tensor) -> Tensor:
    """`(N, C, T, …)` → `(N·T, C, …)`, in memory of its own and in the order that the 2D network's code finds."""
    return clip.transpose(1, 2).flatten(0, 1).contiguous()


def over_time(frames: Tensor, clips: int) -> Tensor:
    """`(N·T, …)` → `(N, T, …)`, N being `clips`."""
    return torch.unflatten(frames, 0, (clips, -1))


def all_frames(value: Tensor) -> Tensor:
    """`(N, T, …)` → `(N·T, …)`."""
    return value.flatten(0, 1)


def unfold(frames: Tensor, clips: int) -> Tensor:
    """`(N·T, C, …)` → `(N, C, T, …)`, N being `clips`."""
    return over_time(frames, clips).transpose(1, 2)


def mean_over_time(frames: Tensor, clips: int) -> Tensor:
    """`(N·T, K)` → `(N, K)`: scores averaged over time, as in Carreira & Zisserman, arXiv:1705.07750, section 2.4."""
    return over_time(frames, clips).mean(1)


def whole_clip(clip: Tensor, how: str) -> Tensor:
    """`(N, C, T, …)` → the same shape: at each frame the mean (`mean`) or the largest (`amax`) over all frames."""
    over: Tensor = getattr(clip, how)(2, keepdim=True)
    return over.expand_as(clip)


def whole_clip_of_frames(frames: Tensor, clips: int, how: str, rows: int = 1) -> Tensor:
    """`(N·T·W, …)` → the same shape: `whole_clip` of values without space, `rows` W for each frame."""
    by_clip = frames.reshape(clips, -1, rows, *frames.shape[1:])
    over: Tensor = getattr(by_clip, how)(1, keepdim=True)
    return over.expand_as(by_clip).flatten(0, 2)


def once_a_clip(draw: Tensor, clips: int) -> Tensor:
    """`(N·T, 1, …)`, drawn for each frame → that of each clip's first frame for all of its frames."""
    by_clip = over_time(draw, clips)
    return by_clip[:, :1].expand_as(by_clip).flatten(0, 1)


def together(*values: Any) -> tuple[Any, ...]:
    """The values as a tuple."""
    return values


def sum_of_taps(kernel: Tensor, copies: int) -> Tensor:
    """`(O, I, T, kH, kW)` → `(O, I, kH, kW)`: the 2D kernel, which the taps hold `copies` times."""
    summed = kernel.sum(2)
    return summed if copies == 1 else summed / copies


def resize_time(clip: Tensor, frames: int, mode: str, align_corners: bool | None) -> Tensor:
    """`(N, C, T, H, W)` → `(N, C, frames, H, W)`: nearest frames in the nearest modes, else linear between them."""
    mode = mode if mode.startswith("nearest") else "bilinear"
    flat = clip.flatten(3)
    resized = F.interpolate(flat, (frames, flat.shape[3]), mode=mode, align_corners=align_corners)
    return resized.reshape(*resized.shape[:3], *clip.shape[3:])


def is_size(node: fx.Node) -> bool:
    """Whether a node reads a tensor's size (and is no module called `size`)."""
    return node.op == "call_method" and node.target == "size"


def length_source(node: fx.Node) -> fx.Node | None:
    """The value whose number of frames a node has, of several: the clip that a `resize_time` brings time to the length
    of, the value that attention's weights are for."""
    if "like" in node.meta:
        like = node.args[node.meta["like"]]
        return like if isinstance(like, fx.Node) else None
    frames = node.args[1] if node.target is resize_time else None
    source = frames.args[0] if isinstance(frames, fx.Node) and is_size(frames) else None
    return source if isinstance(source, fx.Node) else None


ELEMENTWISE = frozenset(
    """
    abs add and_ bfloat16 clamp clamp_max clamp_min clip clone contiguous cos detach div divide double dropout
    elu eq erf exp float floor_divide floordiv ge gelu gt half hardsigmoid hardswish hardtanh iadd identity
    imul isub itruediv le leaky_relu lerp log logsigmoid lt masked_fill maximum minimum mish mul multiply ne
    neg negative ones_like pow reciprocal relu relu6 rsqrt rsub selu sigmoid silu sin softplus sqrt square sub
    subtract tanh to true_divide truediv type type_as where zeros_like
    """.split()
)
"""Operations, as functions or methods, in place or not, that keep every position where it is."""

CHANNELS_FIRST = frozenset(("batch_norm", "group_norm", "instance_norm", "prelu"))
"""Operations on any number of axes, the channels at 1."""

REDUCTIONS = frozenset(("amax", "amin", "mean", "sum"))

CHANNELWISE = {"cat": 1, "concat": 1, "chunk": 2, "split": 2, "tensor_split": 2}
"""Operations along one axis that work on clips when that axis is the channels; the value: where `dim` stands."""

MUTATING = frozenset(("setitem", "iadd", "isub", "imul", "itruediv"))

_LIBRARIES = ("torch", "_operator", "builtins")


def operation(node: fx.Node) -> str:
    """The bare name of what a node calls: `add` for `operator.add`, `torch.add`, `Tensor.add_` alike."""
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    if node.op == "call_function":
        home = getattr(node.target, "__module__", None) or "torch"
        if home.partition(".")[0] in _LIBRARIES:
            return str(getattr(node.target, "__name__", "")).rstrip("_")
    return ""


def mutates(node: fx.Node, root: Any) -> bool:
    """Whether the node changes its first input in place."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(node.target), "inplace", False))
    name = str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))
    return name in MUTATING or (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))


def argument(node: fx.Node, name: str, position: int, default: Any = None) -> Any:
    """An argument of a call, however it was given."""
    return node.kwargs.get(name, node.args[position] if len(node.args) > position else default)


def keeps_clip(node: fx.Node) -> bool:
    """Whether a function or method does to a clip what it does to an image, all its inputs being clips."""
    name = operation(node)
    if name in ELEMENTWISE or name in CHANNELS_FIRST:
        return True
    if name in CHANNELWISE:
        return bool(argument(node, "dim", CHANNELWISE[name], 0) == 1)
    if name == "getitem":
        container, index = node.args
        if isinstance(container, fx.Node) and isinstance(container.meta["value"], tuple | list):
            return True
        return isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None) and isinstance(index[1], slice)
    if name == "pad":
        return bool(argument(node, "mode", 2, "constant") == "constant" and len(_pads(node)) <= 4)
    if name in REDUCTIONS:
        dim = argument(node, "dim", 1)
        return bool(argument(node, "keepdim", 2, False)) and {*(dim if isinstance(dim, list) else [dim])} <= {1, -2, -1}
    return False


def _pads(node: fx.Node) -> Any:
    pads = argument(node, "pad", 1, ())
    return pads if isinstance(pads, tuple | list) else (0,) * 6
