"""Read a network by running it three times on the meta device, with other batches and sizes and in both modes.

`recording.py` records a run, `numbers.py` defines its sizes, `views.py` handles writes through views, `merging.py`
finds what the runs have in common, and `graph.py` builds a graph from that. `reader.py` runs the network as often as
that needs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import fx, nn

from i3dconvert.errors import LiftError, first_line
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading.batch import Multiples, PerSize, holds_batch, is_image, one_each, rows, rows_in, varies
from i3dconvert.lift.reading.copying import on_meta
from i3dconvert.lift.reading.graph import CallOf
from i3dconvert.lift.reading.merging import Differ
from i3dconvert.lift.reading.reader import BATCH, IsLayer, Reader, Reading, alike, reason
from i3dconvert.lift.reading.surroundings import neutral
from i3dconvert.lift.reading.trials import others


@neutral()
def read(model: nn.Module, is_layer: IsLayer, shape: tuple[int, int, int], trial: bool = False) -> Reading:
    """Read `model` by running it on images `(C, H, W)`; it is not modified.

    With `trial`, height and width are free only if the graph also matches the network for other numbers of images, an
    odd size, a smaller one, and four times the size.

    Modules of `torch.nn`, those for which `is_layer` holds, and those without weights that behave differently in
    training are not entered; if the network around them can't follow the mode, only those like dropout.

    Raises `LiftError`, which names the operation, the module, and the part of the network that can be read if the
    whole can't (the backbone of a detector).
    """
    check_is_python(model)
    try:
        return _read(model, is_layer, shape, trial)
    except LiftError as error:
        part = _readable_part(model, is_layer, shape)
        ways = f"inflate(model.{part}), or FILE.py:NAME.{part} as the network of a command"
        raise LiftError(
            f"{error}; its part {part!r} can be inflated: {ways}" if part else str(error)
        ) from error.__cause__


@neutral()
def can_run(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Return whether `model` runs on images `(C, H, W)` while it is being read."""
    channels, *size = shape
    with suppress(LiftError):
        Reader(model, lambda module: False, channels).run(0, size)
        return True
    return False


def check_is_python(model: nn.Module) -> None:
    """Raise `LiftError` for script modules, lazy layers without weights, and tensors that are not dense."""
    name = type(model).__name__
    for module in (one for one in model.modules() if isinstance(one, torch.jit.ScriptModule)):
        of_class = f"make its class {type(module).__name__} an nn.Module, without torch.jit.script_method"
        scripted = type(module).__module__.startswith("torch.jit")
        remedy = "inflate the network before scripting" if scripted else of_class
        raise LiftError(f"{name} contains a script module, which can't be read; {remedy}")
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise LiftError(f"{name} has lazy layers without weights; run it once on an image, then inflate it")
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout is not torch.strided or tensor.is_quantized:
            kind, dense = (tensor.dtype, "dequantize") if tensor.is_quantized else (tensor.layout, "to_dense")
            raise LiftError(f"{name} has a tensor {key} that is not dense ({kind}); replace it with {key}.{dense}()")


def _readable_part(model: nn.Module, is_layer: IsLayer, shape: tuple[int, int, int]) -> str | None:
    """Return the largest direct part that contains layers, takes an image and can be read."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    for name in sorted(parts, key=parts.__getitem__, reverse=True):
        part = model.get_submodule(name)
        with suppress(LiftError):
            if not is_layer(part) and any(map(is_layer, part.modules())):
                _read(part, is_layer, shape, trial=False)
                return name
    return None


def _read(
    model: nn.Module,
    is_layer: IsLayer,
    shape: tuple[int, int, int],
    trial: bool,
    entered: frozenset[str] = frozenset(),
) -> Reading:
    channels, *size = shape
    reader = Reader(model, is_layer, channels, entered)
    first = reader.first(size, trial)
    fixed = "the 2D network accepts no other size"
    for other in others(*size):
        try:
            second = reader.run(1, other)
        except LiftError:
            continue
        try:
            tried = reader.tried(first, second) if trial else None
        except Differ as reason:
            fixed = first_line(reason)
            break
        try:
            return replace(reader.reading([first, second], reader.run(2, size, training=True)), tried=tried)
        except (Differ, LiftError) as reason:
            fixed = first_line(reason)
        if alike(first, second):  # only the training mode differs
            if parts := reader.only_evaluated(first, size):
                return _read(model, is_layer, shape, trial, entered | parts)
            with suppress(Differ):
                return replace(reader.reading([first, second, reader.run(2, size)], eval_only=fixed), tried=tried)
        break
    second = reader.run(1, size)
    try:
        if trial:
            reader.tried(first, second)
        try:
            return reader.reading([first, second], reader.run(2, size, training=True), fixed)
        except (Differ, LiftError) as reason:
            if parts := reader.only_evaluated(first, size):
                return _read(model, is_layer, shape, trial, entered | parts)
            return reader.reading([first, second, reader.run(2, size)], fixed=fixed, eval_only=first_line(reason))
    except Differ as reason:
        if reader.follows_dtype(first, size):
            raise LiftError(
                f"the network's code depends on the dtype of the image: {first_line(reason)}; let it take the same "
                "steps for each dtype (y = y.to(x.dtype) without a condition)"
            ) from None
        raise LiftError(
            f"the network's code depends on the number of images: {first_line(reason)}; code that loops over the "
            "images of a batch can't be read: process them at once; if the network keeps what an earlier run "
            "computed, inflate a new network before it runs"
        ) from None


def place(node: fx.Node) -> str:
    """Return where in the network a node of its graph is, for messages."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    return f"{target} in {facts_of(node).get('scope') or 'the network itself'}"


__all__ = [
    "BATCH",
    "CallOf",
    "Multiples",
    "PerSize",
    "Reading",
    "can_run",
    "check_is_python",
    "holds_batch",
    "is_image",
    "on_meta",
    "one_each",
    "place",
    "read",
    "reason",
    "rows",
    "rows_in",
    "varies",
]
