"""Forward equality of an exported ONNX file, run by onnxruntime, with the 2D network of its metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from i3dconvert.errors import CheckpointError, FramesError
from i3dconvert.export.runtime import Runtime, read_document
from i3dconvert.verification import CLIPS, FRAMES, Settings, add_pictures, read_pictures, reference_of
from i3dconvert.verification.forward import check_outputs, evaluating, outputs, replicated
from i3dconvert.verification.report import Report

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2}


def verify_onnx(path: Path, settings: Settings, reference: Path | None, progress: Callable[[str], None]) -> Report:
    """As `verify_file`, for an ONNX file; the 2D network runs in float32.

    Raises `CheckpointError`, `WeightsError`, `VerificationError`, `FramesError`.
    """
    document = read_document(path)
    runtime = Runtime(path)
    progress("reading the 2D network")
    model2d = reference_of(document, path, reference)
    assert document.origin is not None
    origin = document.origin
    channels, height, width = origin.input
    height, width = runtime.fixed(3) or settings.size or height, runtime.fixed(4) or settings.size or width
    frames = runtime.fixed(2) or settings.frames or max(FRAMES, document.inflation.minimum_frames)
    clips = runtime.fixed(0) or CLIPS
    generator = torch.Generator().manual_seed(settings.seed)
    report = Report()
    candidates = {
        "noise": torch.randn(clips, channels, height, width, generator=generator),
        "pictures": read_pictures(settings.images, origin),
    }
    tolerance = settings.tolerance or TOLERANCES[runtime.dtype]
    for what, images in candidates.items():
        if images is None:
            continue
        progress(f"onnxruntime on {what}")
        try:
            value = _run(runtime, images, frames, clips)
        except CheckpointError as error:
            raise FramesError(f"{error}; --frames and --size choose another clip") from None
        with evaluating(model2d, torch.float32):
            expected = outputs(model2d(images))
        name = f"forward equality, onnxruntime, {what} {frames}×{images.shape[2]}×{images.shape[3]}"
        report.checks.append(check_outputs(name, expected, [v.float() for v in value], tolerance))
        if what == "pictures":
            add_pictures(report, settings.images, origin, expected[0], value[0].float())
    return report


def _run(runtime: Runtime, images: Tensor, frames: int, clips: int) -> list[Tensor]:
    """One batch where the file takes any, else as many runs as the fixed batch asks for."""
    if runtime.fixed(0) is None or runtime.fixed(0) == len(images):
        return runtime(replicated(images, frames))
    single = [runtime(replicated(image.unsqueeze(0).repeat(clips, 1, 1, 1), frames)) for image in images]
    return [torch.cat([out[index][:1] for out in single]) for index in range(len(single[0]))]
