"""Does inflation help? Train the same 3D networks on the same few clips from different starts.

    python examples/does_it_help.py [FOLDER] [--seeds N] [--steps N] [--stills N]

A 2D network learns scikit-learn's digits from many still images. Then 3D networks learn from a few clips which digit
moves, and in which of eight directions. No single frame tells left from right, as both pass the same places. Every
start uses the same clips in the same order, the same number of steps, and the better of two learning rates, chosen on
separate digits. Each seed draws new images, clips and weights. Writes results.json and curves.svg.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import i3dconvert

FRAMES, SIZE, DIGIT, DIGITS = 6, 24, 8, 10
WAYS = [(y, x) for y in (-2, 0, 2) for x in (-2, 0, 2) if (y, x) != (0, 0)]
"""Eight directions, in pixels per frame."""
SPAN = 2 * (FRAMES - 1)
NOISE = 0.5
SPLIT = {"stills": 1000, "clips": 100, "choosing": 200, "test": 497}
"""How the 1,797 images are divided."""
CLIPS, BATCH, POINTS = 512, 32, 6
RATES = (1e-3, 3e-3)
CHOOSING = 1000
"""The seed for choosing learning rates."""


@dataclass(frozen=True)
class Start:
    """The 2D network that becomes 3D, the recipe, and whether it was trained on the stills."""

    network: str
    name: str
    recipe: str
    init: str = "center"
    learnt: bool = True


STARTS = (
    Start("convolutions", "from scratch", "uniform", learnt=False),
    Start("convolutions", "c2d", "c2d"),
    Start("convolutions", "uniform, center", "uniform"),
    Start("convolutions", "uniform, mean", "uniform", "mean"),
    Start("attention", "from scratch", "joint", learnt=False),
    Start("attention", "c2d", "c2d"),
    Start("attention", "joint", "joint"),
)


@dataclass(frozen=True)
class Budget:
    """The budget of every start: steps on clips, steps on stills before, and clips to test on."""

    steps: int
    stills: int
    tested: int


@dataclass(frozen=True)
class Curve:
    """Accuracy on clips of unseen digits: `points` are steps, and the shares of correct digits, directions and both."""

    start: Start
    seed: int
    rate: float
    points: list[tuple[int, float, float, float]]


def layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]


class Attending(nn.Module):
    """Two convolutions that output 6×6 tokens, followed by two blocks of attention."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*layer(1, 16), *layer(16, 48))
        self.position = nn.Parameter(torch.zeros(1, 36, 48))
        self.blocks = nn.Sequential(Block(48, 3), Block(48, 3))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, outputs)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.position
        return cast(Tensor, self.head(self.norm(self.blocks(tokens)).mean(1)))


def network2d(kind: str, outputs: int) -> nn.Module:
    """Return a small network for grey images of 24×24: four convolutions, or two and two blocks of attention."""
    if kind == "attention":
        return Attending(outputs)
    layers: list[nn.Module] = []
    for inputs, channels in ((1, 8), (8, 16), (16, 32), (32, 64)):
        layers += layer(inputs, channels)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, outputs))


