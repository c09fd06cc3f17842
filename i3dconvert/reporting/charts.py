"""The charts of a report: SVG in the colours of its page, in two widths, the narrow one for phones."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from typing import Any, Concatenate, ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from i3dconvert.comparison.report import Check, LayerError
from i3dconvert.reporting.drawing import INKS, SERIES, WIDTH, bars, plain, style
from i3dconvert.reporting.subject import Subject, stage_of

COLOURS = {name: f"#{3 * f'{number:02}'}" for number, name in enumerate(INKS, 1)}
"""Placeholder colours, replaced by the page's variables of these names for its light and dark themes."""

P = ParamSpec("P")

NARROW = 4.2
"""The width of a chart on a phone, in inches."""
MOST_TICKS = 3.5
"""Ticks per inch of width."""
SMALLEST = 1e-17
"""Smaller errors are drawn here: zero has no logarithm."""

_NO_NOTES: Any = {"Date": None, "Creator": None}


def as_svg(draw: Callable[Concatenate[float, P], Figure]) -> Callable[P, str]:
    """Make a function that draws a figure of a width return SVG in the page's colours, for pages and phones."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        with style(COLOURS):
            wide, narrow = _svg("wide", draw(WIDTH, *args, **kwargs)), _svg("narrow", draw(NARROW, *args, **kwargs))
        return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'

    return drawn


def _svg(name: str, figure: Figure) -> str:
    buffer = io.StringIO()
    # Each form has its own ids, as browsers look them up in the whole page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_NOTES)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for ink, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{ink})")
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


@as_svg
def checks(width: float, found: Sequence[Check]) -> Figure:
    """Draw one line for each check: its error as a dot, its limit as a bar, on a logarithmic scale."""
    figure = Figure(figsize=(width, 0.8 + 0.38 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for row, check in enumerate(found):
        colour = COLOURS["first" if check.passed else "bad"]
        limit = check.tolerance or SMALLEST
        axes.barh(row, limit, left=SMALLEST / 10, height=0.4, color=COLOURS["faint"])
        axes.plot([limit, limit], [row - 0.27, row + 0.27], color=COLOURS["ink"], linewidth=1.5)
        if check.error is not None:
            axes.plot([max(check.error, SMALLEST)], [row], "o", color=colour, markersize=6)
        axes.text(SMALLEST / 2, row - 0.3, f" {plain(check.name)}", fontsize=8, va="bottom")
    axes.set_xscale("log")
    finite = [check.error for check in found if check.error is not None and math.isfinite(check.error)]
    axes.set_xlim(SMALLEST / 2, max(1.0, 2 * max(finite, default=0.0)))
    axes.set(yticks=[], ylim=(len(found) - 0.5, -0.85))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("relative error: dot; its limit: bar")
    return figure


@as_svg
def top_classes(width: float, columns: Mapping[str, Sequence[tuple[str, float]]]) -> Figure:
    """Draw the best classes of each network, side by side if there is room, else one below the other."""
    columns = {name: classes for name, classes in columns.items() if classes}
    height = 0.7 + 0.3 * max(map(len, columns.values()), default=0)
    below = width < WIDTH
    figure = Figure(
        figsize=(width if below else width - 2, height * (len(columns) if below else 1)), layout="constrained"
    )
    places = figure.subplots(*((len(columns), 1) if below else (1, len(columns))), squeeze=False).flat
    for axes, (name, classes), colour in zip(places, columns.items(), cycle(SERIES), strict=False):
        drawn = axes.barh(range(len(classes)), [score for _, score in classes], height=0.45, color=COLOURS[colour])
        axes.bar_label(drawn, [f"{score:.3f}" for _, score in classes], padding=2, fontsize=7)
        for row, (label, _) in enumerate(classes):
            axes.text(0, row - 0.32, plain(_short(label)), fontsize=7.5, va="bottom")
        axes.set(title=plain(name), xlim=(0, 1.15), ylim=(len(classes) - 0.5, -0.85), yticks=[], xticks=[0, 0.5, 1])
        axes.grid(visible=False, axis="y")
    return figure


@as_svg
def over_depth(width: float, subject: Subject) -> Figure:
    """Draw the frames left, the kernels and strides in time, and the receptive field, layer by layer."""
    known = (
        (_frames_left, any(layer.name in subject.left for layer in subject.layers)),
        (_kernels, any(layer.kernel3d for layer in subject.layers)),
        (_fields, True),
    )
    parts = [part for part, has_data in known if has_data]
    figure = Figure(figsize=(width, 0.6 + 1.6 * len(parts)), layout="constrained")
    for part, axes in zip(parts, figure.subplots(len(parts), 1, sharex=True, squeeze=False).flat, strict=True):
        part(axes, subject)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _name_stages(figure.axes[-1], [layer.name for layer in subject.layers])
    return figure


def _frames_left(axes: Any, subject: Subject) -> None:
    counts = [subject.left.get(layer.name, math.nan) for layer in subject.layers]
    axes.fill_between(range(len(counts)), counts, step="mid", color=COLOURS["first"], alpha=0.35)
    axes.step(range(len(counts)), counts, where="mid", color=COLOURS["first"])
    axes.set_ylabel("frames left")
    axes.set_ylim(0, subject.frames * 1.1)


def _kernels(axes: Any, subject: Subject) -> None:
    convolving = [(place, layer) for place, layer in enumerate(subject.layers) if layer.kernel3d]
    for strided, colour, label in ((False, "second", "stride 1"), (True, "bad", "stride 2 or more")):
        mine = [(place, layer.kernel3d[0]) for place, layer in convolving if (layer.stride3d[0] > 1) is strided]
        if mine:
            axes.vlines(*zip(*((place, 0, taps) for place, taps in mine), strict=True), color=COLOURS[colour])
            axes.plot(*zip(*mine, strict=True), "o", color=COLOURS[colour], markersize=3, label=label)
    axes.set_ylabel("taps in time")
    axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, fontsize=7.5)


def _fields(axes: Any, subject: Subject) -> None:
    seen = [math.nan if layer.receptive_field is None else layer.receptive_field for layer in subject.layers]
    everything = [place for place, field in enumerate(seen) if math.isnan(field)]
    axes.step(range(len(seen)), seen, where="mid", color=COLOURS["third"])
    top = max([subject.frames, *(field for field in seen if not math.isnan(field))])
    axes.axhline(subject.frames, color=COLOURS["ink"], linewidth=0.8, linestyle="--")
    axes.text(0, subject.frames, f"the clip: {subject.frames} frames", fontsize=7.5, va="bottom")
    if everything:
        height = top * 1.15
        axes.plot(everything, [height] * len(everything), "^", color=COLOURS["third"], markersize=4)
        axes.text(everything[-1], height * 1.04, "all frames", fontsize=7.5, ha="right", va="bottom")
        top = 1.1 * height
    axes.set_ylabel("frames seen")
    axes.set_ylim(0, top * 1.2)


@as_svg
def layer_errors(width: float, layers: Sequence[LayerError], limit: float | None) -> Figure:
    """Draw the relative error of each layer, and the limit for the output."""
    figure = Figure(figsize=(width, 2.4), layout="constrained")
    axes = figure.add_subplot()
    for diverges, colour in ((False, "first"), (True, "bad")):
        mine = [
            (place, max(layer.error, SMALLEST))
            for place, layer in enumerate(layers)
            if layer.error is not None and layer.diverges is diverges
        ]
        if mine:
            axes.plot(*zip(*mine, strict=True), "o", color=COLOURS[colour], markersize=3)
    if limit is not None:
        axes.axhline(limit, color=COLOURS["ink"], linewidth=0.8, linestyle="--")
        axes.text(0, limit, "limit", fontsize=7.5, va="bottom")
    axes.set_yscale("log")
    axes.set_ylabel("relative error")
    axes.set_ylim(bottom=SMALLEST / 2)
    _name_stages(axes, [layer.name for layer in layers])
    return figure


@as_svg
def taps(width: float, subject: Subject) -> Figure:
    """Draw how each layer's energy is distributed over its taps, and how far kernels moved, if any did."""
    names = list(subject.taps)
    moved = {layer.name: layer.trained for layer in subject.layers}
    away_from = [100 * (moved.get(name) or 0.0) for name in names]
    rows = 2 if any(away_from) else 1
    figure = Figure(figsize=(width, 1.2 + 1.5 * rows), layout="constrained")
    energy, *others = figure.subplots(rows, 1, sharex=True, height_ratios=(3, 2)[:rows], squeeze=False).flat
    furthest = max(len(shares) for shares in subject.taps.values()) // 2
    below = [0.0] * len(names)
    for away in range(furthest + 1):
        mine = [
            sum(share for tap, share in enumerate(shares) if abs(tap - len(shares) // 2) == away)
            for shares in subject.taps.values()
        ]
        if away and not any(mine):
            continue
        label = "middle tap" if away == 0 else f"{away} frame{'s' * (away > 1)} away"
        colour = COLOURS[("first", "second", "third", "bad")[min(away, 3)]]
        energy.bar(range(len(names)), mine, width=0.85, bottom=below, color=colour, label=label)
        below = [a + b for a, b in zip(below, mine, strict=True)]
    energy.set(ylabel="share of energy", ylim=(0, 1))
    figure.legend(*energy.get_legend_handles_labels(), loc="outside upper right", ncols=furthest + 1, fontsize=7.5)
    for distance in others:
        distance.bar(range(len(names)), away_from, width=0.85, color=COLOURS["third"])
        distance.set(ylabel="moved, %", ylim=(0, max(away_from) * 1.1))
    _name_stages(figure.axes[-1], names)
    return figure


measured = as_svg(bars)
"""Draw the chart of `bench`."""


def _name_stages(axes: Any, names: Sequence[str]) -> None:
    """Set ticks at the beginnings of stages, as many as there is room for."""
    begins = [place for place, name in enumerate(names) if place == 0 or stage_of(name) != stage_of(names[place - 1])]
    most, ticks = MOST_TICKS * axes.figure.get_figwidth(), begins[:1]
    for place in begins:
        if place - ticks[-1] >= len(names) / most:
            ticks.append(place)
    axes.set_xticks(ticks, [plain(stage_of(names[place])) for place in ticks], rotation=45, ha="right")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
