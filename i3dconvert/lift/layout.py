"""The two layouts of a value, their conversion, and the operations of a graph that work on clips unchanged.

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
from i3dconvert.lift.facts import facts_of


class Layout(enum.Enum):
    """`PLAIN` values do not vary with the clip: parameters, sizes, constants."""

    CLIP = "clip"
    FRAMES = "frames"
    PLAIN = "plain"


def check_clip(
    clip: Any, channels: int, frames: int, size: tuple[int, int] | None = None, uneven: tuple[int, ...] = ()
) -> Any:
    """Return `clip` if it is `(N, channels, T, H, W)` with T ≥ `frames` and not in `uneven`, else raise `FramesError`.

    `size` is the height and width if they are fixed. At a T in `uneven`, a branch has one frame and another has more.
    """
    if isinstance(clip, fx.Proxy):
        return clip  # while torch.fx traces, nothing has a size
    if clip.dim() != 5 or clip.shape[1] != channels:
        raise FramesError(f"expected a clip (N, {channels}, T, H, W), got {tuple(clip.shape)}")
    if clip.shape[2] < frames:
        raise FramesError(f"the clip has {clip.shape[2]} frames; the recipe's strides need at least {frames}")
    if uneven and clip.shape[2] in uneven:
        raise FramesError(
            f"a clip of {clip.shape[2]} frames does not fit: branches that meet have different numbers of frames there"
        )
    if size is not None and tuple(clip.shape[3:]) != size:
        (height, width), (h, w) = clip.shape[3:], size
        raise FramesError(
            f"the clip is {height}×{width}; the network was inflated only for {h}×{w}, and may differ at other "
            f"sizes: inflate it at this size (size=)"
        )
    return clip


def fold(clip: Tensor) -> Tensor:
    """Map `(N, C, T, …)` to contiguous `(N·T, C, …)`, in the memory order that the 2D network's code expects."""
    return clip.transpose(1, 2).flatten(0, 1).contiguous()


def over_time(frames: Tensor, clips: int) -> Tensor:
    """Map `(N·T, …)` to `(N, T, …)`, where N is `clips`."""
    return torch.unflatten(frames, 0, (clips, -1))


def all_frames(value: Tensor) -> Tensor:
    """Map `(N, T, …)` to `(N·T, …)`."""
    return value.flatten(0, 1)


def unfold(frames: Tensor, clips: int) -> Tensor:
    """Map `(N·T, C, …)` to `(N, C, T, …)`, where N is `clips`."""
    return over_time(frames, clips).transpose(1, 2)


def clips_of_rows(frames: Tensor, clips: int, rows: int) -> Tensor:
    """Map `(N·T·R, C, H, W)`, with `rows` R (windows, heads) for each frame, to `(N·R, C, T, H, W)`."""
    by_clip = frames.reshape(clips, -1, rows, *frames.shape[1:])
    return by_clip.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)


def rows_of_clips(clip: Tensor, rows: int) -> Tensor:
    """Map `(N·R, C, T, H, W)` to `(N·T·R, C, H, W)`."""
    return torch.unflatten(clip, 0, (-1, rows)).permute(0, 3, 1, 2, 4, 5).flatten(0, 2)


def mean_over_time(frames: Tensor, clips: int) -> Tensor:
    """Average scores over time, `(N·T, K)` → `(N, K)`, as in Carreira & Zisserman, arXiv:1705.07750, section 2.4."""
    return over_time(frames, clips).mean(1)


def whole_clip(clip: Tensor, how: str) -> Tensor:
    """Replace each frame of `(N, C, T, …)` by the mean (`mean`) or the maximum (`amax`) over all frames."""
    over: Tensor = getattr(clip, how)(2, keepdim=True)
    return over.expand_as(clip)


def whole_clip_of_frames(frames: Tensor, clips: int, how: str, rows: int = 1) -> Tensor:
    """Apply `whole_clip` to values without space, `(N·T·W, …)`, `rows` W (windows, groups) for each frame."""
    by_clip = frames.reshape(clips, -1, rows, *frames.shape[1:])
    over: Tensor = getattr(by_clip, how)(1, keepdim=True)
    return over.expand_as(by_clip).flatten(0, 2)


