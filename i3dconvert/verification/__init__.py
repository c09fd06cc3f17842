"""The proof: weight identity, forward equality, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert import checkpoint, media
from i3dconvert.backbones import Origin
from i3dconvert.backbones.changes import IN_INITS, beheaded, head_of
from i3dconvert.errors import FramesError, I3DError, LayoutError, VerificationError, WeightsError
from i3dconvert.lift.lengths import lengths
from i3dconvert.lift.network import Network3d
from i3dconvert.memory import check_room
from i3dconvert.verification.effort import (
    COSTS,
    SHARES,
    Meter,
    Progress,
    cost,
    legal_lengths,
    silent,
    spoken,
    timed,
    within,
)
from i3dconvert.verification.forward import Narrowing, OwnRounding, check_outputs, evaluating, outputs, replicated
from i3dconvert.verification.layers import compare_layers
from i3dconvert.verification.reach import check_reach
from i3dconvert.verification.report import Check, LayerError, Picture, Report
from i3dconvert.verification.weights import check_weights
from i3dconvert.weights import digest

__all__ = ["TOLERANCES", "Check", "LayerError", "Picture", "Report", "Settings", "verify", "verify_file"]

TOLERANCES: Mapping[torch.dtype, float] = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Relative, for forward equality: rounding in float64 leaves 1e-15, so that 1e-12 is a proof."""

FRAMES = 16
SMALLEST = 64
"""Height and width below which nothing is made smaller to save time."""

STRIDE = 32
"""Of most networks, of which their images have to be multiples."""

FRAMES_AT_ONCE = 32
"""Of pictures, so that any number of them fits into memory; larger allocations take longer, too."""

CLIPS = 2
"""Two clips at once, so that clips and frames can't be taken for each other."""


@dataclass(frozen=True)
class Settings:
    """What to verify on. `frames`, `size`: None for 16 (or the recipe's minimum) and the backbone's own size, or fewer
    and a smaller one where that would take more than `seconds`."""

    frames: int | None = None
    size: int | None = None
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32)
    tolerance: float | None = None
    layers: bool = False
    images: Sequence[Path] = ()
    seed: int = 0
    device: str = "cpu"
    """Where torch runs both networks; on a GPU without the TF32 that would round float32 to ten bits."""
    seconds: float = 40.0
    """For the forward passes, in which frames and size are chosen; reading and hashing come on top."""
    clips: int = 2
    """At once, so that clips and frames can't be taken for each other."""

    def tolerance_for(self, dtype: torch.dtype) -> float:
        """The relative error allowed in `dtype`."""
        return self.tolerance if self.tolerance is not None else TOLERANCES[dtype]


def verify(
    model2d: nn.Module, model3d: Network3d, settings: Settings | None = None, *, progress: Progress = silent
) -> Report:
    """Check that `model3d`, an inflated `model2d`, is equal to it: weight identity, then forward equality.

    What the settings leave open is chosen so that it takes about as long as they say; `Report.notes` says what.
    The networks are left as they are. Raises `FramesError` when the settings' frames are too few for the recipe,
    `MediaError` for pictures that can't be read.
    """
    settings, report = settings or Settings(), Report()
    progress("weight identity")
    report.checks.append(check_weights(model3d.inflation, model2d.state_dict(), model3d.state_dict()))
    origin: Origin | None = model3d.meta.get("origin")
    with ExitStack() as stack:
        if origin is not None and origin.changes.head == "fresh":
            # A head drawn at random may hide a difference in the features that go into it.
            stack.enter_context(beheaded(model2d, model3d, name=head_of(model2d)))
        settings = _bounded(model3d, settings, report, progress)
        _check_forward(model2d, model3d, settings, report, progress)
        image = noise(model3d.inflation.input, settings)[:1]
        reach = check_reach(model3d, image, settings.dtypes[-1], settings.device)
        report.checks += [reach] if reach is not None else []
    if settings.layers or not report.passed:
        progress("layer by layer")
        images = noise(model3d.inflation.input, settings)
        dtype = settings.dtypes[0]
        tolerance = settings.tolerance_for(dtype)
        assert settings.frames is not None
        report.layers = compare_layers(model2d, model3d, images, settings.frames, dtype, tolerance, settings.device)
    return report


