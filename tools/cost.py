"""Measure the cost of inflating, verifying and exporting ResNet-152, as whole processes: `python -m tools.cost`.

One run measures a process that imports torch and torchvision, one that also reads the 2D file and writes as many
bytes as the result has, and the commands. It prints wall seconds and peak memory, medians of three.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

NAME = "resnet152"
RUNS = 3
COPY = """
import os, sys, torch, torchvision
with open(sys.argv[1], "rb") as source:
    while source.read(1 << 24):
        pass
with open(sys.argv[2], "wb") as place:
    for _ in range(int(sys.argv[3]) >> 20):
        place.write(bytes(1 << 20))
    os.fsync(place.fileno())
"""
WEIGHTS = """
import sys, torch, torchvision
torch.save(torchvision.models.get_model(sys.argv[1]).state_dict(), sys.argv[2])
"""
PYTHON = [sys.executable, "-c"]
TOOL = [sys.executable, "-m", "i3dconvert"]


def cost(words: list[str], runs: int = RUNS) -> tuple[float, float]:
    """Return a process's wall seconds and peak MiB (which start at this process's own: do not import torch here)."""
    seconds, peaks = [], []
    for _ in range(runs):
        started = time.perf_counter()
        process = os.posix_spawn(words[0], words, os.environ)
        _, status, usage = os.wait4(process, 0)
        if status:
            raise SystemExit(f"{' '.join(words)} failed")
        seconds.append(time.perf_counter() - started)
        peaks.append(usage.ru_maxrss / 1024)
    return statistics.median(seconds), statistics.median(peaks)


LARGE = """
import torch
from torch import nn

def build():
    return nn.Sequential(*(nn.Conv2d(1024 if index else 3, 1024, 3, padding=1) for index in range(271)), Head())

class Head(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))
"""
SHARDS = """
import importlib.util, json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
spec = importlib.util.spec_from_file_location("large", sys.argv[1])
large = importlib.util.module_from_spec(spec)
spec.loader.exec_module(large)
folder, names = Path(sys.argv[2]), {}
with torch.device("meta"):
    state = large.build().state_dict()
for shard in range(10):
    keys = list(state)[shard::10]
    save_file({key: torch.randn(state[key].shape) * 0.01 for key in keys}, folder / f"{shard}.safetensors")
    names |= dict.fromkeys(keys, f"{shard}.safetensors")
(folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
"""


def large() -> None:
    """Print the cost of inflating a network of 10 GB."""
    with TemporaryDirectory() as folder:
        module, result = Path(folder) / "large.py", Path(folder) / "net.safetensors"
        index = Path(folder) / "model.safetensors.index.json"
        module.write_text(LARGE)
        cost([*PYTHON, SHARDS, str(module), folder], 1)
        words = ["inflate", f"{module}:build", "-w", str(index), "-o", str(result), "--size", "32", "--quiet"]
        seconds, peak = cost([*TOOL, *words, "-r", "c2d", "-t", "*[05]=3"], 1)
        imports = cost([*PYTHON, "import torch, torchvision"])[1]
        read = sum(path.stat().st_size for path in Path(folder).glob("[0-9].safetensors"))
        print(f"{read / 1e9:.1f} GB read, {result.stat().st_size / 1e9:.1f} GB written in {seconds:.0f} s")
        print(f"inflate takes {peak - imports:.0f} MiB more than the imports")


TRAINED = (("resnet50", "uniform", 16, 112), ("vit_b_16", "joint", 8, 224), ("swin_t", "joint", 8, 224))
"""Networks, their recipes, and the frames and size of a clip."""
STEP = """
import statistics, sys, time, torch, i3dconvert
from pathlib import Path

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

def held():
    return torch.cuda.memory_allocated() / 2**20 if on_gpu else memory("VmRSS")

def peak():
    return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else memory("VmHWM")

def step():
    started = time.perf_counter()
    network(clip).sum().backward()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started

name, recipe, frames, size, checkpointed = sys.argv[1:]
on_gpu = torch.cuda.is_available()
device = "cuda" if on_gpu else "cpu"
network = i3dconvert.inflate(name, recipe, weights="random", size=int(size)).train().to(device)
network.set_grad_checkpointing(checkpointed == "True")
clip = torch.randn(4 if on_gpu else 1, 3, int(frames), int(size), int(size), device=device)
step()  # the gradients are allocated from here on
if on_gpu:
    torch.cuda.reset_peak_memory_stats()
else:
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
before = held()
seconds = statistics.median(step() for _ in range(5))
print(seconds, peak() - before)
"""


def training() -> None:
    """Print the cost of a training step, with and without gradient checkpointing."""
    print("| network | recipe | clip | step, ms | checkpointed, ms | times | MiB | checkpointed, MiB | share |")
    for name, recipe, frames, size in TRAINED:
        found = []
        for checkpointed in (False, True):
            words = [*PYTHON, STEP, name, recipe, str(frames), str(size), str(checkpointed)]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"}  # return freed memory
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
            found.append([float(word) for word in done.stdout.split()])
        (plain, most), (again, least) = found
        seconds = f"{plain * 1000:.0f} | {again * 1000:.0f} | {again / plain:.2f}"
        memory = f"{most:.0f} | {least:.0f} | {least / most:.0%}"
        print(f"| {name} | {recipe} | {frames}×{size}×{size} | {seconds} | {memory} |")


def main() -> None:
    """Print the table."""
    with TemporaryDirectory() as folder:
        weights, result = Path(folder) / "weights.pth", Path(folder) / "net.safetensors"
        cost([*PYTHON, WEIGHTS, NAME, str(weights)], 1)
        inflate = [*TOOL, "inflate", NAME, "-w", str(weights), "-o", str(result), "--force", "--quiet"]
        cost(inflate, 1)  # warms the caches of the file system and of Python
        imports = cost([*PYTHON, "import torch, torchvision"])
        copying = cost([*PYTHON, COPY, str(weights), f"{result}.copy", str(result.stat().st_size)])
        inflating = cost(inflate)
        verifying = cost([*TOOL, "verify", str(result), "--quiet"], 1)
        export = [*TOOL, "export", str(result), "--onnx", "--force", "--quiet"]
        exporting = cost(export, 1)
        cost([*inflate, "--init", "mean"], 1)
        exporting_all = cost(export, 1)
        written = result.with_suffix(".onnx").stat().st_size / 2**20
    rows = {
        "imports": imports,
        "imports, reading, writing": copying,
        "inflate": inflating,
        "verify": verifying,
        "export, center": exporting,
        "export, all taps": exporting_all,
    }
    for what, (seconds, peak) in rows.items():
        print(f"{what:26} {seconds:6.1f} s {peak:7.0f} MiB")
    print(f"inflate takes {inflating[0] / copying[0]:.2f} times what imports, reading and writing do")
    print(f"inflate takes {inflating[1] - imports[1]:.0f} MiB more than the imports")
    more = exporting_all[1] - imports[1]
    print(f"the file with all taps has {written:.0f} MiB; its export takes {more / written:.1f} times that")


if __name__ == "__main__":
    ways = {"--large": large, "--training": training}
    next((way for option, way in ways.items() if option in sys.argv), main)()