def digits(use: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return images `(N, 8, 8)` from 0 to 1 and their labels; no image has two uses."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    mine = dict(zip(SPLIT, torch.split(order, [*SPLIT.values()]), strict=True))[use]
    shown = torch.tensor(images, dtype=torch.float32).reshape(-1, DIGIT, DIGIT) / 16
    return shown[mine], torch.tensor(labels)[mine]


@cache
def clips_of(use: str, count: int, frames: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy clips `(count, 1, frames, 24, 24)` of a moving digit, and labels `(count, 2)`: digit, direction."""
    images, shown = digits(use, seed)
    chance = torch.Generator().manual_seed(seed + list(SPLIT).index(use))
    clips = NOISE * torch.rand(count, 1, frames, SIZE, SIZE, generator=chance)
    labels = torch.zeros(count, 2, dtype=torch.long)
    for clip, label in zip(clips, labels, strict=True):
        index, way = (int(torch.randint(most, (), generator=chance)) for most in (len(images), len(WAYS)))
        steps = WAYS[way]
        free = [SIZE - DIGIT - SPAN * bool(step) for step in steps]
        starts = [
            int(torch.randint(room + 1, (), generator=chance)) + SPAN * (step < 0)
            for room, step in zip(free, steps, strict=True)
        ]
        first = int(torch.randint(FRAMES - frames + 1, (), generator=chance))
        for frame in range(frames):
            y, x = (start + step * (first + frame) for start, step in zip(starts, steps, strict=True))
            clip[0, frame, y : y + DIGIT, x : x + DIGIT] += images[index]
        label[0], label[1] = shown[index], way
    return clips, labels


def learnt_stills(kind: str, budget: Budget, seed: int) -> nn.Module:
    """Return a 2D network that was trained on the digits."""
    torch.manual_seed(seed)
    network = network2d(kind, DIGITS).train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=budget.stills)
    clips, labels = clips_of("stills", budget.stills * BATCH, 1, seed)
    for batch, shown in zip(torch.split(clips[:, :, 0], BATCH), torch.split(labels[:, 0], BATCH), strict=True):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(batch), shown))
        optimizer.step()
        schedule.step()
    network.eval()
    clips, labels = clips_of("choosing", budget.tested, 1, seed)
    with torch.inference_mode():
        right = (network(clips[:, :, 0]).argmax(1) == labels[:, 0]).float().mean()
    print(f"{kind}, seed {seed}: the 2D network recognises {right:.0%} of other stills", flush=True)
    return network


def started(start: Start, learnt: nn.Module, seed: int) -> nn.Module:
    """Return the 3D network of `start`, with a new head for digits and directions."""
    torch.manual_seed(seed)
    network = network2d(start.network, DIGITS + len(WAYS))
    if start.learnt:
        own = network.state_dict()
        own.update({key: tensor for key, tensor in learnt.state_dict().items() if own[key].shape == tensor.shape})
        network.load_state_dict(own)
    embedding: Any = "zeros" if start.recipe == "joint" else "none"
    inflated = i3dconvert.inflate(network, start.recipe, cast(Any, start.init), size=SIZE, time_embedding=embedding)
    for module in inflated.modules():
        if isinstance(module, nn.Conv3d) and not start.learnt:
            module.reset_parameters()
    return inflated


def trained(start: Start, learnt: nn.Module, budget: Budget, seed: int, rate: float, tested: str) -> Curve:
    """Train on the clips, in an order that depends only on the seed."""
    network = started(start, learnt, seed).train()
    clips, labels = clips_of("clips", CLIPS, FRAMES, seed)
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=budget.steps)
    points = [(0, *told(network, tested, budget.tested, seed))]
    for step, chosen in enumerate(batches(budget.steps, seed), 1):
        optimizer.zero_grad()
        scores, right = network(clips[chosen]), labels[chosen]
        loss = F.cross_entropy(scores[:, :DIGITS], right[:, 0]) + F.cross_entropy(scores[:, DIGITS:], right[:, 1])
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % max(budget.steps // POINTS, 1) == 0:
            points.append((step, *told(network, tested, budget.tested, seed)))
    return Curve(start, seed, rate, points)


def batches(steps: int, seed: int) -> Iterator[Tensor]:
    """Yield the clips of each step: all of them, then all in another order."""
    chance = torch.Generator().manual_seed(seed)
    epochs = -(-steps * BATCH // CLIPS)
    order = torch.cat([torch.randperm(CLIPS, generator=chance) for _ in range(epochs)])
    yield from torch.split(order, BATCH)[:steps]


def told(network: nn.Module, use: str, count: int, seed: int) -> tuple[float, float, float]:
    """Return the shares of correct digits, directions and both."""
    clips, labels = clips_of(use, count, FRAMES, seed)
    network.eval()
    with torch.inference_mode():
        scores = torch.cat([network(some) for some in torch.split(clips, 100)])
    network.train()
    right = torch.stack((scores[:, :DIGITS].argmax(1), scores[:, DIGITS:].argmax(1)), 1) == labels
    digit, direction = right.float().mean(0).tolist()
    return digit, direction, float(right.all(1).float().mean())


def experiment(budget: Budget, seeds: int) -> Iterator[Curve]:
    """Choose a learning rate for each start, then train it with each seed."""
    rates: dict[Start, float] = {}
    for seed in (CHOOSING, *range(seeds)):
        learnt = {kind: learnt_stills(kind, budget, seed) for kind in dict.fromkeys(s.network for s in STARTS)}
        for start in STARTS:
            if seed == CHOOSING:
                tried = [trained(start, learnt[start.network], budget, seed, rate, "choosing") for rate in RATES]
                rates[start] = max(tried, key=lambda curve: curve.points[-1][3]).rate
                print(f"{start.network}, {start.name}: learning rate {rates[start]}", flush=True)
            else:
                yield trained(start, learnt[start.network], budget, seed, rates[start], "test")


def summary(curves: Sequence[Curve]) -> Iterator[str]:
    """Return a line for each start: the final means over the seeds, and standard deviations."""
    yield f"{'network':14} {'start':17} {'digit':>10} {'direction':>11} {'both':>11}   both, half way"
    for start in STARTS:
        mine = [curve.points for curve in curves if curve.start == start]
        last, half = (torch.tensor([points[at][1:] for points in mine]) for at in (-1, len(mine[0]) // 2))
        cells = [
            f"{mean:.0%} ± {spread:.0%}" for mean, spread in zip(last.mean(0), last.std(0, correction=0), strict=True)
        ]
        yield f"{start.network:14} {start.name:17} {cells[0]:>10} {cells[1]:>11} {cells[2]:>11}   {half.mean(0)[2]:.0%}"


def figure(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the accuracy over the steps, a panel for each network, with the mean and range of the seeds."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    kinds = list(dict.fromkeys(curve["start"]["network"] for curve in curves))
    for axes, kind in zip(drawn.subplots(1, len(kinds), sharey=True), kinds, strict=True):
        mine = [curve for curve in curves if curve["start"]["network"] == kind]
        for name in dict.fromkeys(curve["start"]["name"] for curve in mine):
            runs = torch.tensor([curve["points"] for curve in mine if curve["start"]["name"] == name])
            steps, both = runs[0, :, 0], runs[:, :, 3]
            (line,) = axes.plot(steps, both.mean(0), marker="o", markersize=3, label=name)
            axes.fill_between(steps, both.amin(0), both.amax(0), color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=kind, xlabel="steps", ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
    drawn.axes[0].set_ylabel("digit and direction correct")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/does_it_help"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=128, help="training steps, with 32 clips each")
    parser.add_argument("--stills", type=int, default=800, help="training batches of stills for the 2D networks")
    parser.add_argument("--tested", type=int, default=300, help="test clips, of unseen digits")
    options = parser.parse_args()
    budget = Budget(options.steps, options.stills, options.tested)
    torch.set_num_threads(1)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    curves = []
    for curve in experiment(budget, options.seeds):
        curves.append(curve)
        *_, (_, digit, direction, both) = curve.points
        print(
            f"{curve.start.network}, {curve.start.name}, seed {curve.seed}: "
            f"{digit:.0%} of the digits, {direction:.0%} of the directions, {both:.0%} of both",
            flush=True,
        )
        (folder / "results.json").write_text(json.dumps([asdict(curve) for curve in curves]), encoding="utf-8")
    figure([asdict(curve) for curve in curves]).savefig(folder / "curves.svg", transparent=True)
    print("\n".join(summary(curves)))


if __name__ == "__main__":
    main()
