"""Verify a network in memory: weight identity, forward equality, and each layer's error."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from i3dconvert.backbones import Origin
from i3dconvert.backbones.changes import beheaded, head_of
from i3dconvert.checkpoint import class_names
from i3dconvert.comparison.alone import mixing
from i3dconvert.comparison.forward import Narrowing, OwnRounding, check_outputs, given
from i3dconvert.comparison.report import Check, Report
from i3dconvert.lift.network import Network3d, inflation_of, origin_of
from i3dconvert.progress import Progress, silent
from i3dconvert.verification.budget import within_budget
from i3dconvert.verification.layers import compare_layers
from i3dconvert.verification.meter import Meter, cost
from i3dconvert.verification.pictures import add_pictures, read_pictures
from i3dconvert.verification.reach import check_reach
from i3dconvert.verification.running import run_both
from i3dconvert.verification.settings import CLIPS, Settings, noise
from i3dconvert.verification.tensors import check_weights

FRAMES_AT_ONCE = 32
"""Frames per batch of pictures, so that any number of pictures fits into memory."""


def verify(
    model2d: nn.Module, model3d: Network3d, settings: Settings | None = None, *, progress: Progress = silent
) -> Report:
    """Check that `model3d`, an inflated `model2d`, is equal to it: weight identity, then forward equality.

    What the settings leave open is chosen so that it takes about as long as they say; `Report.notes` says what.
    The networks are left as they are. Raises `FramesError` when the settings' frames are too few for the recipe,
    `MediaError` for pictures that can't be read.
    """
    settings, report, inflation = settings or Settings(), Report(), inflation_of(model3d)
    progress("weight identity")
    report.checks.append(check_weights(inflation, model2d.state_dict(), model3d.state_dict()))
    origin: Origin | None = origin_of(model3d)
    with ExitStack() as stack:
        stack.enter_context(given(model2d, inflation.constants))
        if origin is not None and origin.changes.head == "fresh":
            # A randomly initialised head may hide a difference in its input features.
            stack.enter_context(beheaded(model2d, model3d, name=head_of(model2d)))
        settings = within_budget(model3d, settings, report)
        images = noise(inflation.input, settings)
        _check_forward(model2d, model3d, settings, report, images, progress)
        reach = check_reach(model3d, images[:1], settings.dtypes[-1], settings.device)
        report.checks += [reach] if reach is not None else []
    report.notes += inflation.convolutions.lines()
    with given(model2d, inflation.constants):
        _explain(model2d, model3d, settings, report, images, progress)
    return report


def _explain(
    model2d: nn.Module, model3d: Network3d, settings: Settings, report: Report, images: Tensor, progress: Progress
) -> None:
    """Add to the report why a check failed, and each layer's error if requested."""
    if not report.passed and (reason := mixing(model2d, images[:2])):
        report.checks.append(Check("each image by itself", False, reason))
        return
    if settings.layers or not report.passed:
        progress("layer by layer")
        dtype = settings.dtypes[0]
        tolerance = settings.tolerance_for(dtype)
        assert settings.frames is not None
        report.layers = compare_layers(model2d, model3d, images, settings.frames, dtype, tolerance, settings.device)


def _check_forward(
    model2d: nn.Module, network: Network3d, settings: Settings, report: Report, still: Tensor, progress: Progress
) -> None:
    frames = settings.frames
    assert frames is not None
    exact: dict[str, list[Tensor]] = {}
    origin: Origin | None = origin_of(network)
    pictures = read_pictures(settings.images, origin)
    of_features = " of features" if origin is not None and origin.changes.head else ""
    meter = Meter(progress, network, cost(settings.dtypes, settings.clips + len(settings.images)))
    for dtype in settings.dtypes:
        name = str(dtype).removeprefix("torch.")
        for what, images in (("noise", still), ("pictures", pictures)):
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
                add_pictures(report, settings.images, class_names(network), theirs, ours)
