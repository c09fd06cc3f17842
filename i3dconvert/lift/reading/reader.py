"""Run a network as often as a reading needs: with other batches, sizes, dtypes, modes and surroundings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from i3dconvert.errors import LiftError, first_line
from i3dconvert.lift.reading.calls import CallRecorder
from i3dconvert.lift.reading.copying import clear_caches, on_meta, without_hooks
from i3dconvert.lift.reading.graph import CallOf, GraphOf
from i3dconvert.lift.reading.kernels import Kernels, KernelsSeen
from i3dconvert.lift.reading.merging import Differ, Runs
from i3dconvert.lift.reading.recording import CONTAINERS, Recorder
from i3dconvert.lift.reading.records import Ref, Row, as_plain, forward_of, mapped, value_at
from i3dconvert.lift.reading.surroundings import OTHERS, Enter, Held, other_device, questions
from i3dconvert.lift.reading.trials import trials
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
    functions: tuple[str, ...] = ()
    """The network's own autograd functions; the graph has the steps of their forward."""

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node of the graph calls, if it calls one."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


def alike(*recorders: Recorder, passing: bool = False) -> bool:
    with suppress(Differ):
        Runs(recorders, passing=passing).common()
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


class Reader:
    def __init__(
        self, model: nn.Module, is_layer: IsLayer, channels: int, entered: frozenset[str] = frozenset()
    ) -> None:
        self.model, self.is_layer, self.channels = model, is_layer, channels
        self.entered = entered
        """Modules that follow the mode, but are part of the graph, as they are in eval mode."""
        self.originals = _names(model)
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        self.dtype = next(iter(dtypes)) if dtypes else torch.get_default_dtype()
        self.other_dtype = _OTHER_DTYPE.get(self.dtype, self.dtype) if len(dtypes) == 1 else self.dtype
        devices = {p.device for p in model.parameters()} - {torch.device("meta")}
        self.device = next(iter(devices), torch.device("cpu"))
        self.roots: list[nn.Module] = []
        self.kernels = Kernels()
        self.cleared = False
        self.apart = True
        self.trials: list[Recorder] = []
        """Runs at trial sizes, which must agree with the runs that are read."""
        self.held: tuple[Held, ...] = ()
        self.latest: CallRecorder

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
        recorder.device, recorder.apart, self.latest = self.device, self.apart, recorder
        handles = recorder.hooked(network)
        kernels = KernelsSeen()
        try:
            with kernels, recorder:
                output = network(recorder.input(image))
                recorder.output = mapped(as_plain(output), recorder.ref)
        except LiftError:
            raise
        except Exception as error:
            given = (
                f"; it was given {images} images of {self.channels}×{size[0]}×{size[1]}, which input= (--input) sets"
            )
            refused = given if reason(error) == first_line(error) else ""
            raise LiftError(f"{recorder.failed_at or recorder.place()}: {reason(error)}{refused}") from error
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
        return recorder

    def first(self, size: Sequence[int], trial: bool) -> CallRecorder:
        """Return the first run.

        What a layer returns unchanged is a tensor of its own, unless a `trial` shows that code asks whether it is the
        layer's input (`y is x`).
        """
        first = self.run(0, size)
        if not (trial and first.returned):
            return first
        self.apart = False
        if alike(first, self.run(0, size), passing=True):
            self.apart = True
            return first
        self.roots, self.kernels = [], Kernels()
        return self.run(0, size)

    def follows_dtype(self, first: Recorder, size: Sequence[int]) -> bool:
        """Return whether a run that differs from the first by its dtype alone takes other steps."""
        with suppress(LiftError):
            return not alike(first, self.recorded(BATCH, size, self.other_dtype))
        return False

    def tried(self, first: Recorder, second: Recorder) -> Sizes:
        """Return the range of sizes at which the network agrees with its runs; raises `Differ` if it differs at one.

        Sizes that the network refuses, or at which its code takes another branch, are skipped, because
        the graph checks its decisions.
        """
        Runs([first, second]).common()
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
                Runs([first, second, trial]).common()
            except Differ as reason:
                if not _decide_otherwise(first, trial):
                    raise Differ(f"it differs for {number} images of {size[0]}×{size[1]}: {reason}") from None
                continue
            self.trials.append(trial)
            images.append(trial.rows[0].value)
        self.held = tuple(self.asked(first))
        heights, widths = ([image.shape[axis] for image in images] for axis in (2, 3))
        return (min(heights), max(heights)), (min(widths), max(widths))

    def asked(self, first: Recorder) -> Iterator[Held]:
        """Yield the questions for the surroundings that decide steps; raises `LiftError` if gradients decide any.

        C++ code, such as a script function's, has steps of its own for gradients, which change no value.
        """
        below = any(isinstance(row.target, OVERLOAD) for row in first.rows)
        others = {name: enter for name, enter in OTHERS.items() if not below or name == "autocast"}
        device = other_device(self.device)
        if self.differs(first, others.values(), device) is None:
            return

        def noted() -> AbstractContextManager[None]:
            return questions(lambda line: self.latest.asks(line))

        for what, enter in others.items():
            line = self.differs(first, (enter, noted), may_fail=what != "autocast")
            if line is not None and what == "gradients":
                raise LiftError(
                    f"{line}: the network's code depends on whether gradients are enabled (torch.is_grad_enabled(), "
                    "requires_grad), so it has two results for an image"
                )
            if line is not None:
                yield Held(what, False, line)
        if (line := self.differs(first, (), device)) is not None:
            yield Held("the device", self.device.type, line)

    def differs(
        self, first: Recorder, entered: Iterable[Enter], device: torch.device | None = None, may_fail: bool = False
    ) -> str | None:
        """Return the line that asked for the surroundings if the network takes other steps in these; else None.

        A run that `may_fail` for reasons of its own tells nothing if it fails.
        """
        own, self.device = self.device, device or self.device
        try:
            with ExitStack() as stack:
                for enter in entered:
                    stack.enter_context(enter())
                run = self.recorded(BATCH, first.rows[0].value.shape[2:], self.dtype)
            Runs([first, run]).common()
            return None
        except Differ as reason:
            row, place = len(first.rows) if reason.row is None else reason.row, first_line(reason)
        except LiftError as reason:
            if may_fail:
                return None
            row, place = len(self.latest.rows), first_line(reason)
        finally:
            self.device = own
        return next((line for at, line in reversed(self.latest.asked) if at <= row), place)

    def reading(
        self, recorders: list[Recorder], trained: Recorder | None = None, fixed: str = "", eval_only: str = ""
    ) -> Reading:
        """Return what runs have in common; what differs in `trained`, a run in training mode, follows the mode."""
        modes = frozenset() if trained is None else frozenset((len(recorders),))
        recorders = recorders if trained is None else [*recorders, trained]
        rows, decisions, output = Runs([*recorders, *self.trials], modes).common()
        root = without_hooks(self.roots[0])
        graph = GraphOf(rows, [recorder.rows for recorder in recorders], root, recorders[0].calls)
        built, functions = graph.build(decisions, output, self.held), tuple(sorted(recorders[-1].functions))
        return Reading(built, root, graph.calls(), fixed, eval_only, kernels=self.kernels, functions=functions)

    def is_whole(self, module: nn.Module, name: str) -> bool:
        if is_parametrized(module) or type(module).__module__.startswith("torch.nn.utils."):
            return False  # what it computes of its parameters is part of the graph
        return self.is_known(module) or (self.follows_mode(module) and name not in self.entered)

    def is_known(self, module: nn.Module) -> bool:
        of_torch = str(forward_of(module).__module__).startswith("torch.nn") and not isinstance(module, CONTAINERS)
        return of_torch or self.is_layer(module)

    def follows_mode(self, module: nn.Module) -> bool:
        """Return whether the network's own code asks for the mode in a module without weights."""
        holds_layers = any(self.is_layer(child) for child in module.modules())
        names = getattr(getattr(forward_of(module), "__code__", None), "co_names", ())
        own = not self.is_known(module) and not holds_layers
        return own and not any(True for _ in module.parameters()) and "training" in names

    def only_evaluated(self, first: Recorder, size: Sequence[int]) -> frozenset[str]:
        """Return the modules that must not follow the mode if the network around them can't.

        The others are like dropout: they return their input in eval mode, and a tensor of its shape in training.
        """
        found = set(self.changing(first, lambda row, at: Ref(at) in first.returned))
        with suppress(LiftError):
            trained = self.run(2, size, training=True)
            found.update(self.changing(trained, lambda row, at: _keeps_shape(row, trained.rows)))
        return frozenset(found)

    def changing(self, run: Recorder, keeps: Callable[[Row, int], bool]) -> Iterator[str]:
        """Yield the modules that follow the mode and are kept whole, if they do not keep their input in `run`."""
        for at, row in enumerate(run.rows):
            if row.kind == "module" and self.follows_mode(self.model.get_submodule(row.target)) and not keeps(row, at):
                yield row.target


def _keeps_shape(row: Row, rows: Sequence[Row]) -> bool:
    given = row.args[0] if row.args else None
    if not isinstance(given, Ref) or not isinstance(row.value, Tensor):
        return False
    return bool(row.value.shape == value_at(rows, given).shape)


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
