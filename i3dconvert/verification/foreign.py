"""Forward equality of the 2D network and another framework's own network with our weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from i3dconvert.backbones import Origin
from i3dconvert.backbones.changes import HEADLESS
from i3dconvert.checkpoint import Document
from i3dconvert.comparison.forward import check_outputs
from i3dconvert.comparison.report import Check
from i3dconvert.errors import FramesError, LayoutError, VerificationError, WeightsError
from i3dconvert.frameworks import Framework, Target, framework_of, how_to_load, split
from i3dconvert.progress import Progress
from i3dconvert.verification.running import run_both
from i3dconvert.verification.settings import FRAMES, Settings, noise
from i3dconvert.weights import fit


def check_framework(
    layout: str,
    document: Document,
    state: Mapping[str, Tensor],
    model2d: nn.Module,
    settings: Settings,
    progress: Progress,
) -> list[Check]:
    """Load `state` with `strict=True` into the framework's network and compare its scores on a replicated image.

    Raises `LayoutError` if the checkpoint is for another network, `VerificationError` if the framework is not
    installed.
    """
    origin = document.origin
    assert origin is not None
    layout = layout if split(layout)[1] else document.layout or layout
    written = Document.for_layout(document.inflation, origin, layout)
    framework, target = framework_of(layout), written.target
    assert target is not None
    theirs = f"{framework.name}'s {target.name}"
    if origin.changes.head in HEADLESS and not target.headless:
        raise LayoutError(f"{theirs} has a head and the checkpoint has none; verify it without --layout")
    network = _built(framework, target, origin)
    loading = f"loading into {theirs}"
    try:
        fit(network, framework.state(target, state), "the checkpoint")
    except WeightsError as error:
        return [Check(loading, False, str(error))]
    checks = [Check(loading, True, f"strict=True, {len(state)} tensors, {how_to_load(target, origin)}")]
    frames = target.frames or settings.frames or max(FRAMES, document.inflation.minimum_frames)
    if settings.frames not in (None, frames):
        raise FramesError(f"{theirs} accepts only clips of {frames} frames; omit --frames")
    images = noise(document.inflation.input, settings)
    for dtype in settings.dtypes:
        name = str(dtype).removeprefix("torch.")
        progress(f"{theirs} in {name}")
        shape = "×".join(map(str, (frames, *images.shape[2:])))
        try:
            expected, value = run_both(model2d, network, [images], frames, dtype, settings.device)
        except VerificationError as error:
            raise FramesError(f"{theirs} can't run on a clip of {shape} ({error}); change --frames or --size") from None
        label = f"forward equality of {theirs}, {name}, noise {shape}"
        checks.append(check_outputs(label, expected, value, settings.tolerance_for(dtype)))
    return checks


def _built(framework: Framework, target: Target, origin: Origin) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return target.build(origin).eval()
    except ImportError as error:
        raise VerificationError(f"{framework.name} is not installed ({error}): {framework.install}") from None
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise LayoutError(
            f"{framework.name} can't build {target.name} for {origin.backbone.qualified}: {error}"
        ) from None
