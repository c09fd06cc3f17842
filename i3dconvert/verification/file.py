"""Verify a file against the 2D network that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from i3dconvert import checkpoint
from i3dconvert.backbones import Origin
from i3dconvert.backbones.changes import IN_INITS
from i3dconvert.checkpoint import Document
from i3dconvert.comparison.forward import check_outputs, evaluating, outputs
from i3dconvert.comparison.report import Check, Report
from i3dconvert.errors import LayoutError, VerificationError
from i3dconvert.lift.network import inflation_of
from i3dconvert.progress import Progress, silent
from i3dconvert.verification.foreign import check_framework
from i3dconvert.verification.proof import verify
from i3dconvert.verification.running import reference_of
from i3dconvert.verification.settings import CLIPS, TOLERANCES, Settings
from i3dconvert.verification.tensors import check_weights
from i3dconvert.verification.trained import verify_trained
from i3dconvert.weights import digest, shapes_of


def verify_file(
    path: Path,
    settings: Settings | None = None,
    reference: Path | None = None,
    layout: str = "",
    *,
    model: str = "",
    progress: Progress = silent,
) -> Report:
    """Check a checkpoint, or an exported `.onnx`, against the 2D network in its metadata.

    Trained weights equal no 2D network: `Report.trained` says what moved, and the file is checked to be intact, to
    load, to run and to export. `reference` is a file of 2D weights to use instead of the recorded origin; its hash must
    match. `model` names the 2D network (`PATH.py:NAME`) if the file doesn't. With `layout`, the tensors are also loaded
    into that framework's own network, whose outputs are compared.
    Raises `CheckpointError`, `WeightsError`, `VerificationError`, `FramesError`, `LayoutError`.
    """
    settings = settings or Settings()
    if path.suffix == ".onnx":
        from i3dconvert.verification.onnx import verify_onnx  # imports onnxruntime

        if layout:
            raise LayoutError(f"{path} is a graph; --layout needs a checkpoint")
        return verify_onnx(path, settings, reference, progress, model)
    document, state = checkpoint.read(path)
    document = checkpoint.named(document, model, state)
    progress("integrity")
    integrity = _check_integrity(document, state)
    if document.finetuned:
        if layout or settings.images:
            raise VerificationError(f"{checkpoint.sentence(document.trained)}; omit --layout and --images")
        if not integrity.passed:
            return Report([integrity], trained=checkpoint.sentence(document.trained))
        report = verify_trained(document, state, path, settings, reference, progress)
        return replace(report, checks=[integrity, *report.checks])
    progress("reading the 2D network")
    model2d = reference_of(document, path, reference)
    network = checkpoint.rebuild(document, model2d)
    if shapes_of(network.state_dict()) != shapes_of(state):
        weights = check_weights(inflation_of(network), model2d.state_dict(), state)
        others = Check("network", False, "the file's tensors do not have the shapes of its recipe's network")
        return Report([integrity, weights, *([others] if weights.passed else [])])
    assert document.origin is not None
    spread = document.origin.changes.in_init in IN_INITS
    inputs = check_inputs(document.origin, reference) if spread else []
    report = verify(model2d, checkpoint.filled(network, state, path), settings, progress=progress)
    if layout:
        report.checks += check_framework(layout, document, state, model2d, settings, progress)
    return replace(report, checks=[integrity, *inputs, *report.checks])


def _check_integrity(document: Document, state: Mapping[str, Tensor]) -> Check:
    """Check the file's contents against its hashes."""
    same = {"metadata": document.intact, "tensors": digest(state) == document.sha256}
    changed = " and ".join(what for what, unchanged in same.items() if not unchanged)
    detail = (
        f"the file's {changed} changed after it was written" if changed else "tensors and metadata match their SHA-256"
    )
    return Check("integrity", not changed, detail)


def check_inputs(origin: Origin, reference: Path | None = None) -> list[Check]:
    """Check that the 2D networks with these channels and with RGB agree, on inputs for which `in_init` promises it.

    Their kernels are rounded to the dtype they are stored in, so float32's tolerance applies.
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
    name = f"input of {changes.channels} channel{'s' * (changes.channels > 1)} ({changes.in_init}) against RGB"
    return [check_outputs(name, expected, value, TOLERANCES[torch.float32])]
