"""Verify a trained network: its file is intact, loads, runs and exports."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from i3dconvert import checkpoint
from i3dconvert.checkpoint import Document, Trained
from i3dconvert.comparison.forward import check_outputs, evaluating, outputs, replicated
from i3dconvert.comparison.report import Check, Report
from i3dconvert.errors import ExportError, I3DError
from i3dconvert.export.runtime import TOLERANCES, Runtime, as_input
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.progress import Progress
from i3dconvert.streaming.runtime import whole
from i3dconvert.verification.running import run
from i3dconvert.verification.settings import Settings, noise
from i3dconvert.weights import State


def verify_trained(
    document: Document, state: State, path: Path, settings: Settings, reference: Path | None, progress: Progress
) -> Report:
    """Check a trained checkpoint: the network loads and runs, and onnxruntime agrees with torch."""
    document = replace(document, trained=document.trained or trained_by(document, state, reference))
    report = Report(trained=checkpoint.sentence(document.trained))
    if document.origin is None:
        report.notes.append("made from a module in memory: --model PATH.py:NAME also checks that it runs and exports")
        return report
    progress("loading")
    network = checkpoint.filled(checkpoint.rebuild(document, where=path), state, path)
    report.checks.append(_check_runs(network, settings))
    if report.passed:
        progress("exporting")
        report.checks.append(_check_exports(network, settings, progress))
    return report


def trained_by(document: Document, state: State, reference: Path | None) -> Trained | None:
    """Return what moved relative to the 2D network; None if that can't be loaded or is unknown."""
    if document.origin is None:
        return None
    with suppress(I3DError):
        state2d = document.origin.load(reference).state_dict()
        return Trained.of(state, inflation_of(checkpoint.rebuild(document)).moved(state2d, state))
    return None


def verify_exported(path: Path, document: Document, runtime: Runtime, settings: Settings) -> Report:
    """Check an ONNX file: its outputs equal those of the checkpoint beside it, if there is one."""
    report = Report(trained=checkpoint.sentence(document.trained))
    channels, *size = document.inflation.input
    compute, fixed = whole(path, runtime, settings.frames)
    frames = fixed or settings.frames or max(4, document.inflation.minimum_frames)
    axes = zip(("height", "width"), size, strict=True)
    height, width = (runtime.fixed(axis) or settings.size or one for axis, one in axes)
    clip = torch.randn(runtime.fixed("batch") or 1, channels, frames, height, width)
    given, meant = as_input(clip, runtime.dtype, document.preprocessing)
    value = [tensor.float() for tensor in compute(given)]
    finite = all(bool(tensor.isfinite().all()) for tensor in value)
    report.checks.append(Check("runs", finite, f"onnxruntime returns {'' if finite else 'in'}finite values"))
    found = _checkpoint_beside(path, document)
    tolerance = settings.tolerance or TOLERANCES.get(runtime.precision)
    if found is None or tolerance is None or runtime.names_best:
        report.notes.append(f"not compared with torch: {_why_not(runtime, found is not None)}")
        return report
    beside, network = found
    with evaluating(network, torch.float32):
        expected = outputs(network(meant))
    name = f"onnxruntime against torch, {beside.name}, {frames}×{height}×{width}"
    report.checks.append(check_outputs(name, expected, value, tolerance))
    return report


def _why_not(runtime: Runtime, has_checkpoint: bool) -> str:
    """Return why an ONNX file is not compared with torch."""
    if runtime.names_best:
        return "it returns the best classes only"
    if not has_checkpoint:
        return "no checkpoint with its weights is in the same folder"
    return f"{runtime.precision} has no tolerance; set --tolerance"


def _checkpoint_beside(path: Path, document: Document) -> tuple[Path, Network3d] | None:
    """Return the checkpoint in the same folder with the exported tensors, and its network, if it can be loaded."""
    for other in sorted(path.parent.glob("*.safetensors")):
        with suppress(I3DError):
            if checkpoint.read(other)[0].sha256 == document.sha256:
                return other, checkpoint.load(other)
    return None


def _check_runs(network: Network3d, settings: Settings) -> Check:
    frames = settings.frames or inflation_of(network).minimum_frames
    clip = replicated(noise(inflation_of(network).input, settings)[:1], frames).to(settings.device, torch.float32)
    with evaluating(network, torch.float32, device=settings.device):
        found = run("3D", network, clip)
    finite = all(bool(tensor.isfinite().all()) for tensor in found)
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in found)
    return Check("loads and runs", finite, f"{shapes}, {'all finite' if finite else 'with NaN or infinite values'}")


def _check_exports(network: Network3d, settings: Settings, progress: Progress) -> Check:
    from i3dconvert.export import export_onnx

    with TemporaryDirectory() as folder:
        try:
            done = export_onnx(network, Path(folder) / "net.onnx", tolerance=settings.tolerance, progress=progress)
        except ExportError as error:
            return Check("exports", False, str(error))
    return replace(done.check, name="exports: onnxruntime against torch")
