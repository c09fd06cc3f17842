"""The cost of attention over time: a network's time with it relative to frame by frame, beside the arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
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
from i3dconvert.reporting.benchmark.runtimes import Case, Run, provider_of, timed

FORMULA = "1 + (T - 1) · A / F for joint, where A is the arithmetic of attention's products and F that of a frame"
"""The ratio of the arithmetic for T frames; it is counted in both networks, so that it also holds for `divided`."""


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
    cases: Sequence[Case], recipes: Sequence[str] = ("joint", "divided"), progress: Progress = silent
) -> Iterator[Ratio]:
    """Yield the ratios for backbones with random weights, in which only attention spans time, as in each recipe.

    Recipes that do not fit a network are skipped. Files use the opset with `Attention` if the installed onnxruntime
    runs it.
    """
    for case in cases:
        for recipe in recipes:
            progress(f"{case.network}, {recipe}, {case.frames} frames, {case.runtime}")
            try:
                over_time = _network(case, _attention_alone(recipe))
            except RecipeError:
                continue
            yield _ratio(case, recipe, over_time, _network(case, preset("c2d")))


def _ratio(case: Case, recipe: str, over_time: Network3d, apart: Network3d) -> Ratio:
    channels, *size = inflation_of(apart).input
    clip = torch.randn(case.batch, channels, case.frames, *size, device=case.device, dtype=getattr(torch, case.dtype))
    arithmetic = flops(over_time, clip.shape) / flops(apart, clip.shape)
    with TemporaryDirectory() as folder, torch.inference_mode():
        pair = [_run(network, clip, case, Path(folder)) for network in (over_time, apart)]
        seconds, alone = _in_turns(pair, case)
    return Ratio(case.network, recipe, case.frames, case.runtime, seconds, alone, arithmetic)


def _network(case: Case, recipe: Recipe) -> Network3d:
    network = inflate(case.network, recipe, weights="random", size=case.size).eval()
    return network.to(case.device, getattr(torch, case.dtype))


def _attention_alone(recipe: str) -> Recipe:
    """Return a recipe's attention, with every other layer within a frame."""
    return preset("c2d").with_rules(tuple(rule for rule in preset(recipe).rules if rule.kind == "attention"))


def _run(network: Network3d, clip: Tensor, case: Case, folder: Path) -> Run:
    if case.runtime == "eager":
        return lambda: network(clip)
    if case.runtime == "compile":
        compiled: Run = torch.compile(lambda: network(clip))
        return compiled
    version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    with torch.inference_mode(False):
        example = clip.clone()
        model = trace(frames_form(network), [CLIP], None, (example,), None, OPSET if version >= ONNXRUNTIME else None)
    path = save_in(folder, f"{id(network)}.onnx", model, "", external_data=False)
    loaded = Runtime(path, provider_of(case.device))
    return lambda: loaded(clip)


def _in_turns(pair: Sequence[Run], case: Case) -> tuple[float, float]:
    """Return the medians of two functions that run in turns, so that other load on the machine affects both."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(case.runs + 1):
        for run, taken in zip(pair, times, strict=True):
            seconds = timed(run, case.device)
            if turn:  # the first warms up
                taken.append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])
