"""Verify the recipe `joint` once for each form of attention: `python -m tools.joint [GLOB…]`.

Names of torchvision and timm whose networks have the same class, and attention modules with the same classes and flags,
are of one form, which the smallest of them stands for. `--networks` compares all of their modules instead. All networks
of transformers and vit-pytorch in `tools/outside.py` run, too. Each network has random weights, few blocks, two frames,
and the smallest image that it takes; it is compared in float64. Results go to `build/joint.jsonl`; a name with a result
is not run again. `python -m tools.sweep --table` writes them to `docs/coverage.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from i3dconvert import backbones
from i3dconvert.backbones import Backbone
from i3dconvert.errors import I3DError, VerificationError
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.planning import fill, plan
from i3dconvert.recipes import preset
from i3dconvert.verification import Settings, verify
from i3dconvert.weights import randomise
from tools.outside import CATALOGUE
from tools.sweep import JOINT, asked, one, read, smallest_first

OUTSIDE = ("transformers", "vit-pytorch")

_ATTENTION = re.compile("att|mhsa|mha|shsa|multiquery", re.IGNORECASE)
"""What the names of classes of attention modules contain."""

Form = tuple[str, frozenset[Any]]


def measure(name: str) -> dict[str, object]:
    """Inflate a small form of `name` with `joint` and verify it on two frames, in float64."""
    started, blocks = time.perf_counter(), {}
    if name in CATALOGUE:
        model, shape = CATALOGUE[name].build().eval(), CATALOGUE[name].shape
    else:
        backbone, model, shape = next(smallest_first(name, -1))
        blocks = {key: backbone.arguments[key] for key in ("depth", "depths") if key in backbone.arguments}
    randomise(model, 0, shape)
    planned = plan(model, preset("joint"), Style("center"), shape)
    network = fill(planned.network(model), planned.inflation.state(model.state_dict()))
    found = [layer for layer in planned.inflation.layers if layer.geometry.kind == "attention"]
    frames, dtype = max(2, planned.inflation.minimum_frames), "float64"
    try:
        report = verify(model, network, Settings(frames=frames, dtypes=(torch.float64,)))
    except VerificationError:  # the 2D network accepts float32 only
        dtype, report = "float32", verify(model, network, Settings(frames=frames, dtypes=(torch.float32,)))
    return {
        "passed": report.passed,
        "reason": "" if report.passed else report.reason,
        "class": type(model).__name__,
        "size": shape[-1],
        "blocks": blocks,
        "attentions": len(found),
        "all frames": sum(layer.lifted for layer in found),
        "refusals": Counter(layer.refusal for layer in found if not layer.lifted),
        dtype: max((check.error for check in report.checks if check.error is not None), default=None),
        "seconds": round(time.perf_counter() - started, 1),
    }


def form(model: nn.Module, whole: bool) -> Form:
    """Return the class of a network, and the classes and flags of its attention modules (`whole`: of all modules)."""
    parts = {(f"{type(module).__module__}.{type(module).__name__}", _flags(module)) for module in model.modules()}
    return type(model).__name__, frozenset(part for part in parts if whole or _ATTENTION.search(part[0].split(".")[-1]))


def _flags(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    kept = {name: value for name, value in vars(module).items() if isinstance(value, bool | str)}
    return tuple(sorted((name, value) for name, value in kept.items() if name[0] != "_" and name != "training"))


def forms(names: Iterable[str], whole: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield the smallest name of each form, and all of its names; networks without attention modules have no form."""
    found: dict[Form, list[tuple[int, str]]] = {}
    for name in names:
        source, bare = backbones.parse(name)
        backbone = Backbone(source, bare, backbones.library(source).arguments(bare, None, None))
        try:
            with torch.device("meta"):
                model = backbones.build(backbone)
        except (RuntimeError, I3DError):
            model = backbones.build(backbone)
        if form(model, whole=False)[1]:
            count = sum(parameter.numel() for parameter in model.parameters())
            found.setdefault(form(model, whole), []).append((count, name))
    for mine in found.values():
        yield min(mine)[1], sorted(name for _, name in mine)


def main() -> int:
    """Run the missing networks; the exit code is 1 if any requested result is a failure."""
    parser = argparse.ArgumentParser(prog="python -m tools.joint", description=__doc__)
    parser.add_argument("globs", nargs="*", help="such as 'timm/vit*' or 'transformers/*'")
    parser.add_argument("--networks", action="store_true", help="one for each form of the whole network")
    arguments = parser.parse_args()
    globs = arguments.globs or ["*"]
    torch.set_num_threads(1)
    outside = [name for name in CATALOGUE if name.startswith(tuple(f"{source}/" for source in OUTSIDE))]
    jobs = dict(forms((name for name in backbones.qualified_names() if asked(name, globs)), arguments.networks))
    jobs |= {name: [name] for name in outside if asked(name, globs)}
    done = {row["name"] for row in read(JOINT)}
    console, context = Console(stderr=True), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["i3dconvert.verification", "i3dconvert.backbones.timm", "torchvision"])
    for name in track([name for name in jobs if name not in done], "joint", console=console):
        row = {"name": name, "names": jobs[name], **one(context, measure, name)}
        with JOINT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not row["passed"]:
            console.print(f"{name}: {row['reason']}", markup=False)
    wanted = [row for row in read(JOINT) if row["name"] in jobs]
    print(f"{sum(bool(row['passed']) for row in wanted)} of {len(wanted)} equal to their 2D networks")
    return int(not all(row["passed"] for row in wanted))


if __name__ == "__main__":
    sys.exit(main())
