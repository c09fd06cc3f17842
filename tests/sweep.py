"""Inflate and verify every backbone, one process each: `python -m tests.sweep [GLOB…] [--init center mean]`.

Results go to `build/sweep.jsonl`, a line a network; one that is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console
from rich.progress import track
from torch import nn

from i3dconvert import backbones
from i3dconvert.inflation import inflate_loaded
from i3dconvert.lift.network import Network3d
from i3dconvert.verification import Report, Settings, verify

RESULTS = Path("build/sweep.jsonl")
MEMORY = 24 * 2**30
SECONDS = 1800


def measure(name: str, init: str) -> dict[str, object]:
    """Inflate `name` with seeded random weights and verify it in float64 and float32."""
    started = time.perf_counter()
    model, origin = backbones.load(name, "random")
    network = inflate_loaded(model, origin, init=init)
    inflation = network.inflation
    report = verify_small(model, network)
    spatial = [layer for layer in inflation.layers if layer.geometry.kind == "spatial"]
    errors = {check.name.split(", ")[1]: check.error for check in report.checks if check.error is not None}
    return {
        "passed": report.passed,
        "reason": report.reason,
        "recipe": inflation.recipe.name,
        "convolutions": len(spatial),
        "lifted": sum(layer.lifted for layer in spatial),
        "folds": inflation.folds,
        **errors,
        "seconds": round(time.perf_counter() - started, 1),
    }


def verify_small(model: nn.Module, network: Network3d) -> Report:
    """Verify on two frames (or as few as the recipe allows), at a little over half the backbone's size if that goes."""
    frames = max(2, network.inflation.minimum_frames)
    if network.inflation.any_size:
        with suppress(RuntimeError):
            return verify(model, network, Settings(frames=frames, size=network.inflation.input[-1] * 9 // 16))
    return verify(model, network, Settings(frames=frames))


def one(name: str, init: str) -> dict[str, object]:
    """`measure` in a process of its own, whose crash or hunger for memory is a result like any other."""
    command = ["bash", "-c", 'ulimit -v "$0"; exec "$@"', str(4 * MEMORY // 1024), sys.executable, "-m", __spec__.name]
    try:
        done = subprocess.run([*command, "--one", name, init], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"passed": False, "reason": f"not done in {SECONDS} s"}
    if done.returncode == 0:
        result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return result
    last = (done.stderr.strip().splitlines() or [f"killed ({done.returncode})"])[-1]
    return {"passed": False, "reason": last}


def jobs(globs: list[str], inits: list[str]) -> Iterator[tuple[str, str]]:
    """What is asked for and not there yet."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    done = {(row["name"], row["init"]) for row in map(json.loads, lines)}
    for init in inits:
        for name in backbones.qualified_names():
            if asked(name, globs) and (name, init) not in done:
                yield name, init


def asked(name: str, globs: list[str]) -> bool:
    """Whether the name is wanted; without globs, torchvision's all are."""
    return any(fnmatchcase(name, glob) for glob in globs) if globs else "/" not in name


def main() -> int:
    """Run what is missing; the exit code is 1 if any result asked for is a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("globs", nargs="*", help="such as 'resnet*' or 'timm/convnext*'")
    parser.add_argument("--init", nargs="+", default=["center", "mean"], choices=["center", "mean"])
    parser.add_argument("--one", nargs=2, metavar=("NAME", "INIT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return 0
    globs: list[str] = arguments.globs
    RESULTS.parent.mkdir(exist_ok=True)
    console = Console(stderr=True)
    for name, init in track(list(jobs(globs, arguments.init)), "sweep", console=console):
        row = {"name": name, "init": init, **one(name, init)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not row["passed"]:
            console.print(f"{name} ({init}): {row['reason']}", markup=False)
    rows = list(map(json.loads, RESULTS.read_text().splitlines()))
    wanted = [row for row in rows if row["init"] in arguments.init and asked(row["name"], globs)]
    passed = sum(bool(row["passed"]) for row in wanted)
    print(f"{passed} of {len(wanted)} equal to their 2D networks")
    return int(passed != len(wanted))


if __name__ == "__main__":
    sys.exit(main())
