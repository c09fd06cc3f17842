"""Read a network by running it three times on the meta device, with other batches and sizes and in both modes.

`recording.py` records a run, `numbers.py` defines its sizes, `views.py` handles writes through views, `merging.py`
finds what the runs have in common, and `graph.py` builds a graph from that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from i3dconvert.errors import LiftError, first_line
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading.batch import Multiples, PerSize, holds_batch, is_image, one_each, rows, rows_in, varies
from i3dconvert.lift.reading.calls import CallRecorder
from i3dconvert.lift.reading.copying import clear_caches, on_meta, without_hooks
from i3dconvert.lift.reading.graph import CallOf, GraphOf
from i3dconvert.lift.reading.kernels import Kernels, KernelsSeen
from i3dconvert.lift.reading.merging import Differ, Runs, common
from i3dconvert.lift.reading.recording import CONTAINERS, Recorder
from i3dconvert.lift.reading.records import as_plain, mapped
from i3dconvert.lift.reading.trials import others, trials
from i3dconvert.lift.reading.views import OVERLOAD

BATCHES = (2, 5, 3)
"""Images in each run; the values at the nodes are those of the first."""
BATCH = BATCHES[0]

IsLayer = Callable[[nn.Module], bool]
Sizes = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Reading:
    """A graph, the weightless copy of the network that its targets refer to, and why its sizes are fixed."""

    graph: fx.Graph
    root: nn.Module
    calls: tuple[CallOf, ...] = ()
    """The calls of modules; the first is the network's own, and each node has its call's index."""
    fixed: str = ""
    """The reason if height and width must be those that it was read at; else empty."""
    eval_only: str = ""
    """The difference in training, if there is one and so only the eval mode is known; else empty."""
    tried: Sizes | None = None
    """The least and the greatest height and width at which network and graph agree; None if not tried."""
    kernels: Kernels = field(default_factory=Kernels)
    """The 2D kernels that the network runs."""


def read(model: nn.Module, is_layer: IsLayer, shape: tuple[int, int, int], trial: bool = False) -> Reading:
    """Read `model` by running it on images `(C, H, W)`; it is not modified.

    With `trial`, height and width are free only if the graph also matches the network for other numbers of images, an
    odd size, a smaller one, and four times the size.

    Modules of `torch.nn`, those for which `is_layer` holds, and those without weights that behave differently in
    training are not entered. Raises `LiftError`, which names the operation, the module, and the part of the network
    that can be read if the whole can't (the backbone of a detector).
    """
    check_is_python(model)
    try:
        return _read(model, is_layer, shape, trial)
    except LiftError as error:
        part = _readable_part(model, is_layer, shape)
        hint = f"; its part {part!r} can be inflated: inflate(model.{part})" if part else ""
        raise LiftError(f"{error}{hint}") from error.__cause__


def can_run(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Return whether `model` runs on images `(C, H, W)` while it is being read."""
    channels, *size = shape
    with suppress(LiftError):
        _Reader(model, lambda module: False, channels).run(0, size)
        return True
    return False


def check_is_python(model: nn.Module) -> None:
    """Raise `LiftError` for script modules and for lazy layers without weights."""
    name = type(model).__name__
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise LiftError(f"{name} contains a script module, which can't be read; inflate the network before scripting")
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise LiftError(f"{name} has lazy layers without weights; run it once on an image, then inflate it")


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


def _read(model: nn.Module, is_layer: IsLayer, shape: tuple[int, int, int], trial: bool) -> Reading:
    channels, *size = shape
    reader = _Reader(model, is_layer, channels)
    first = reader.run(0, size)
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
            return replace(reader.reading([first, second, reader.run(2, size, training=True)]), tried=tried)
        except (Differ, LiftError) as reason:
            fixed = first_line(reason)
        if _alike(first, second):  # only the training mode differs
            with suppress(Differ):
                return replace(reader.reading([first, second, reader.run(2, size)], eval_only=fixed), tried=tried)
        break
    second = reader.run(1, size)
    try:
        if trial:
            reader.tried(first, second)
        try:
            return reader.reading([first, second, reader.run(2, size, training=True)], fixed)
        except (Differ, LiftError) as reason:
            return reader.reading([first, second, reader.run(2, size)], fixed, eval_only=first_line(reason))
    except Differ as reason:
        if reader.follows_dtype(first, size):
            raise LiftError(f"the network's code depends on the dtype of the image: {first_line(reason)}") from None
        raise LiftError(
            f"the network's code depends on the number of images: {first_line(reason)}; code that loops over the "
            "images of a batch can't be read, let it process them at once"
        ) from None


