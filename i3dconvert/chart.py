"""Measurements as a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from i3dconvert.errors import OutputError
from i3dconvert.files import check_output, replacing

if TYPE_CHECKING:
    from i3dconvert.benchmark import Measurement

FORMATS = (".svg", ".png")


def check_chart(path: Path, force: bool) -> None:
    """Raise `OutputError` early, before anything is measured, where no chart can be drawn."""
    if path.suffix not in FORMATS:
        raise OutputError(f"no chart in {path.name}: its name has to end in {' or '.join(FORMATS)}")
    check_output(path, force)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OutputError("charts are drawn by matplotlib: pip install matplotlib") from None


def draw(results: Sequence[Measurement], path: Path, force: bool = False) -> None:
    """Write one group of bars a network, one bar a runtime, milliseconds to the right; raises `OutputError`."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(_group(result) for result in results))
    runtimes = list(dict.fromkeys(result.case.runtime for result in results))
    thickness = 0.8 / len(runtimes)
    figure = Figure(figsize=(8, 1 + 0.35 * len(groups) * len(runtimes)), layout="constrained")
    axes = figure.add_subplot()
    for index, runtime in enumerate(runtimes):
        mine = [result for result in results if result.case.runtime == runtime]
        places = [groups.index(_group(result)) + index * thickness for result in mine]
        spreads = [500 * result.spread for result in mine]
        bars = axes.barh(places, [1000 * result.seconds for result in mine], thickness, xerr=spreads, label=runtime)
        axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_yticks([place + 0.4 - thickness / 2 for place in range(len(groups))], groups)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a forward pass, median and quartiles")
    axes.legend()
    with replacing(path, force) as place:
        figure.savefig(place, format=path.suffix[1:])


def _group(result: Measurement) -> str:
    case = result.case
    return f"{case.network}, {case.init}, batch {case.batch}"
