"""Inflate and verify every network, one process each: `python -m tools.sweep [GLOB…] [--init center mean]`.

Globs match torchvision's names, `timm/NAME`, and those of tools/outside.py (`transformers/NAME`, `monai/NAME`, …).

Results go to `build/sweep.jsonl`, a line for each network; one with a result is not run again. Each network runs on
two frames (or as few as its recipe allows) of the smallest image that it takes, networks too large for 24 GiB with
fewer blocks. With `--recipe NAME` all have that recipe, and the results go to `build/sweep-NAME.jsonl`. `--counts`
only counts, without verifying, convolutions, attentions and inlined calls, to `build/counts.jsonl`. `--table` writes
`docs/coverage.md` from the results.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from i3dconvert import backbones, inflate
from i3dconvert.backbones import Backbone
from i3dconvert.comparison.forward import check_outputs, evaluating, outputs
from i3dconvert.errors import I3DError, RecipeError, VerificationError
from i3dconvert.lift.attention.found import attentions
from i3dconvert.lift.attention.joint import in_order
from i3dconvert.lift.attention.order import Orders
from i3dconvert.lift.canonical import canonical
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.network import Network3d
from i3dconvert.lift.planning import Plan, fill, plan
from i3dconvert.recipes import Recipe, default_recipe, parse_rule, preset
from i3dconvert.verification import TOLERANCES, Report, Settings, verify
from i3dconvert.weights import randomise
from tools.coverage import write_table
from tools.others import OTHERS
from tools.outside import CATALOGUE, monai

RESULTS = Path("build/sweep.jsonl")
COUNTS = Path("build/counts.jsonl")
JOINT = Path("build/joint.jsonl")
"""The results of tools/joint.py."""
MEMORY = 24 * 2**30
SECONDS = 1800

SIZES = (128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Sizes to try. On smaller images, a stride of 32 leaves few pixels, and untrained networks magnify rounding."""
IMAGE_SIZES = (64, 96, *SIZES)
"""Sizes for networks that are built for one size, mostly transformers."""
HEAVY = 300e6
"""The number of parameters from which a network runs alone."""
TOO_LARGE = 1.2e9
"""The number of parameters from which float64 does not fit into 24 GiB."""
FEWER_BLOCKS: tuple[dict[str, Any], ...] = (
    {"depth": 4},
    {"depth": 4, "num_kv_heads": (8, 8, 8, 8)},  # one number for each block
    {"depths": (1, 1, 2, 1)},
)


def measure(name: str, init: str, whole_below: float, recipe: str) -> dict[str, object]:
    """Inflate `name` with seeded random weights and verify it in float64; also measures the float32 error."""
    if name in CATALOGUE:
        model, shape = CATALOGUE[name].build().eval(), CATALOGUE[name].shape
        row = measure_at(model, shape, preset("uniform"), init)
        row |= {"volumetric": "" if name in OTHERS else in_volumes(model, shape)}
        return row | ({"3d class": in_class_of_monai(name, model, shape)} if name.startswith("monai/") else {})
    backbone, model, shape = next(smallest_first(name, whole_below))
    blocks = {key: backbone.arguments[key] for key in ("depth", "depths") if key in backbone.arguments}
    told = preset(recipe) if recipe else default_recipe(name)
    return measure_at(model, shape, told, init) | {"blocks": blocks}


def count(name: str) -> dict[str, object]:
    """Count, without verifying, what of `name` becomes 3D, its softmax attentions, and the calls inlined in its tree.

    *can attend* are the attentions that a recipe can extend to other frames.
    """
    _, model, shape = next(smallest_first(name, HEAVY))
    planned = plan(model, default_recipe(name), Style("center"), shape)
    graph = canonical(planned.reading)
    found, orders = attentions(graph), Orders(graph.graph)
    refusals = [one.refusal or in_order(one, orders).refusal for one in found]
    refused = [refusal for refusal in refusals if refusal]
    return {
        "attentions": len(found),
        "can attend": len(found) - len(refused),
        "refusals": sorted({*refused}),
        **structure(planned),
    }


