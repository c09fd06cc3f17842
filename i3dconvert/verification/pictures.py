"""Classify pictures with both networks and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from i3dconvert.backbones import Origin
from i3dconvert.comparison.report import Check, Picture, Report
from i3dconvert.errors import VerificationError
from i3dconvert.video import media
from i3dconvert.video.labels import class_name


def read_pictures(paths: Sequence[Path], origin: Origin | None) -> Tensor | None:
    """Read the pictures at `paths` with the backbone's preprocessing, `(N, 3, H, W)`; None for no paths."""
    if not paths:
        return None
    if origin is None:
        raise VerificationError("pictures need a backbone's preprocessing, which is unknown for a module in memory")
    return media.read_pictures(paths, origin.preprocessing)


def add_pictures(
    report: Report, paths: Sequence[Path], names: Sequence[str], reference: Tensor, value: Tensor, count: int = 5
) -> None:
    """Add each picture's best classes, by `(N, K)` probabilities, to the report; they must be equal."""
    for path, scores2d, scores3d in zip(paths, reference, value, strict=True):
        best = Picture(str(path), top_classes(scores2d, names, count), top_classes(scores3d, names, count))
        same = [name for name, _ in best.classes2d] == [name for name, _ in best.classes3d]
        report.pictures.append(best)
        detail = ", ".join(f"{name} {score:.2f}" for name, score in best.classes3d[:3])
        report.checks.append(Check(f"top classes, {path.name}", same, detail))


def top_classes(probabilities: Tensor, names: Sequence[str], count: int) -> tuple[tuple[str, float], ...]:
    """Return the best classes of `(K,)` probabilities, with these."""
    best = probabilities.topk(min(count, len(probabilities)))
    pairs: Any = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((class_name(names, index), value) for index, value in pairs)