def verify_file(
    path: Path,
    settings: Settings | None = None,
    reference: Path | None = None,
    layout: str = "",
    *,
    progress: Progress = silent,
) -> Report:
    """Check a checkpoint, or an exported `.onnx`, against the 2D network of its metadata.

    `reference` is a file of 2D weights to use instead of the recorded origin; its hash must be the recorded one. With
    `layout`, the tensors are also loaded into that framework's own network, whose forward pass is compared.
    Raises `CheckpointError`, `WeightsError`, `VerificationError`, `FramesError`, `LayoutError`.
    """
    settings = settings or Settings()
    if path.suffix == ".onnx":
        from i3dconvert.verification.onnx import verify_onnx

        if layout:
            raise LayoutError(f"{path} is a graph, which no framework's network loads; --layout is for checkpoints")
        return verify_onnx(path, settings, reference, progress)
    document, state = checkpoint.read(path)
    progress("integrity")
    report = Report([_check_integrity(document, state)])
    progress("reading the 2D network")
    model2d = reference_of(document, path, reference)
    if document.foreign:
        from i3dconvert.verification.framework import check_made

        return Report([*report.checks, *check_made(layout, document, state, model2d, settings, progress)])
    network = checkpoint.rebuild(document, model2d)
    identity = check_weights(network.inflation, model2d.state_dict(), state)
    if {k: v.shape for k, v in network.state_dict().items()} != {k: v.shape for k, v in state.items()}:
        report.checks.append(identity)
        return report
    assert document.origin is not None
    if document.origin.changes.channels:
        report.checks += check_inputs(document.origin, reference)
    rest = verify(model2d, checkpoint.filled(network, state, path), settings, progress=progress)
    if layout:
        from i3dconvert.verification.framework import check_framework

        rest.checks += check_framework(layout, document, state, model2d, settings, progress)
    return replace(rest, checks=[*report.checks, *rest.checks])


def _check_integrity(document: checkpoint.Document, state: Mapping[str, Tensor]) -> Check:
    """Whether a file holds what it was written with, by the hashes in it."""
    same = {"metadata": document.intact, "tensors": digest(state) == document.sha256}
    changed = " and ".join(what for what, unchanged in same.items() if not unchanged)
    detail = (
        f"the file's {changed} changed since it was written" if changed else "tensors and metadata have their SHA-256"
    )
    return Check("integrity", not changed, detail)


def reference_of(document: checkpoint.Document, path: Path, reference: Path | None) -> nn.Module:
    """The 2D network that a file was made from, with its weights."""
    if document.finetuned:
        raise VerificationError(f"{path} holds fine-tuned weights: there is no 2D network that it should be equal to")
    if document.origin is None:
        raise VerificationError(
            f"{path} was made from a module in memory; verify it in Python: verify(model2d, model3d)"
        )
    try:
        return document.origin.load(reference)
    except WeightsError as error:
        hint = "" if reference or "--reference" in str(error) else "; --reference PATH names a file with the 2D weights"
        raise WeightsError(f"{error}{hint}") from None


