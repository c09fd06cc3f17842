"""The charts of a report, drawn by matplotlib as SVG whose colours are the page's."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from i3dconvert.chart import bars, plain
from i3dconvert.comparison.report import Check, LayerError
from i3dconvert.reporting.subject import Subject, stage_of

if TYPE_CHECKING:
    from i3dconvert.benchmark import Measurement

COLOURS = {name: f"#{3 * f'{number:02}'}" for number, name in enumerate("ink faint first second third bad".split(), 1)}
"""Stand-ins, which the page's own variables of these names replace, so that light and dark are its choice."""

P = ParamSpec("P")

WIDTH = 9.0
MOST_TICKS = 32
SMALLEST = 1e-17
"""Errors below are drawn here: exact ones have no logarithm."""

_NO_NOTES: Any = {"Date": None, "Creator": None}
_INKED = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "i3dconvert",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    **dict.fromkeys(_INKED, COLOURS["ink"]),
    "grid.color": COLOURS["faint"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}


def as_svg(draw: Callable[P, Figure]) -> Callable[P, str]:
    """What draws a figure → what gives it as SVG in the page's colours."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        with mpl.rc_context(_STYLE):
            buffer = io.StringIO()
            draw(*args, **kwargs).savefig(buffer, format="svg", transparent=True, metadata=_NO_NOTES)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :]
        for name, colour in COLOURS.items():
            svg = svg.replace(colour, f"var(--{name})")
        return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)

    return drawn


@as_svg
def checks(found: Sequence[Check]) -> Figure:
    """One line a check: its error as a dot, its limit as a bar, on a logarithmic scale."""
    figure = Figure(figsize=(WIDTH, 0.7 + 0.32 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for row, check in enumerate(found):
        colour = COLOURS["first" if check.passed else "bad"]
        limit = check.tolerance or SMALLEST
        axes.barh(row, limit, left=SMALLEST / 10, height=0.5, color=COLOURS["faint"])
        axes.plot([limit, limit], [row - 0.32, row + 0.32], color=COLOURS["ink"], linewidth=1.5)
        if check.error is not None:
            axes.plot([max(check.error, SMALLEST)], [row], "o", color=colour, markersize=6)
    axes.set_xscale("log")
    finite = [check.error for check in found if check.error is not None and math.isfinite(check.error)]
    axes.set_xlim(SMALLEST / 2, max(1.0, 2 * max(finite, default=0.0)))
    axes.set_yticks(range(len(found)), [plain(check.name) for check in found])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("relative error (dot) and its limit (bar)")
    return figure


@as_svg
def top_classes(columns: Mapping[str, Sequence[tuple[str, float]]]) -> Figure:
    """The best classes by each network, side by side."""
    rows = max(len(classes) for classes in columns.values())
    figure = Figure(figsize=(WIDTH - 2, 0.7 + 0.3 * rows), layout="constrained")
    places = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, (name, classes), colour in zip(places, columns.items(), _cycle(len(columns)), strict=True):
        drawn = axes.barh(range(len(classes)), [score for _, score in classes], height=0.45, color=colour)
        axes.bar_label(drawn, [f"{score:.3f}" for _, score in classes], padding=2, fontsize=7)
        for row, (label, _) in enumerate(classes):
            axes.text(0, row - 0.32, plain(_short(label)), fontsize=7.5, va="bottom")
        axes.set(title=plain(name), xlim=(0, 1.15), ylim=(len(classes) - 0.5, -0.85), yticks=[], xticks=[0, 0.5, 1])
        axes.grid(visible=False, axis="y")
    return figure


@as_svg
def over_depth(subject: Subject) -> Figure:
    """Frames left, kernels and strides in time, and the receptive field, from the first layer to the last."""
    layers = subject.layers
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    left, kernels, fields = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 3))
    places = list(range(len(layers)))
    counts = [subject.left.get(layer.name, math.nan) for layer in layers]
    left.fill_between(places, counts, step="mid", color=COLOURS["first"], alpha=0.35)
    left.step(places, counts, where="mid", color=COLOURS["first"])
    left.set_ylabel("frames left")
    left.set_ylim(0, subject.frames * 1.1)
    for strided, colour, label in ((False, "second", "stride 1"), (True, "bad", "stride 2 or more")):
        mine = [
            (place, layer.kernel3d[0])
            for place, layer in zip(places, layers, strict=True)
            if layer.kernel3d and (layer.stride3d[0] > 1) is strided
        ]
        if mine:
            kernels.vlines(*zip(*((place, 0, taps) for place, taps in mine), strict=True), color=COLOURS[colour])
            kernels.plot(*zip(*mine, strict=True), "o", color=COLOURS[colour], markersize=3, label=label)
    kernels.set_ylabel("taps in time")
    kernels.set_ylim(bottom=0)
    handles, labels = kernels.get_legend_handles_labels()
    if len(handles) > 1:
        kernels.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, fontsize=7.5)
    seen = [math.nan if layer.receptive_field is None else layer.receptive_field for layer in layers]
    fields.step(places, seen, where="mid", color=COLOURS["third"])
    top = max((value for value in seen if not math.isnan(value)), default=subject.frames)
    fields.axhline(subject.frames, color=COLOURS["ink"], linewidth=0.8, linestyle="--")
    fields.text(0, subject.frames, f"the clip: {subject.frames} frames", fontsize=7.5, va="bottom")
    everything = [place for place, layer in zip(places, layers, strict=True) if layer.receptive_field is None]
    if everything:
        height = max(top, subject.frames) * 1.15
        fields.plot(everything, [height] * len(everything), "^", color=COLOURS["third"], markersize=4)
        fields.text(everything[-1], height * 1.04, "all frames", fontsize=7.5, ha="right", va="bottom")
        top = 1.1 * height
    fields.set_ylabel("receptive field, frames")
    fields.set_ylim(0, max(top, subject.frames) * 1.2)
    for axes in (left, kernels, fields):
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _name_stages(fields, [layer.name for layer in layers])
    return figure


@as_svg
def layer_errors(layers: Sequence[LayerError], limit: float | None) -> Figure:
    """The relative error of each layer, and the limit of the whole."""
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
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
def taps(subject: Subject) -> Figure:
    """How each layer's energy lies over its taps, and how far its kernel is from its inflated state."""
    names = list(subject.taps)
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    energy, distance = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    furthest = max(len(shares) for shares in subject.taps.values()) // 2
    below = [0.0] * len(names)
    for away in range(furthest + 1):
        mine = [
            sum(share for tap, share in enumerate(shares) if abs(tap - len(shares) // 2) == away)
            for shares in subject.taps.values()
        ]
        label = "middle tap" if away == 0 else f"{away} frame{'s' * (away > 1)} away"
        colour = COLOURS[("first", "second", "third", "bad")[min(away, 3)]]
        energy.bar(range(len(names)), mine, width=0.85, bottom=below, color=colour, label=label)
        below = [a + b for a, b in zip(below, mine, strict=True)]
    energy.set(ylabel="share of energy", ylim=(0, 1))
    figure.legend(*energy.get_legend_handles_labels(), loc="outside upper right", ncols=furthest + 1, fontsize=7.5)
    moved = {layer.name: layer.trained for layer in subject.layers}
    away_from = [100 * (moved.get(name) or 0.0) for name in names]
    distance.bar(range(len(names)), away_from, width=0.85, color=COLOURS["third"])
    distance.set(ylabel="from inflated, %", ylim=(0, max(*away_from, 1.0) * 1.1))
    _name_stages(distance, names)
    return figure


@as_svg
def measured(results: Sequence[Measurement]) -> Figure:
    """Bars of `bench`."""
    return bars(results, colours=_cycle(len({result.case.runtime for result in results})))


def _name_stages(axes: Any, names: Sequence[str]) -> None:
    """Ticks where a stage begins, those that there is room for."""
    begins = [place for place, name in enumerate(names) if place == 0 or stage_of(name) != stage_of(names[place - 1])]
    ticks = begins[:1]
    for place in begins:
        if place - ticks[-1] >= len(names) / MOST_TICKS:
            ticks.append(place)
    axes.set_xticks(ticks, [plain(stage_of(names[place])) for place in ticks], rotation=45, ha="right")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")


def _cycle(count: int) -> list[str]:
    names = ("first", "second", "third", "bad")
    return [COLOURS[names[index % len(names)]] for index in range(count)]


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