def _alike(*recorders: Recorder) -> bool:
    with suppress(Differ):
        common(Runs(recorders))
        return True
    return False


def _decide_otherwise(first: Recorder, trial: Recorder) -> bool:
    """Return whether the first difference between the runs is a decision on a size."""
    for ours, theirs in zip(first.decisions, trial.decisions, strict=False):
        if (ours.operation, ours.row) != (theirs.operation, theirs.row):
            return False
        if ours.result != theirs.result:
            return True
    return False


_OTHER_DTYPE = {torch.float32: torch.float64, torch.float64: torch.float32}


class _Cached(Exception):
    """The network has caches, which may have held values of an earlier run."""


class _Reader:
    def __init__(self, model: nn.Module, is_layer: IsLayer, channels: int) -> None:
        self.model, self.is_layer, self.channels = model, is_layer, channels
        self.originals = _names(model)
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        self.dtype = next(iter(dtypes)) if dtypes else torch.get_default_dtype()
        self.other_dtype = _OTHER_DTYPE.get(self.dtype, self.dtype) if len(dtypes) == 1 else self.dtype
        devices = {p.device for p in model.parameters()} - {torch.device("meta")}
        self.device = next(iter(devices), torch.device("cpu"))
        self.roots: list[nn.Module] = []
        self.kernels = Kernels()
        self.cleared = False
        self.trials: list[Recorder] = []
        """Runs at trial sizes, which must agree with the runs that are read."""

    def run(self, index: int, size: Sequence[int], training: bool = False) -> CallRecorder:
        """Return the run number `index`; number 1 uses another dtype, unless the network accepts only its own."""
        if index == 1 and self.other_dtype != self.dtype:
            with suppress(LiftError):
                return self.recorded(BATCHES[index], size, self.other_dtype, training)
            run = self.recorded(BATCHES[index], size, self.dtype, training)
            self.other_dtype = self.dtype
            return run
        return self.recorded(BATCHES[index], size, self.dtype, training)

    def recorded(self, images: int, size: Sequence[int], dtype: torch.dtype, training: bool = False) -> CallRecorder:
        """Run a copy of the network, because networks keep what they computed, and return the record.

        The first run of a network with caches is repeated with empty caches.
        """
        try:
            return self.once(images, size, dtype, training)
        except _Cached:
            return self.once(images, size, dtype, training)

    def once(self, images: int, size: Sequence[int], dtype: torch.dtype, training: bool) -> CallRecorder:
        network = on_meta(self.model).train(training)
        if dtype != self.dtype:
            network = network.to(dtype)
        image = torch.empty(images, self.channels, *size, dtype=dtype, device="meta")
        recorder = CallRecorder({**self.originals, **_names(network)}, self.is_whole)
        recorder.device = self.device
        handles = recorder.hooked(network)
        kernels = KernelsSeen()
        try:
            with kernels, recorder:
                output = network(recorder.input(image))
                recorder.output = mapped(as_plain(output), recorder.ref)
        except LiftError:
            raise
        except Exception as error:
            raise LiftError(f"{recorder.failed_at or recorder.place()}: {reason(error)}") from error
        finally:
            for handle in handles:
                handle.remove()
            if recorder.left_keys:
                clear_caches()
                if not self.cleared:
                    self.cleared = True
                    raise _Cached
        self.roots = self.roots or [network]
        self.kernels = self.kernels or kernels.kernels()
        recorder.training = training
        return recorder

    def follows_dtype(self, first: Recorder, size: Sequence[int]) -> bool:
        """Return whether a run that differs from the first by its dtype alone takes other steps."""
        with suppress(LiftError):
            return not _alike(first, self.recorded(BATCH, size, self.other_dtype))
        return False

    def tried(self, first: Recorder, second: Recorder) -> Sizes:
        """Return the range of sizes at which the network agrees with its runs; raises `Differ` if it differs at one.

        Sizes that the network refuses, or at which its code takes another branch, are skipped, because
        the graph checks its decisions.
        """
        common(Runs([first, second]))
        self.trials = []
        images = [recorder.rows[0].value for recorder in (first, second)]
        free = images[0].shape[2:] != images[1].shape[2:]
        height, width = images[0].shape[2:]
        for number, size in trials(height, width, free):
            try:
                trial = self.recorded(number, size, self.dtype)
            except LiftError:
                continue
            try:
                common(Runs([first, second, trial]))
            except Differ as reason:
                if not _decide_otherwise(first, trial):
                    raise Differ(f"it differs for {number} images of {size[0]}×{size[1]}: {reason}") from None
                continue
            if not self.trials:
                self.check_without_gradients(first, number, size)
            self.trials.append(trial)
            images.append(trial.rows[0].value)
        heights, widths = ([image.shape[axis] for image in images] for axis in (2, 3))
        return (min(heights), max(heights)), (min(widths), max(widths))

    def check_without_gradients(self, first: Recorder, images: int, size: Sequence[int]) -> None:
        """Raise `LiftError` if the network takes other steps without gradients than in the first run.

        C++ code, such as a script function's, has steps of its own for gradients, which change no value.
        """
        if any(isinstance(row.target, OVERLOAD) for row in first.rows):
            return
        try:
            with torch.no_grad():
                run = self.recorded(images, size, self.dtype)
        except LiftError:
            return
        try:
            common(Runs([first, run]))
        except Differ as reason:
            raise LiftError(
                "the network's code depends on whether gradients are enabled (torch.is_grad_enabled(), requires_grad), "
                f"so it has two results for an image: {first_line(reason)}"
            ) from None

    def reading(self, recorders: list[Recorder], fixed: str = "", eval_only: str = "") -> Reading:
        modes = frozenset(i for i, recorder in enumerate(recorders) if recorder.training)
        rows, decisions, output = common(Runs([*recorders, *self.trials], modes))
        root = without_hooks(self.roots[0])
        graph = GraphOf(rows, [recorder.rows for recorder in recorders], root, recorders[0].calls)
        return Reading(graph.build(decisions, output), root, graph.calls(), fixed, eval_only, kernels=self.kernels)

    def is_whole(self, module: nn.Module, name: str) -> bool:
        if is_parametrized(module) or type(module).__module__.startswith("torch.nn.utils."):
            return False  # what it computes of its parameters is part of the graph
        if self.is_layer(module):
            return True
        if type(module).forward.__module__.startswith("torch.nn") and not isinstance(module, CONTAINERS):
            return True
        holds_layers = any(self.is_layer(child) for child in module.modules())
        forward = getattr(type(module).forward, "__code__", None)
        without_weights = not any(True for _ in module.parameters())
        return without_weights and not holds_layers and "training" in getattr(forward, "co_names", ())


def _names(model: nn.Module) -> dict[int, str]:
    """Return the names of a network's tensors by identity; the first, if a tensor has several."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {id(tensor): name for name, tensor in reversed(named)}


def reason(error: Exception) -> str:
    """Return in one line why something failed; reworded if the number of a result's elements depends on the data."""
    if any(words in str(error) for words in ("register_meta", "meta tensor", "data-dependent", "Meta backend")):
        return "the shape of its result depends on the data, not only on shapes, which a graph can't represent"
    if "no fake impl" in str(error):
        return "torch can't tell the shape of its result from its inputs' shapes, which a graph needs"
    return first_line(error)


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