def _bounded(network: Network3d, settings: Settings, report: Report, progress: Progress) -> Settings:
    """The settings with their frames, and where those of a user's leave it open, no more than they have time for.

    How long a pass takes is measured on one clip of the fewest frames. Raises `FramesError`.
    """
    least = network.inflation.minimum_frames
    usual = settings.frames or max(FRAMES, least)
    try:
        lengths(network.graph, usual)
    except FramesError as error:
        raise FramesError(f"{error}; --frames {least}" if usual < least else str(error)) from None

    def check(frames: int) -> None:
        for dtype in settings.dtypes:
            check_room(network, frames, settings.clips, settings.size, dtype, settings.device)

    if settings.frames is not None:
        check(usual)
        return settings
    frames, dtype = legal_lengths(network, usual), settings.dtypes[-1]
    check(frames[-1])
    frames = [count for count in frames if _passes(check, count)]
    if frames[0] != usual:
        report.notes.append(f"{frames[0]} frames: {usual} take more memory than is free")
        usual = frames[0]
    progress("how long it takes")
    whole = settings.size or network.inflation.input[-1]

    def run_once(size: int) -> None:
        one = replace(settings, size=size if size != whole else settings.size)
        clip = replicated(noise(network.inflation.input, one)[:1], frames[-1]).to(settings.device, dtype)
        with evaluating(network, dtype, device=settings.device):
            _run("3D", network, clip)

    spent = timed(lambda: run_once(whole))
    one = spent / frames[-1] / COSTS.get(dtype, 1.0)

    def estimate(count: int, size: int) -> float:
        noise_and_pictures = cost(settings.dtypes, CLIPS) * (size / whole) ** 2, cost(settings.dtypes, pictures)
        return one * (count + 1) * sum(noise_and_pictures)

    pictures = len(settings.images)

    def sizes() -> Iterator[int]:
        """The whole one, and smaller ones that the network takes, of whole strides."""
        yield whole
        for size in (int(whole * share) // STRIDE * STRIDE for share in SHARES):
            if network.inflation.any_size and settings.size is None and size >= SMALLEST:
                with suppress(VerificationError):
                    run_once(size)
                    yield size

    count, size = within(settings.seconds - spent, frames, sizes(), estimate)
    if (count, size) != (usual, whole):
        report.notes.append(
            f"{count} frames{f' of {size}×{size}' if size != whole else ''}: --frames {usual}"
            f"{f' --size {whole}' if size != whole else ''} would take about {spoken(estimate(usual, whole))}"
        )
    # Where even that takes twice the time, one clip has to do.
    clips = settings.clips if estimate(count, size) <= 2 * settings.seconds or settings.seconds <= 0 else 1
    if clips < settings.clips:
        report.notes.append("one clip at a time instead of two")
    return replace(settings, frames=count, size=settings.size if size == whole else size, clips=clips)


def _passes(check: Callable[[int], None], frames: int) -> bool:
    try:
        check(frames)
    except FramesError:
        return False
    return True


def noise(shape: tuple[int, int, int], settings: Settings) -> Tensor:
    """Images `(N, C, H, W)` of `shape`, or of the settings' size, in float64."""
    channels, height, width = shape
    height, width = (settings.size, settings.size) if settings.size else (height, width)
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randn(settings.clips, channels, height, width, generator=generator, dtype=torch.float64)


def _check_forward(
    model2d: nn.Module, network: Network3d, settings: Settings, report: Report, progress: Progress
) -> None:
    frames, given = settings.frames, noise(network.inflation.input, settings)
    assert frames is not None
    exact: dict[str, list[Tensor]] = {}
    origin: Origin | None = network.meta.get("origin")
    pictures = read_pictures(settings.images, origin)
    of_features = " of features" if origin is not None and origin.changes.head else ""
    meter = Meter(progress, network, cost(settings.dtypes, settings.clips + len(settings.images)))
    for dtype in settings.dtypes:
        name = str(dtype).removeprefix("torch.")
        for what, images in (("noise", given), ("pictures", pictures)):
            if images is None:
                continue
            shape = "×".join(map(str, (frames, *images.shape[2:])))
            batches = torch.split(images, max(FRAMES_AT_ONCE // frames, CLIPS))
            step = f"forward equality in {name} on {what}"
            with Narrowing() as narrowing, meter.during(step, cost([dtype], len(images)), len(batches)):
                reference, value = run_both(model2d, network, batches, frames, dtype, settings.device)
            label = f"forward equality{of_features}, {name}, {what} {shape}"
            check = check_outputs(label, reference, value, settings.tolerance_for(dtype))
            if not check.passed and settings.tolerance is None:
                if dtype == torch.float64:
                    own = OwnRounding.of_narrowing(narrowing.found)
                else:
                    own = OwnRounding.between(exact.get(what), reference)
                check = own.second_look(check, reference, value)
            if dtype == torch.float64 and check.passed:
                exact[what] = reference
            report.checks.append(check)
            scores = not of_features and reference[0].dim() == value[0].dim() == 2
            if what == "pictures" and dtype is settings.dtypes[-1] and scores:
                ours, theirs = (logits[0].double().softmax(-1) for logits in (value, reference))
                add_pictures(report, settings.images, origin, theirs, ours)


def check_inputs(origin: Origin, reference: Path | None = None) -> list[Check]:
    """Whether the 2D network over other channels gives what the one over RGB gives, where its `in_init` promises that.

    Its kernels are rounded to the dtype they are stored in, and so the comparison is held to float32's rounding.
    """
    changes = replace(origin.changes, head="")
    rgb = replace(changes, channels=0).apply(origin.unchanged().load(reference))
    other = changes.apply(origin.unchanged().load(reference))
    images = torch.randn(CLIPS, *origin.unchanged().input, generator=torch.Generator().manual_seed(0))
    pair = IN_INITS[changes.in_init].inputs(images.double(), changes.channels)
    if pair is None:
        return []
    with evaluating(rgb, torch.float64), evaluating(other, torch.float64):
        expected, value = outputs(rgb(pair[0])), outputs(other(pair[1]))
    name = f"input of {changes.channels} channel{'s' * (changes.channels > 1)} ({changes.in_init}) beside RGB"
    return [check_outputs(name, expected, value, TOLERANCES[torch.float32])]


def run_both(
    model2d: nn.Module,
    network: nn.Module,
    batches: Sequence[Tensor],
    frames: int,
    dtype: torch.dtype,
    device: str = "cpu",
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of the 2D network on batches of images, once each, and of the 3D network on them replicated.

    Raises `VerificationError` for a network that stops on them.
    """
    batches = [batch.to(device, dtype) for batch in batches]
    with evaluating(model2d, dtype, network.state_dict(), device):
        reference = [_run("2D", model2d, batch) for batch in batches]
    with evaluating(network, dtype, device=device):
        value = [_run("3D", network, replicated(batch, frames)) for batch in batches]
    return _joined(reference), _joined(value)


def _run(which: str, network: nn.Module, given: Tensor) -> list[Tensor]:
    """The outputs of the 2D or the 3D network, on the CPU."""
    try:
        return [tensor.cpu() for tensor in outputs(network(given))]
    except I3DError:
        raise
    except Exception as error:  # a network of the user's raises whatever it likes
        shape = "×".join(map(str, given.shape[1:]))
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, MemoryError) or "allocate" in reason:
            reason = "it needs more memory than there is; fewer --frames or a smaller --size need less"
        raise VerificationError(f"the {which} network stops at an input of {shape}: {reason}") from error


def _joined(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(tensors) if len(tensors) > 1 else tensors[0] for tensors in zip(*parts, strict=True)]


def read_pictures(paths: Sequence[Path], origin: Origin | None) -> Tensor | None:
    """The pictures at `paths` through the backbone's own preprocessing, `(N, 3, H, W)`; None for no paths."""
    if not paths:
        return None
    if origin is None:
        raise VerificationError("pictures need a backbone's preprocessing, which a module in memory does not have")
    return media.read_pictures(paths, origin.preprocessing)


def add_pictures(
    report: Report, paths: Sequence[Path], origin: Origin | None, reference: Tensor, value: Tensor, count: int = 5
) -> None:
    """Put the best classes of each picture, by `(N, K)` probabilities, side by side; they must be the same."""
    names = origin.class_names() if origin is not None else []
    for path, scores2d, scores3d in zip(paths, reference, value, strict=True):
        best = Picture(str(path), top_classes(scores2d, names, count), top_classes(scores3d, names, count))
        same = [name for name, _ in best.classes2d] == [name for name, _ in best.classes3d]
        report.pictures.append(best)
        detail = ", ".join(f"{name} {score:.2f}" for name, score in best.classes3d[:3])
        report.checks.append(Check(f"top classes, {path.name}", same, detail))


def top_classes(probabilities: Tensor, names: Sequence[str], count: int) -> tuple[tuple[str, float], ...]:
    """`(K,)` → the best classes with their probabilities."""
    best = probabilities.topk(min(count, len(probabilities)))
    pairs: Any = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((names[index] if names else f"class {index}", value) for index, value in pairs)
