"""The steps of layers on frames as single operators, inside which torch's exporter does not follow the sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from onnx_ir import DataType
from onnxscript import opset18 as op
from torch import Tensor, nn

from i3dconvert.export.framewise import MinimalConv, Mixing
from i3dconvert.export.steps import Steps, clip_of_frames, minimal_filtering, windows_of_clip

_CLIP = torch.library.custom_op(
    "i3dconvert::clip_of_frames",
    lambda *given: clip_of_frames(*given).clone(),  # an operator returns no view
    mutates_args=(),
    schema="(Tensor frames, SymInt clips, SymInt length, float? fill) -> Tensor",
)
_WINDOWS = torch.library.custom_op(
    "i3dconvert::windows_of_clip",
    windows_of_clip,
    mutates_args=(),
    schema="(Tensor clip, SymInt length, SymInt[] span, int[] first, int[] rows, int[] pace, bool pads) -> Tensor",
)
_FILTERING = torch.library.custom_op(
    "i3dconvert::minimal_filtering",
    minimal_filtering,
    mutates_args=(),
    schema=(
        "(Tensor frames, Tensor[] matrices, Tensor weight, Tensor? bias, SymInt clips, int groups, int[] geometry) "
        "-> Tensor"
    ),
)

# The shapes of the results.


@_CLIP.register_fake
def _(frames: Tensor, clips: int, length: int, fill: float | None) -> Tensor:
    return frames.new_empty(clips, length + int(fill is not None), *frames.shape[1:])


@_WINDOWS.register_fake
def _(clip: Tensor, length: int, span: Sequence[int], first: Sequence[int], *_: Any) -> Tensor:
    return clip.new_empty(clip.shape[0] * span[1], len(first), *clip.shape[2:])


@_FILTERING.register_fake
def _(
    frames: Tensor, matrices: Sequence[Tensor], weight: Tensor, bias: Tensor | None, clips: int, groups: int,
    geometry: Sequence[int],
) -> Tensor:  # fmt: skip
    steps, pads, dilations = geometry[:2], geometry[2:4], geometry[4:]
    sizes = zip(frames.shape[2:], weight.shape[2:], steps, pads, dilations, strict=True)
    space = [(size + 2 * pad - dilation * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, dilation in sizes]
    return frames.new_empty(frames.shape[0], weight.shape[0] // groups, *space)


# Their graphs in ONNX, for the exporter; sizes are tensors of one number.

_REST = [-1]


def _sizes(*parts: Any) -> Any:
    """Join sizes, given as lists of numbers or as tensors."""
    return op.Concat(*(_constant(part) if isinstance(part, list) else part for part in parts), axis=0)


def _size(number: Any) -> Any:
    """Convert a size, a number or a tensor, to a tensor of one number."""
    return _constant([number]) if isinstance(number, int) else op.Reshape(number, _constant(_REST))


def _constant(numbers: Sequence[int]) -> Any:
    return op.Constant(value_ints=[*numbers])


def _clip_of_frames(frames: Any, clips: Any, length: Any, fill: float | None) -> Any:
    clip = op.Reshape(frames, _sizes(_size(clips), _size(length), op.Shape(frames, start=1)))
    if fill is None:
        return clip
    frame = op.Slice(clip, _constant([0]), _constant([1]), _constant([1]))
    outside = op.Expand(op.CastLike(op.Constant(value_float=fill), frames), op.Shape(frame))
    return op.Concat(clip, outside, axis=1)


def _windows_of_clip(clip: Any, length: Any, span: Any, first: Any, rows: Any, pace: Any, pads: bool) -> Any:
    length, (begin, count), (stride, each) = _size(length), span, pace
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    numbers = op.Range(zero, op.Squeeze(_size(count)), one)
    starts = op.Mul(op.Add(numbers, _size(begin)), _constant([stride]))
    seen = op.Add(op.Unsqueeze(starts, _constant([1])), _constant(first))
    inside = op.Min(op.Max(seen, _constant([0])), op.Sub(length, _constant([1])))
    index = op.Add(op.Mul(inside, _constant([each])), _constant(rows))
    if pads:
        beyond = op.Or(op.Less(seen, _constant([0])), op.GreaterOrEqual(seen, length))
        index = op.Where(beyond, op.Mul(length, _constant([each])), index)
    taken = op.Gather(clip, op.Reshape(index, _constant(_REST)), axis=1)
    return op.Reshape(taken, _sizes(_REST, [len(first)], op.Shape(clip, start=2)))


def _minimal_filtering(
    frames: Any, matrices: Any, weight: Any, bias: Any, clips: Any, groups: int, geometry: Any
) -> Any:
    (into, out), clips = matrices, _size(clips)
    rows, length = op.Shape(into, start=0, end=1), op.Shape(into, start=1, end=2)
    moved = op.MatMul(into, op.Reshape(frames, _sizes(clips, length, _REST)))
    stacked = op.Reshape(moved, _sizes(_REST, [weight.shape[1] * groups], op.Shape(frames, start=2)))
    kernel = [weight] if bias is None else [weight, bias]
    strides, pads, dilations = geometry[:2], [*geometry[2:4], *geometry[2:4]], geometry[4:]
    products = op.Conv(stacked, *kernel, group=groups, strides=strides, pads=pads, dilations=dilations)
    found = op.MatMul(out, op.Reshape(products, _sizes(clips, rows, _REST)))
    return op.Reshape(found, _sizes(_REST, [weight.shape[0] // groups], op.Shape(products, start=2)))


# Operators of torch that the exporter would decompose first, or for which it may not expect clips of no frames.


def _batch_norm(given: Any, weight: Any, bias: Any, mean: Any, variance: Any, *options: Any) -> Any:
    training, _momentum, eps, _cudnn = options
    if training or mean is None:
        return _norm_of_batch(given, weight, bias, eps)
    given_or = partial(_or_each_channel, mean)
    return op.BatchNormalization(given, given_or(weight, 1), given_or(bias, 0), mean, variance, epsilon=eps)


def _norm_of_batch(given: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Normalise with the mean and the variance of the batch itself."""
    rank = len(given.shape)
    over, each = _constant([axis for axis in range(rank) if axis != 1]), _constant([1, -1] + [1] * (rank - 2))
    centered = op.Sub(given, op.ReduceMean(given, over))
    variance = op.ReduceMean(op.Mul(centered, centered), over)
    found = op.Div(centered, op.Sqrt(op.Add(variance, op.CastLike(op.Constant(value_float=eps), given))))
    found = found if weight is None else op.Mul(found, op.Reshape(weight, each))
    return found if bias is None else op.Add(found, op.Reshape(bias, each))