def structure(planned: Plan) -> dict[str, object]:
    """Return what became 3D, and what of the tree is inlined."""
    inflation = planned.inflation
    return {
        "recipe": inflation.recipe.name,
        "run": inflation.convolutions.run,
        "became 3D": inflation.convolutions.lifted,
        "kept": [list(pair) for pair in inflation.convolutions.kept],
        "folds": inflation.folds,
        "calls": len(planned.lifted.calls),
        "inlined": sorted(planned.cut.inlined),
    }


def measure_at(model: nn.Module, shape: tuple[int, int, int], recipe: Recipe, init: str) -> dict[str, object]:
    """Run `measure` for images `(C, H, W)` of one shape."""
    started = time.perf_counter()
    size = sum(parameter.numel() for parameter in model.parameters())
    with alone() if size > HEAVY else nullcontext():
        randomise(model, 0, shape)
        planned = plan(model, recipe, Style(init), shape, trial=True)
        state = model.state_dict()
        network = fill(planned.network(model), planned.inflation.state(state))
        inflation = planned.inflation
        report = in_its_dtypes(model, network, max(2, inflation.minimum_frames))
    failed = [check for check in report.checks if not check.passed and "float32, noise" not in check.name]
    return {
        "passed": not failed,
        "reason": f"{failed[0].name}: {failed[0].detail}" if failed else "",
        "family": type(model).__module__.rpartition(".")[2],
        "size": shape[-1],
        "blocks": {},
        "parameters": size,
        **structure(planned),
        **errors(report),
        "seconds": round(time.perf_counter() - started, 1),
    }


def in_its_dtypes(model: nn.Module, network: Network3d, frames: int) -> Report:
    """Verify in float64 and float32, or in float32 alone if the 2D network accepts nothing else."""
    try:
        return verify(model, network, Settings(frames=frames))
    except VerificationError:
        return verify(model, network, Settings(frames=frames, dtypes=(torch.float32,)))


def in_volumes(model: nn.Module, shape: tuple[int, int, int]) -> str:
    """Return `equal` with the rules needed if depth is treated like height and width; else the reason."""
    try:
        network, rules = inflate_with_remedies(model, shape[-1])
    except I3DError as error:
        return str(error)
    frames = max(2, network.inflation.minimum_frames)
    report = verify(model, network, Settings(frames=frames, dtypes=(torch.float64,)))
    told = " ".join(f"`-t '{rule}'`" for rule in rules)
    return (f"equal with {told}" if rules else "equal") if report.passed else report.reason


def in_class_of_monai(name: str, model: nn.Module, shape: tuple[int, int, int]) -> str:
    """Return whether the `spatial_dims=3` class loads the inflated weights and is equal, on still and moving clips."""
    network, _ = inflate_with_remedies(model, shape[-1])
    try:
        theirs = monai(name.partition("/")[2], dimensions=3).eval()
        theirs.load_state_dict(network.state_dict())
    except (TypeError, ValueError) as error:
        return f"not built: {str(error).partition(chr(10))[0]}"
    except RuntimeError as error:
        return f"no: {str(error).splitlines()[1].strip().removesuffix('.')}"
    frames = max(16, network.inflation.minimum_frames)
    clip = torch.randn(1, shape[0], frames, *shape[1:])
    still, moving = clip[:, :, :1].expand_as(clip), clip
    found = []
    for what, given in (("a still clip", still), ("a moving one", moving)):
        with evaluating(network, torch.float64), evaluating(theirs, torch.float64):
            ours, other = outputs(network(given.double())), outputs(theirs(given.double()))
        found += [what] if check_outputs(what, ours, other, TOLERANCES[torch.float64]).passed else []
    return f"loads, equal on {' and '.join(found)}" if found else "loads, not equal"


