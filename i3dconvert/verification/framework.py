"""Forward equality of another framework's own network, with our weights in it, and the 2D network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from i3dconvert.backbones import Origin
from i3dconvert.backbones.changes import HEADLESS
from i3dconvert.checkpoint import Document, checked_layout
from i3dconvert.errors import FramesError, LayoutError, VerificationError, WeightsError
from i3dconvert.frameworks import framework, how_to_load, split
from i3dconvert.verification import FRAMES, Settings, noise, run_both
from i3dconvert.verification.forward import check_outputs
from i3dconvert.verification.report import Check
from i3dconvert.verification.weights import NAME
from i3dconvert.weights import fit


def check_framework(
    layout: str,
    document: Document,
    state: Mapping[str, Tensor],
    model2d: nn.Module,
    settings: Settings,
    progress: Callable[[str], None],
) -> list[Check]:
    """Load `state` with `strict=True` into the framework's network, and compare its scores on a replicated image.

    Raises `LayoutError` when the checkpoint is of another network, `VerificationError` when the framework is not
    installed.
    """
    origin = document.origin
    assert origin is not None
    layout = checked_layout(layout if split(layout)[1] else document.layout or layout, origin, document.inflation)
    known = framework(layout)
    target = known.target(origin.backbone.qualified, split(layout)[1])
    theirs = f"{known.name}'s {target.name}"
    if origin.changes.head in HEADLESS and not target.headless:
        raise LayoutError(f"{theirs} has a head and the checkpoint has none; verify it without --layout")
    network = _built(layout, origin)
    loading = f"loading into {theirs}"
    try:
        fit(network, known.state(target, state), "the checkpoint")
    except WeightsError as error:
        return [Check(loading, False, str(error))]
    checks = [Check(loading, True, f"strict=True, {len(state)} tensors, {how_to_load(target, origin)}")]
    frames = target.frames or settings.frames or max(FRAMES, document.inflation.minimum_frames)
    if settings.frames not in (None, frames):
        raise FramesError(f"{theirs} takes clips of {frames} frames alone; verify without --frames")
    images = noise(document.inflation.input, settings)
    for dtype in settings.dtypes:
        name = str(dtype).removeprefix("torch.")
        progress(f"{theirs} in {name}")
        shape = "×".join(map(str, (frames, *images.shape[2:])))
        try:
            expected, value = run_both(model2d, network, [images], frames, dtype, settings.device)
        except VerificationError as error:
            raise FramesError(f"{theirs} can't take a clip of {shape} ({error}); --frames and --size") from None
        label = f"forward equality of {theirs}, {name}, noise {shape}"
        # What is made of kernels, by sums and products, is rounded to what it is stored in.
        tolerance = settings.tolerance_for(torch.float32 if target.made is not None else dtype)
        checks.append(check_outputs(label, expected, value, tolerance))
    return checks


def check_made(
    layout: str,
    document: Document,
    state: Mapping[str, Tensor],
    model2d: nn.Module,
    settings: Settings,
    progress: Callable[[str], None],
) -> list[Check]:
    """The same of tensors that are made for the framework's network alone, and that they are those; raises the same."""
    assert document.target is not None
    assert document.target.made is not None
    assert document.origin is not None
    checked_layout(document.layout, document.origin, document.inflation)
    if layout not in ("", split(document.layout)[0], document.layout):
        raise LayoutError(f"the checkpoint is for {document.layout}, not for {layout}")
    if settings.images:
        raise LayoutError(f"{document.layout} is compared on noise alone; --images is for networks of our own")
    made = document.target.made(model2d.state_dict())
    if made.keys() != state.keys():
        return [Check(NAME, False, f"such as {min(made.keys() ^ state.keys())}, keys are missing or too many")]
    wrong = [key for key in made if made[key].shape != state[key].shape or not _near(made[key], state[key])]
    if wrong:
        return [Check(NAME, False, f"{wrong[0]} differs from what the 2D network gives ({len(wrong)} tensors do)")]
    identity = Check(NAME, True, f"{len(made)} tensors, made of the 2D network's, are equal to rounding")
    return [identity, *check_framework(document.layout, document, state, model2d, settings, progress)]


def _near(expected: Tensor, found: Tensor) -> bool:
    """Whether two tensors are equal but for the rounding of sums and products."""
    eps = torch.finfo(found.dtype).eps if found.is_floating_point() else 0.0
    return torch.allclose(expected.double(), found.double(), rtol=0.0, atol=64 * eps * float(expected.abs().max()))


def _built(layout: str, origin: Origin) -> nn.Module:
    known = framework(layout)
    target = known.target(origin.backbone.qualified, split(layout)[1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return target.build(origin).eval()
    except ImportError as error:
        raise VerificationError(f"{known.name} is not installed ({error}): {known.install}") from None
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise LayoutError(f"{known.name} can't build {target.name} for {origin.backbone.qualified}: {error}") from None
