"""Reports: one HTML file that shows the proof of networks, and how they treat time."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from markupsafe import Markup

from i3dconvert.files import replacing
from i3dconvert.reporting import charts
from i3dconvert.reporting.benchmark import Measurement
from i3dconvert.reporting.subject import Stage, Subject, stages
from i3dconvert.reporting.templates import render
from i3dconvert.version import VERSION

__all__ = ["Stage", "Subject", "page", "stages", "write_report"]

PROVED = (
    "On an image replicated over time, the 3D network's output equals the 2D network's on the image, "
    "and its weights are the 2D network's."
)
THUMBNAIL = 240
"""The largest width and height of a picture in the page, in pixels."""


def write_report(
    path: Path, subjects: Sequence[Subject], measured: Sequence[Measurement] = (), force: bool = False
) -> None:
    """Write the report; raises `OutputError`."""
    text = page(subjects, measured)
    with replacing(path, force) as place:
        place.write_text(text, encoding="utf-8")


def page(subjects: Sequence[Subject], measured: Sequence[Measurement] = ()) -> str:
    """Return the report as HTML that needs no scripts and no network; it suits light and dark themes and paper."""
    return render(
        "report.html",
        subjects=[_shown(subject, subjects[:index]) for index, subject in enumerate(subjects)],
        pictures=list(_pictures(subjects)),
        bench=_figure(charts.measured(measured), "Time of a forward pass in each runtime") if measured else None,
        verdict=_verdict(subjects),
        version=VERSION,
        torch=torch.__version__,
    )


def _verdict(subjects: Sequence[Subject]) -> dict[str, str]:
    """Return the verdict on all files: its class in the page, its mark and its text."""
    names = ", ".join(subject.path.name for subject in subjects)
    for subject in subjects:
        if subject.report is not None and not subject.report.passed:
            what = f"{subject.path.name} is not equal to its 2D network"
            return {"kind": "failed", "mark": "✗", "text": what, "why": subject.report.reason}
    trained = [subject for subject in subjects if subject.report is not None and subject.report.trained]
    if trained:
        what = f"{trained[0].path.name} is trained"
        return {"kind": "unproved", "mark": "–", "text": what, "why": trained[0].verdict}
    unproved = [subject for subject in subjects if subject.report is None]
    if unproved:
        what = f"{unproved[0].path.name} is not proved to equal a 2D network"
        return {"kind": "unproved", "mark": "–", "text": what, "why": unproved[0].unproved}
    verb = "equals its 2D network" if len(subjects) == 1 else "equal their 2D network"
    return {"kind": "passed", "mark": "✓", "text": f"{names} {verb}", "why": PROVED}


def _shown(subject: Subject, before: Sequence[Subject]) -> dict[str, Any]:
    """Return a file's charts, without those that another file of the same network already shows."""
    report = subject.report
    checks = report.checks if report else []
    measured = [check for check in checks if check.tolerance is not None and check.error is not None]
    limits = [check.tolerance for check in measured if check.tolerance is not None]
    new = subject.layers and all(subject.network != other.network for other in before)
    return {
        "subject": subject,
        "checks": _figure(charts.checks(measured), "Each check's error beside its limit") if measured else None,
        "time": _figure(charts.over_depth(subject), "Frames, kernels and receptive field from input to output")
        if new
        else None,
        "stages": stages(subject) if new else [],
        "errors": _figure(charts.layer_errors(report.layers, limits[0] if limits else None), "Each layer's error")
        if report and any(layer.error is not None for layer in report.layers)
        else None,
        "moved": any(layer.trained for layer in subject.layers),
        "taps": _figure(charts.taps(subject), "Energy of each layer's kernel by tap") if subject.taps else None,
    }


def _pictures(subjects: Sequence[Subject]) -> Iterable[dict[str, Any]]:
    """Yield each picture once, with the best classes of every network."""
    found: dict[str, dict[str, Sequence[tuple[str, float]]]] = {}
    for subject in subjects:
        form = "ONNX" if subject.path.suffix == ".onnx" else "3D"
        for picture in subject.report.pictures if subject.report else ():
            columns = found.setdefault(picture.path, {"2D": picture.classes2d})
            columns[form if form not in columns else subject.path.name] = picture.classes3d
    for path, columns in found.items():
        yield {
            "path": path,
            "image": _thumbnail(Path(path)),
            "chart": _figure(charts.top_classes(columns), "The best classes of each network"),
        }


def _thumbnail(path: Path) -> str:
    with PIL.Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(svg: str, label: str) -> Markup:
    """Return a figure of our own, whose texts matplotlib has escaped."""
    return Markup('<figure role="img" aria-label="{}">{}</figure>').format(label, Markup(svg))