def inflate_with_remedies(model: nn.Module, size: int) -> tuple[Network3d, list[str]]:
    """Inflate with `volumetric`, adding the rules that its error messages propose."""
    recipe, rules = preset("volumetric"), []
    while True:
        try:
            return inflate(model, recipe, size=size), rules
        except RecipeError as error:
            proposed = [rule for rule in re.findall("-t '(.*?)'", str(error)) if rule not in rules]
            if not proposed:
                raise
            rules += proposed
            recipe = recipe.with_rules(map(parse_rule, proposed))


def errors(report: Report) -> dict[str, object]:
    """Return the relative error in each dtype, and whether the network computes in float32."""
    found: dict[str, object] = {
        check.name.split(", ")[1]: check.error for check in report.checks if check.error is not None
    }
    return found | {"computes_in_float32": any("computes in float32" in check.detail for check in report.checks)}


def whole_or_fewer_blocks(name: str, whole_below: float) -> tuple[Backbone, nn.Module]:
    """Return the backbone, with fewer blocks if it has more parameters than `whole_below`."""
    source, bare = backbones.parse(name)
    backbone = Backbone(source, bare, backbones.library(source).arguments(bare, None, None))
    fewer = with_any(backbone, FEWER_BLOCKS) if parameters(backbone) > whole_below else None
    return fewer or (backbone, backbones.build(backbone))


def own_shape(backbone: Backbone, model: nn.Module) -> tuple[int, int, int]:
    """Return the shape `(C, H, W)` of the images that it was made for."""
    known = backbones.library(backbone.source)
    size = known.image_size(backbone.name, None, backbone.arguments)
    return known.channels(backbone.name, model, size), size, size


def smallest_first(name: str, whole_below: float) -> Iterator[tuple[Backbone, nn.Module, tuple[int, int, int]]]:
    """Yield the backbone, with fewer blocks if it is too large, and each image shape `(C, H, W)` that it accepts."""
    backbone, model = whole_or_fewer_blocks(name, whole_below)
    channels, default, _ = own_shape(backbone, model)
    for size in SIZES:
        if size < default and takes(model, (channels, size, size)):
            yield backbone, model, (channels, size, size)
    for size in IMAGE_SIZES:
        found = with_any(backbone, ({"img_size": size},)) if size < default else None
        if found is not None and takes(found[1], (channels, size, size)):
            yield *found, (channels, size, size)
    yield backbone, model, (channels, default, default)


def parameters(backbone: Backbone) -> int:
    """Return the number of parameters; 0 if they can't be counted without allocating them."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in backbones.build(backbone).parameters())
    except (RuntimeError, I3DError):
        return 0


def with_any(backbone: Backbone, candidates: tuple[dict[str, Any], ...]) -> tuple[Backbone, nn.Module] | None:
    """Build the backbone with the first of these arguments that its builder accepts."""
    for arguments in candidates:
        changed = replace(backbone, arguments={**backbone.arguments, **arguments})
        try:
            return changed, changed.library.build(changed.name, changed.arguments).eval()
        except Exception:  # noqa: BLE001 - builders reject arguments with any exception
            continue
    return None


def takes(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Return whether the network accepts an image of this shape."""
    try:
        with torch.no_grad():
            model(torch.zeros(2, *shape))
    except Exception:  # noqa: BLE001 - networks reject a size with any exception
        return False
    return True


