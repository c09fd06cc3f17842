"""Mutation testing: make one small fault at a time in the code, and see whether the tests catch it.

    python -m tools.mutants --sample 300 --seed 0

cosmic-ray makes the faults. Each mutant runs only the tests that execute its line (by coverage contexts), fastest
first, for at most a minute. A mutant that behaves like the original is listed in `tools/equivalent.toml` with
the reason.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import coverage
import tomllib
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "mutants"
ROOMS = {
    "kernels": ("lift/kernels.py", "lift/fillings.py"),
    "recipes": ("recipes",),
    "lift": ("lift",),
    "optimize": ("export/frames.py", "export/framewise.py", "export/images.py"),
    "checkpoint": ("checkpoint",),
    "weights": ("verification/tensors.py",),
}
SECONDS = 60
NO_TESTS = 5
"""pytest's exit code if all tests are deselected, as slow ones are."""
HEAVY = (
    *("torch", "torchvision", "timm", "timm.data", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "transformers"),
    *("av", "hypothesis", "numpy", "PIL.Image", "pytest", "skimage.data", "typer.testing", "selenium.webdriver"),
)
"""Modules imported once; each mutant runs in a fork of that process."""
_WITH_ARGUMENTS = ("core/VariableReplacer", "core/VariableInserter")


@dataclass(frozen=True)
class Mutant:
    """A change at one place in one file."""

    file: str
    line: int
    operator: str
    occurrence: int

    def source(self, root: Path) -> str:
        """Return the file's text with the change."""
        mutated: str = mutate_code((root / self.file).read_text(), get_operator(self.operator)(), self.occurrence)
        return mutated

    def change(self, root: Path) -> tuple[str, str]:
        """Return the first changed line, before and after."""
        lines = zip((root / self.file).read_text().splitlines(), self.source(root).splitlines(), strict=False)
        return next(((a.strip(), b.strip()) for a, b in lines if a != b), ("", ""))


def files(root: Path, rooms: Iterable[str]) -> list[str]:
    """Return the paths, below `root`, of the modules in `rooms`."""
    places = [root / "i3dconvert" / part for room in rooms for part in ROOMS[room]]
    found = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return [str(file.relative_to(root)) for file in found]


@cache
def _meaning(source: str) -> str:
    """Return a module's syntax tree without annotations and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def _changes_something(mutant: Mutant, root: Path) -> bool:
    try:
        return _meaning(mutant.source(root)) != _meaning((root / mutant.file).read_text())
    except SyntaxError:
        return False


def places(root: Path, file: str) -> Iterator[list[Mutant]]:
    """Yield the mutants of a file, grouped by place."""
    found: dict[tuple[int, int], list[Mutant]] = defaultdict(list)
    tree = get_ast((root / file).read_text())
    for name in sorted(set(operator_names()) - {*_WITH_ARGUMENTS}):
        operator, occurrence = get_operator(name)(), 0
        for node in ast_nodes(tree):
            for start, _ in operator.mutation_positions(node):
                found[start].append(Mutant(file, start[0], name, occurrence))
                occurrence += 1
    yield from (found[start] for start in sorted(found))


def sample(root: Path, rooms: Iterable[str], count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants, one per place; a larger sample starts with the smaller one of that seed."""
    draw = random.Random(seed)
    everywhere = [place for file in files(root, rooms) for place in places(root, file)]
    draw.shuffle(everywhere)
    chosen: list[Mutant] = []
    for place in everywhere:
        draw.shuffle(place)
        mutant = next((mutant for mutant in place if _changes_something(mutant, root)), None)
        chosen += [mutant] if mutant else []
        if len(chosen) == count:
            break
    return chosen


class Tests:
    """The tests that execute each line, and their durations."""

    def __init__(self, data: Path, durations: Path, root: Path) -> None:
        self._data = coverage.CoverageData(str(data))
        self._data.read()
        self._root = root
        self.seconds = {
            f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(case.get("time", 0))
            for case in ElementTree.parse(durations).iter("testcase")
            if case.find("skipped") is None
        }

    @cache  # noqa: B019 - one object a run
    def _contexts(self, file: str) -> dict[int, list[str]]:
        found: dict[int, list[str]] = self._data.contexts_by_lineno(str(self._root / file))
        return found

    def of(self, mutant: Mutant) -> list[list[str]]:
        """Return the tests to run, by file: those for the module first, then the fastest.

        For a line that runs when the module is imported, these are the tests that execute any line of it.
        """
        by_line = self._contexts(mutant.file)
        lines = [by_line.get(mutant.line, [])]
        if not any(lines[0]):
            lines = list(by_line.values())
        names = {context.rpartition("|")[0] for contexts in lines for context in contexts if context}
        module = Path(mutant.file).relative_to("i3dconvert")
        room = module.parts[0].removesuffix(".py")

        by_file: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names & self.seconds.keys(), key=lambda name: (self.seconds[name], name)):
            by_file[name.partition("::")[0]].append(name)

        def order(file: str) -> tuple[bool, bool, float]:
            return (module.stem not in file, f"/{room}" not in file, self.seconds[by_file[file][0]])

        return [by_file[file] for file in sorted(by_file, key=order)]