def once_a_clip(draw: Tensor, clips: int) -> Tensor:
    """Use the random draw of each clip's first frame for all of its frames, `(N·T, 1, …)`."""
    by_clip = over_time(draw, clips)
    return by_clip[:, :1].expand_as(by_clip).flatten(0, 1)


def together(*values: Any) -> tuple[Any, ...]:
    """Return the values as a tuple."""
    return values


def sum_of_taps(kernel: Tensor, copies: int) -> Tensor:
    """Map `(O, I, T, kH, kW)` to the 2D kernel `(O, I, kH, kW)`, which the taps contain `copies` times."""
    summed = kernel.sum(2)
    return summed if copies == 1 else summed / copies


def resize_time(clip: Tensor, frames: int, mode: str, align_corners: bool | None) -> Tensor:
    """Map `(N, C, T, H, W)` to `(N, C, frames, H, W)`: nearest frames in the nearest modes, else linear."""
    mode = mode if mode.startswith("nearest") else "bilinear"
    flat = clip.flatten(3)
    resized = F.interpolate(flat, (frames, flat.shape[3]), mode=mode, align_corners=align_corners)
    return resized.reshape(*resized.shape[:3], *clip.shape[3:])


def is_size(node: fx.Node) -> bool:
    """Return whether a node reads a tensor's size (and is not a module called `size`)."""
    return node.op == "call_method" and node.target == "size"


def length_source(node: fx.Node) -> fx.Node | None:
    """Return the value whose number of frames a node with several inputs has: the clip whose length a `resize_time`
    takes, or the value that attention's weights apply to."""
    if "like" in facts_of(node):
        like = node.args[facts_of(node)["like"]]
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
"""Operations, as functions or methods, in place or not, that keep the position of every value."""

CHANNELS_FIRST = frozenset(("batch_norm", "group_norm", "instance_norm", "prelu"))
"""Operations on any number of axes, with the channels at axis 1."""

REDUCTIONS = frozenset(("amax", "amin", "mean", "sum"))

CHANNELWISE = {"cat": 1, "concat": 1, "chunk": 2, "split": 2, "tensor_split": 2}
"""Operations along one axis that work on clips if it is that of the channels, with the position of `dim`."""

MUTATING = frozenset(("setitem", "iadd", "isub", "imul", "itruediv"))

_LIBRARIES = ("torch", "_operator", "builtins")


def operation(node: fx.Node) -> str:
    """Return the bare name of what a node calls: `add` for `operator.add`, `torch.add` and `Tensor.add_`."""
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    if node.op == "call_function":
        home = getattr(node.target, "__module__", None) or "torch"
        if home.partition(".")[0] in _LIBRARIES:
            return str(getattr(node.target, "__name__", "")).rstrip("_")
    return ""


def mutates(node: fx.Node, root: Any) -> bool:
    """Return whether the node changes its first input in place."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(node.target), "inplace", False))
    name = str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))
    return name in MUTATING or (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))


def argument(node: fx.Node, name: str, position: int, default: Any = None) -> Any:
    """Return an argument of a call, passed by position or by name."""
    return node.kwargs.get(name, node.args[position] if len(node.args) > position else default)


def keeps_clip(node: fx.Node) -> bool:
    """Return whether a function or method treats a clip like an image if all of its inputs are clips."""
    name = operation(node)
    if any(one is torch.channels_last for one in (*node.args, *node.kwargs.values())):  # which only images have
        return False
    if name in ELEMENTWISE or name in CHANNELS_FIRST:
        return True
    if name in CHANNELWISE:
        return bool(argument(node, "dim", CHANNELWISE[name], 0) == 1)
    if name == "getitem":
        container, index = node.args
        if isinstance(container, fx.Node) and isinstance(facts_of(container)["value"], tuple | list | dict):
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
