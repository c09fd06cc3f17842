"""Forward equality of an exported ONNX file, run by onnxruntime, and the 2D network in its metadata."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from i3dconvert.checkpoint import named
from i3dconvert.comparison.forward import check_outputs, evaluating, outputs, replicated
from i3dconvert.comparison.report import Check, Report
from i3dconvert.errors import CheckpointError, FramesError, VerificationError, listed
from i3dconvert.export.deployed import best_beside
from i3dconvert.export.runtime import TOLERANCES, Runtime, as_input, read_document
from i3dconvert.export.seal import broken
from i3dconvert.progress import Progress
from i3dconvert.streaming.runtime import is_stream, whole
from i3dconvert.verification.pictures import add_pictures, read_pictures
from i3dconvert.verification.running import reference_of
from i3dconvert.verification.settings import CLIPS, FRAMES, Settings
from i3dconvert.verification.trained import verify_exported


def verify_onnx(path: Path, settings: Settings, reference: Path | None, progress: Progress, model: str = "") -> Report:
    """Verify an ONNX file like `verify_file`; the 2D network runs in float32.

    Raises `CheckpointError`, `WeightsError`, `VerificationError`, `FramesError`.
    """
    if settings.device != "cpu":
        raise VerificationError("ONNX files are checked by onnxruntime on the CPU; omit --device")
    document = named(read_document(path), model, {})
    progress("integrity")
    report = Report([_check_integrity(path)])
    if not report.passed:
        return report
    runtime = Runtime(path, trusted=False)
    if document.finetuned:
        trained = verify_exported(path, document, runtime, settings)
        return replace(trained, checks=[*report.checks, *trained.checks])
    tolerance = settings.tolerance or TOLERANCES.get(runtime.precision)
    if tolerance is None:
        raise VerificationError(
            f"{path} computes in {runtime.precision}, which has no default tolerance; set --tolerance"
        )
    progress("reading the 2D network")
    model2d = reference_of(document, path, reference)
    assert document.origin is not None
    origin = document.origin
    check_fixed(path, runtime, settings)
    channels, height, width = origin.input
    height = runtime.fixed("height") or settings.size or height
    width = runtime.fixed("width") or settings.size or width
    compute, fixed = whole(path, runtime, settings.frames)
    compute = compute if is_stream(path) else partial(_in_batches, runtime)
    frames = fixed or settings.frames or max(FRAMES, document.inflation.minimum_frames)
    generator = torch.Generator().manual_seed(settings.seed)
    candidates = {
        "noise": torch.randn(runtime.fixed("batch") or CLIPS, channels, height, width, generator=generator),
        "pictures": read_pictures(settings.images, origin),
    }
    for what, images in candidates.items():
        if images is None:
            continue
        progress(f"onnxruntime on {what}")
        try:
            given, meant = as_input(replicated(images, frames), runtime.dtype, origin.preprocessing)
            value = compute(given)
        except CheckpointError as error:
            raise FramesError(f"{error}; change --frames or --size") from None
        with evaluating(model2d, torch.float32):
            expected = outputs(model2d(meant[:, :, 0]))
        name = f"forward equality, onnxruntime, {what} {frames}×{images.shape[2]}×{images.shape[3]}"
        beside = best_beside(expected[0], *value) if runtime.names_best else (expected, [v.float() for v in value])
        report.checks.append(check_outputs(name, *beside, tolerance))
        if what == "pictures" and expected[0].dim() == 2:
            probabilities = expected[0].softmax(-1)
            if runtime.names_best:
                scores, classes = value
                ours, count = torch.zeros_like(probabilities).scatter(1, classes, scores), classes.shape[1]
            else:
                ours, count = value[0].float().softmax(-1), 5
            add_pictures(report, settings.images, document.class_names, probabilities, ours, min(count, 5))
    return report


def check_fixed(path: Path, runtime: Runtime, settings: Settings) -> None:
    """Raise `FramesError` if a file accepts only clips of another length or size than the settings'."""
    for axis, asked, option in (
        ("frames", settings.frames, "--frames"),
        ("height", settings.size, "--size"),
        ("width", settings.size, "--size"),
    ):
        fixed = None if axis == "frames" and is_stream(path) else runtime.fixed(axis)
        if asked is not None and fixed not in (None, asked):
            raise FramesError(f"{path} accepts only clips of {axis} {fixed}; omit {option} {asked}")


def _check_integrity(path: Path) -> Check:
    """Check the file's contents against its hashes."""
    changed = broken(path)
    said = f"changed after the file was written: {listed(changed)}"
    detail = said if changed else "tensors and graph match their SHA-256"
    return Check("integrity", not changed, detail)


def _in_batches(runtime: Runtime, given: Tensor) -> list[Tensor]:
    """Run one batch if the file accepts any size, else as many as its fixed batch size requires."""
    clips = runtime.fixed("batch")
    if clips is None or clips == len(given):
        return runtime(given)
    single = [runtime(torch.stack([clip] * clips)) for clip in given]
    return [torch.cat([out[index][:1] for out in single]) for index in range(len(single[0]))]