def _run(tree: Path, tests: list[list[str]], seconds: float) -> None:
    """Run `tests` in this forked process until one fails, then exit."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.modules["torch"].set_num_threads(1)
    hypothesis = sys.modules["hypothesis"]  # shrinking a failure would take longer than all tests
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None)
    hypothesis.settings.load_profile("mutants")
    run = sys.modules["pytest"].main
    for names in tests:
        if run(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:xdist", *names]) not in (0, NO_TESTS):
            os._exit(1)
    os._exit(0)


def _result(tree: Path, mutant: Mutant, tests: list[list[str]], seconds: float) -> str:
    """Return `caught`, `survived`, `timed out` or `no test`."""
    if not tests:
        return "no test"
    original = (tree / mutant.file).read_text()
    (tree / mutant.file).write_text(mutant.source(tree))
    try:
        pid = os.fork()
        if pid == 0:
            _run(tree, tests, seconds)
        until = time.monotonic() + 4 * seconds  # a limit for tests that wait without computing
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done and os.WIFSIGNALED(status):
                return "timed out"
            if done:
                return "survived" if status == 0 else "caught"
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "timed out"
    finally:
        (tree / mutant.file).write_text(original)


def _work(tree: Path, seconds: float, jobs: Any, results: Any) -> None:
    """Run a worker in its own copy of the tree."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("i3dconvert", "tests")]:
        del sys.modules[name]
    for name in HEAVY:
        importlib.import_module(name)
    for index, mutant, tests in iter(jobs.get, None):
        results.put((index, _result(tree, mutant, tests, seconds)))


def _copy(root: Path, tree: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (root / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, tree / name)


def run(root: Path, jobs: list[tuple[Mutant, list[list[str]]]], workers: int, seconds: float) -> list[str]:
    """Return the outcome of each mutant."""
    context = multiprocessing.get_context("spawn")
    queue, answers = context.Queue(), context.Queue()
    trees = [BUILD / f"tree{index}" for index in range(workers)]
    for tree in trees:
        _copy(root, tree)
    for index, (mutant, tests) in enumerate(jobs):
        queue.put((index, mutant, tests))
    for _ in trees:
        queue.put(None)
    processes = [context.Process(target=_work, args=(tree, seconds, queue, answers)) for tree in trees]
    for process in processes:
        process.start()
    results = [""] * len(jobs)
    for done in range(len(jobs)):
        index, results[index] = answers.get()
        print(f"{done + 1}/{len(jobs)} {results[index]:9} {_shown(jobs[index][0], root)}", flush=True)
    for process in processes:
        process.join()
    return results


def _shown(mutant: Mutant, root: Path) -> str:
    before, after = mutant.change(root)
    return f"{mutant.file}:{mutant.line}: {before}  →  {after}"


def equivalent(root: Path) -> dict[tuple[str, str, str], str]:
    """Return the mutants that behave like the original: file, line before, line after → the reason."""
    listed = tomllib.loads((Path(__file__).parent / "equivalent.toml").read_text())
    return {(row["file"], row["before"], row["after"]): row["reason"] for row in listed.get("mutant", [])}


def measure() -> None:
    """Run the suite once, and record which tests execute which lines."""
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "coveragerc").write_text(f"[run]\nsource = i3dconvert\ndata_file = {BUILD / 'coverage'}\n")
    words = ["--cov", f"--cov-config={BUILD / 'coveragerc'}", "--cov-context=test", "--cov-report=", "-n", "2"]
    subprocess.run([sys.executable, "-m", "pytest", *words, f"--junitxml={BUILD / 'tests.xml'}"], cwd=ROOT, check=True)


def main() -> None:
    """Print the outcome of each mutant, and the number of each outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", choices=[*ROOMS], default=[*ROOMS], help="where faults are put")
    parser.add_argument("--sample", type=int, default=300, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="processor time for each mutant")
    parser.add_argument("--measured", action="store_true", help="use the coverage that the last run measured")
    parser.add_argument("--coverage", type=Path, default=BUILD / "coverage")
    parser.add_argument("--durations", type=Path, default=BUILD / "tests.xml")
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout to use instead of this one")
    parser.add_argument("--only", type=Path, help="a result of an earlier run: only those that were not caught there")
    parser.add_argument("--output", type=Path, default=BUILD / "mutants.json")
    options = parser.parse_args()
    if not options.measured:
        measure()
    root = options.root.resolve()
    tests, listed = Tests(options.coverage, options.durations, root), equivalent(root)
    chosen = sample(root, options.rooms, options.sample, options.seed)
    if options.only:
        caught = {row["shown"] for row in json.loads(options.only.read_text()) if row["result"] == "caught"}
        chosen = [mutant for mutant in chosen if _shown(mutant, root) not in caught]
    same = [mutant for mutant in chosen if (mutant.file, *mutant.change(root)) in listed]
    jobs = [(mutant, tests.of(mutant)) for mutant in chosen if mutant not in same]
    results = run(root, jobs, options.workers, options.seconds)
    rows = [
        {"shown": _shown(mutant, root), "operator": mutant.operator, "result": result, "tests": sum(map(len, names))}
        for (mutant, names), result in zip(jobs, results, strict=True)
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1))
    for row in rows:
        if row["result"] != "caught":
            print(f"{row['result']}: {row['shown']} ({row['operator']}, {row['tests']} tests)")
    count = Counter(results)
    print(", ".join(f"{count[name]} {name}" for name in ("caught", "survived", "timed out", "no test")), end=", ")
    print(f"{len(same)} listed as equivalent: {count['caught'] / max(len(results), 1):.1%} caught")


if __name__ == "__main__":
    main()
