"""The cost of attention over time: a network's time with it relative to frame by frame, beside the arithmetic."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from i3dconvert.errors import RecipeError
from i3dconvert.export.attention import ONNXRUNTIME, OPSET
from i3dconvert.export.frames import frames_form
from i3dconvert.export.placing import save_in
from i3dconvert.export.runtime import CLIP, Runtime
from i3dconvert.export.tracing import trace
from i3dconvert.inflation import inflate
from i3dconvert.lift.arithmetic import flops
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.progress import Progress, silent
from i3dconvert.recipes import Recipe, preset

FORMULA = "1 + (T - 1) · A / F for joint, where A is the arithmetic of attention's products and F that of a frame"
"""The ratio of the arithmetic for T frames; it is counted in both networks, so that it also holds for `divided`."""

RUNS = 5
Run = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """A network with attention over time, relative to itself frame by frame; both run in turns; times are medians."""

    network: str
    recipe: str
    frames: int
    runtime: str
    seconds: float
    seconds_per_frame: float
    """Seconds for each frame when frames run one by one."""
    arithmetic: float
    """The arithmetic, relative to frame by frame."""

    @property
    def ratio(self) -> float:
        """The time, relative to frame by frame."""
        return self.seconds / self.seconds_per_frame

    @property
    def over(self) -> float:
        """The ratio of times divided by that of the arithmetic."""
        return self.ratio / self.arithmetic

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {"ratio": self.ratio, "over": self.over}


def ratios(
    networks: Sequence[str],
    frames: Sequence[int],
    recipes: Sequence[str] = ("joint", "divided"),
    runtimes: Sequence[str] = ("eager", "onnx"),
    runs: int = RUNS,
    progress: Progress = silent,
) -> Iterator[Ratio]:
    """Yield the ratios for backbones with random weights, in which only attention spans time, as in each recipe.

    Recipes that do not fit a network are skipped. Files use the opset with `Attention` if the installed onnxruntime
    runs it.
    """
    for name in networks:
        for recipe in recipes:
            for count in frames:
                yield from _of(name, recipe, count, runtimes, runs, progress)


def _of(name: str, recipe: str, frames: int, runtimes: Sequence[str], runs: int, progress: Progress) -> Iterator[Ratio]:
    progress(f"{name}, {recipe}, {frames} frames")
    try:
        over_time = inflate(name, _attention_alone(recipe), weights="random").eval()
    except RecipeError:
        return
    apart = inflate(name, preset("c2d"), weights="random").eval()
    channels, *size = inflation_of(apart).input
    clip = torch.randn(1, channels, frames, *size)
    with TemporaryDirectory() as folder, torch.inference_mode():
        made = {runtime: [_run(net, clip, runtime, Path(folder)) for net in (over_time, apart)] for runtime in runtimes}
        times = {runtime: _in_turns(pair, runs) for runtime, pair in made.items()}
    counted = flops(over_time, clip.shape) / flops(apart, clip.shape)
    for runtime, (seconds, alone) in times.items():
        yield Ratio(name, recipe, frames, runtime, seconds, alone, counted)


def _attention_alone(recipe: str) -> Recipe:
    """Return a recipe's attention, with every other layer within a frame."""
    return preset("c2d").with_rules(tuple(rule for rule in preset(recipe).rules if rule.kind == "attention"))


def _run(network: Network3d, clip: Tensor, runtime: str, folder: Path) -> Run:
    if runtime == "eager":
        return lambda: network(clip)
    version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    with torch.inference_mode(False):
        example = clip.clone()
        model = trace(frames_form(network), [CLIP], None, (example,), None, OPSET if version >= ONNXRUNTIME else None)
    loaded = Runtime(save_in(folder, f"{id(network)}.onnx", model, "", external_data=False))
    return lambda: loaded(clip)


def _in_turns(pair: Sequence[Run], runs: int) -> tuple[float, float]:
    """Return the medians of two functions that run in turns, so that other load on the machine affects both."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs + 1):
        for run, taken in zip(pair, times, strict=True):
            started = time.perf_counter()
            run()
            if turn:  # the first warms up
                taken.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])
