"""What inflating, verifying and exporting ResNet-152 cost, as whole processes: `python -m tests.cost`.

Side by side in one run: a process that imports torch and torchvision; one that also reads the 2D file and writes as
many bytes as the result has; and the commands. Wall seconds and peak memory, medians of three.
"""

from __future__ import annotations

import os
import statistics
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
import sys, torch
from i3dconvert import backbones
torch.save(backbones.load(sys.argv[1], "random")[0].state_dict(), sys.argv[2])
"""
PYTHON = [sys.executable, "-c"]
TOOL = [sys.executable, "-m", "i3dconvert"]


def cost(words: list[str], runs: int = RUNS) -> tuple[float, float]:
    """Wall seconds and MiB at the peak of a process (which counts this one's until it is its own: torch stays out)."""
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


def main() -> None:
    """Print the table."""
    with TemporaryDirectory() as folder:
        weights, result = Path(folder) / "weights.pth", Path(folder) / "net.safetensors"
        cost([*PYTHON, WEIGHTS, NAME, str(weights)], 1)
        inflate = [*TOOL, "inflate", NAME, "-w", str(weights), "-o", str(result), "--force", "--quiet"]
        cost(inflate, 1)  # the caches of the file system and of Python are warm from here on
        imports = cost([*PYTHON, "import torch, torchvision"])
        copying = cost([*PYTHON, COPY, str(weights), f"{result}.copy", str(result.stat().st_size)])
        inflating = cost(inflate)
        verifying = cost([*TOOL, "verify", str(result), "--quiet"], 1)
        exporting = cost([*TOOL, "export", str(result), "--onnx", "--force", "--quiet"], 1)
    rows = {
        "imports": imports,
        "imports, reading, writing": copying,
        "inflate": inflating,
        "verify": verifying,
        "export": exporting,
    }
    for what, (seconds, peak) in rows.items():
        print(f"{what:26} {seconds:6.1f} s {peak:7.0f} MiB")
    print(f"inflate takes {inflating[0] / copying[0]:.2f} times what imports, reading and writing do")
    print(f"inflate takes {inflating[1] - imports[1]:.0f} MiB more than the imports")


if __name__ == "__main__":
    main()
