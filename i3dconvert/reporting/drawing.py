"""Charts: their common style, measurements as bars, and the classes of a video over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i3dconvert.errors import OutputError
from i3dconvert.files import check_output, replacing
from i3dconvert.names import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from i3dconvert.classification import Moment
    from i3dconvert.reporting.benchmark import Measurement

FORMATS = (".svg", ".png")
PAGE = (".html",)
LINES = 5
"""The most classes in a timeline."""
WIDTH = 9.0
"""The width of a chart on a page or a screen, in inches."""
INKS = {
    "ink": "#1c2128",
    "faint": "#d5dae1",
    "first": "#1a6fb5",
    "second": "#2f8f6b",
    "third": "#8a5cc2",
    "bad": "#c8372d",
    "fourth": "#b7791f",
}
"""The colours of charts in files of their own; a report uses placeholders for its page's colours."""
SERIES = ("first", "second", "third", "bad", "fourth")
_INKED = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color")


@contextmanager
def style(inks: Mapping[str, str]) -> Iterator[None]:
    """Set the style of charts that are drawn and saved while active."""
    import matplotlib as mpl
    from matplotlib.rcsetup import cycler

    look: dict[str, Any] = {
        "svg.hashsalt": "i3dconvert",
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.5,
        "legend.frameon": False,
        **dict.fromkeys(_INKED, inks["ink"]),
        "grid.color": inks["faint"],
        "axes.prop_cycle": cycler(color=[inks[name] for name in SERIES]),
    }
    with mpl.rc_context(look):
        yield


def check_chart(path: Path, force: bool, what: str = "chart", formats: Sequence[str] = FORMATS) -> None:
    """Raise `OutputError` before anything is measured if the chart can't be drawn."""
    if path.suffix not in formats:
        raise OutputError(f"can't write a {what} to {path.name}: its name must end in {' or '.join(formats)}")
    check_output(path, force)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OutputError("charts need matplotlib: pip install matplotlib") from None


def draw(results: Sequence[Measurement], path: Path, force: bool = False) -> None:
    """Write the bars of measurements to a file; raises `OutputError`."""
    with style(INKS), replacing(path, force) as place:
        bars(WIDTH, results).savefig(place, format=path.suffix[1:])


def bars(width: float, results: Sequence[Measurement]) -> Figure:
    """Draw a group of bars for each network, one bar for each runtime, in milliseconds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(_group(result) for result in results))
    runtimes = list(dict.fromkeys(result.case.runtime for result in results))
    thickness = 0.8 / len(runtimes)
    figure = Figure(figsize=(width, 1 + 0.35 * len(groups) * len(runtimes)), layout="constrained")
    axes = figure.add_subplot()
    for index, runtime in enumerate(runtimes):
        mine = [result for result in results if result.case.runtime == runtime]
        places = [groups.index(_group(result)) + index * thickness for result in mine]
        spreads = [500 * result.spread for result in mine]
        times = [1000 * result.seconds for result in mine]
        drawn = axes.barh(places, times, thickness, xerr=spreads, label=runtime, ecolor=mpl.rcParams["text.color"])
        axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set_yticks([place + 0.4 - thickness / 2 for place in range(len(groups))], map(plain, groups))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("milliseconds per forward pass, median and quartiles")
    figure.legend(loc="outside upper right", ncols=len(runtimes))
    return figure


def _group(result: Measurement) -> str:
    case = result.case
    of_a_name = "" if case.network.endswith((".onnx", ".safetensors")) else f"{case.init}, "
    return f"{case.network}\n{of_a_name}batch {case.batch}"


def draw_timeline(found: Mapping[str, Sequence[Moment]], path: Path, force: bool = False) -> None:
    """Write the probabilities of the best classes over time, one strip for each source; raises `OutputError`."""
    with style(INKS), replacing(path, force) as place:
        lines(found).savefig(place, format=path.suffix[1:])


def lines(found: Mapping[str, Sequence[Moment]]) -> Figure:
    """Draw a strip for each source, and in it a line for each class."""
    from matplotlib.figure import Figure

    from i3dconvert.classification import mean_of

    figure = Figure(figsize=(WIDTH, 2.6 * len(found)), layout="constrained")
    for strip, (source, moments) in zip(figure.subplots(len(found), squeeze=False)[:, 0], found.items(), strict=True):
        times = [(moment.start + moment.end) / 2 for moment in moments]
        for name, _ in mean_of(list(moments), LINES):
            scores = [dict(moment.best).get(name, 0.0) for moment in moments]
            strip.plot(times, scores, marker="o" if len(times) < 30 else None, markersize=3, label=plain(name))
        strip.set(title=plain(Path(source).name), xlabel="seconds", ylabel="probability", ylim=(-0.03, 1.03))
        strip.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plain(text: str) -> str:
    """Escape text for matplotlib, in which a dollar sign begins a formula, and control characters for SVG."""
    return visible(text).replace("$", r"\$")