def _or_each_channel(like: Any, value: Any, otherwise: float) -> Any:
    return op.Expand(op.CastLike(op.Constant(value_float=otherwise), like), op.Shape(like)) if value is None else value


def _flatten(given: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Join axes, also of no frames at all, where `Reshape` can't find out a size."""
    rank = max(len(given.shape), 1)
    start, behind = start_dim % rank, end_dim % rank + 1
    return op.Reshape(given, _sizes([0] * start, _joined(given, start, behind), _each(given, behind)))


def _joined(given: Any, start: int, behind: int) -> Any:
    if start == 0:
        return _REST
    sizes = given.shape[start:behind]
    if all(isinstance(size, int) for size in sizes):
        return [math.prod(sizes)]
    return op.ReduceProd(op.Shape(given, start=start, end=behind), keepdims=1)


def _each(given: Any, start: int) -> Any:
    sizes = given.shape[start:]
    return [*sizes] if all(isinstance(size, int) for size in sizes) else op.Shape(given, start=start)


def _reshape(given: Any, shape: Sequence[Any]) -> Any:
    return op.Reshape(given, _sizes(*map(_size, shape)), allowzero=1)


_PARTS = {DataType.COMPLEX64: DataType.FLOAT, DataType.COMPLEX128: DataType.DOUBLE}
"""Types of the real and the imaginary parts, the last axis of a complex number in ONNX."""


def _to_dtype(given: Any, dtype: int, non_blocking: bool = False, copy: bool = False, memory: Any = None) -> Any:
    if dtype not in _PARTS:
        return op.Cast(given, to=dtype)
    real = op.Unsqueeze(op.Cast(given, to=_PARTS[dtype]), _constant(_REST))
    return op.Concat(real, op.Sub(real, real), axis=-1)


def _movedim(given: Any, source: int, destination: int) -> Any:
    order = [*range(len(given.shape))]
    order.insert(destination % len(given.shape), order.pop(source))
    return op.Transpose(given, perm=order)


def _swapaxes(given: Any, first: int, second: int) -> Any:
    order = [*range(len(given.shape))]
    order[first], order[second] = order[second], order[first]
    return op.Transpose(given, perm=order)


IN_ONNX: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.batch_norm.default: _batch_norm,
    torch.ops.aten.flatten.using_ints: _flatten,
    torch.ops.aten.movedim.int: _movedim,
    torch.ops.aten.reshape.default: _reshape,
    torch.ops.aten.swapaxes.default: _swapaxes,
    torch.ops.aten.to.dtype: _to_dtype,
    torch.ops.i3dconvert.clip_of_frames.default: _clip_of_frames,
    torch.ops.i3dconvert.windows_of_clip.default: _windows_of_clip,
    torch.ops.i3dconvert.minimal_filtering.default: _minimal_filtering,
}

OPERATORS = Steps(_CLIP, _WINDOWS, _FILTERING)


def as_operators(form: nn.Module) -> None:
    """Let the layers of a form on frames call operators, for tracing."""
    for module in form.modules():
        if isinstance(module, Mixing | MinimalConv):
            module.steps = OPERATORS