def verify_small(model: nn.Module, network: Any) -> Report:
    """Verify on two frames (or as few as the recipe allows), at a little over half the size if possible."""
    frames = max(2, network.inflation.minimum_frames)
    if network.inflation.any_size:
        try:
            return verify(model, network, Settings(frames=frames, size=network.inflation.input[-1] * 9 // 16))
        except VerificationError:
            pass
    return verify(model, network, Settings(frames=frames))


@contextmanager
def alone() -> Iterator[None]:
    """Let one network run at a time; the lock is released when its process ends in any way."""
    with RESULTS.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _child(job: Callable[..., dict[str, object]], arguments: tuple[Any, ...], pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    try:
        pipe.send(job(*arguments))
    except Exception as error:  # noqa: BLE001 - a row like any other
        line = str(error).strip().partition("\n")[0]
        pipe.send({"passed": False, "reason": f"{type(error).__name__}: {line}"})


def one(context: Any, job: Callable[..., dict[str, object]], *arguments: Any) -> dict[str, object]:
    """Run a job in its own process; a crash or lack of memory is a result, too."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, arguments, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS):
            return {"passed": False, "reason": f"not done in {SECONDS} s"}
        result: dict[str, object] = ours.recv()
        return result
    except EOFError:
        process.join()
        return {"passed": False, "reason": f"killed ({process.exitcode})"}
    finally:
        process.kill()
        process.join()


def missing(globs: list[str], inits: list[str], results: Path) -> Iterator[tuple[str, str]]:
    """Yield the requested networks that have no result yet."""
    done = {(row["name"], row["init"]) for row in read(results)}
    for init in inits:
        for name in (*backbones.qualified_names(), *CATALOGUE):
            if asked(name, globs) and (name, init) not in done:
                yield name, init


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the results so far."""
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def asked(name: str, globs: list[str]) -> bool:
    """Return whether a glob matches the name; without globs, all of torchvision's match."""
    return any(fnmatchcase(name, glob) for glob in globs) if globs else "/" not in name


def count_all(globs: list[str], context: Any, pool: ThreadPoolExecutor) -> int:
    """Run `count` for networks without a result; the exit code is 1 if one can't be read."""
    done = {row["name"] for row in read(COUNTS)}
    names = [name for name in backbones.qualified_names() if asked(name, globs) and name not in done]
    running = {pool.submit(one, context, count, name): name for name in names}
    for future in track(as_completed(running), "counts", total=len(running), console=Console(stderr=True)):
        row = {"name": running[future], **future.result()}
        with COUNTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    wanted = [row for row in read(COUNTS) if asked(row["name"], globs)]
    found, can = (sum(row.get(key, 0) for row in wanted) for key in ("attentions", "can attend"))
    print(f"{can} of {found} attentions in {len(wanted)} networks can see other frames")
    return int(not all("attentions" in row for row in wanted))


def main() -> int:
    """Run the missing networks; the exit code is 1 if any requested result is a failure."""
    parser = argparse.ArgumentParser(prog="python -m tools.sweep", description=__doc__)
    parser.add_argument("globs", nargs="*", help="such as 'resnet*' or 'timm/convnext*'")
    parser.add_argument("--init", nargs="+", default=["center"], choices=["center", "mean"])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--whole-below", type=float, default=TOO_LARGE, help="parameters from which on to build fewer blocks"
    )
    parser.add_argument("--recipe", default="", help="a preset for all, instead of each network's own")
    parser.add_argument("--counts", action="store_true", help="only count what becomes 3D, without verifying")
    parser.add_argument("--table", action="store_true", help="only write docs/coverage.md")
    arguments = parser.parse_args()
    if arguments.table:
        write_table(read(), read(COUNTS), read(JOINT), Path("docs/coverage.md"))
        return 0
    globs: list[str] = arguments.globs
    results = RESULTS.with_stem(f"sweep-{arguments.recipe}") if arguments.recipe else RESULTS
    results.parent.mkdir(exist_ok=True)
    console = Console(stderr=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["i3dconvert.verification", "i3dconvert.backbones.timm", "torchvision"])
    with ThreadPoolExecutor(arguments.jobs) as pool:
        if arguments.counts:
            return count_all(globs, context, pool)
        running = {
            pool.submit(one, context, measure, *job, arguments.whole_below, arguments.recipe): job
            for job in missing(globs, arguments.init, results)
        }
        for future in track(as_completed(running), "sweep", total=len(running), console=console):
            name, init = running[future]
            row = {"name": name, "init": init, **future.result()}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if not row["passed"]:
                console.print(f"{name} ({init}): {row['reason']}", markup=False)
    wanted = [row for row in read(results) if row["init"] in arguments.init and asked(row["name"], globs)]
    passed = sum(bool(row["passed"]) for row in wanted)
    print(f"{passed} of {len(wanted)} equal to their 2D networks")
    return int(passed != len(wanted))


if __name__ == "__main__":
    sys.exit(main())
