"""Measure the cost of a new frame of live video, with a sliding window of 16 frames and with a stream.

Each runs in its own process, one after the other. `i3dconvert.optimize` computes the window; the 2D network on one
frame is measured for comparison. `--onnx` measures onnxruntime on the stream's file too, which takes minutes to write.
"""

from __future__ import annotations

import subprocess
import sys

CASES = (
    ("resnet50", "uniform", "center"),
    ("resnet50", "uniform", "mean"),
    ("timm/efficientnet_lite0", "uniform", "mean"),
    ("convnext_tiny", "uniform", "mean"),
    ("resnet50", "i3d-resnet", "mean"),
)
"""Networks, their recipes, and `mean` if all taps are used, as after training."""
WAYS = ("2d", "window", "stream")
FRAME = """
import statistics, sys, time, torch, i3dconvert
from pathlib import Path
from tempfile import TemporaryDirectory

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

name, recipe, init, way = sys.argv[1:]
network = i3dconvert.inflate(name, recipe, init, weights="random").eval()
size, per = network.inflation.input[1:], 1
with torch.no_grad():
    if way == "2d":
        flat = i3dconvert.optimize(i3dconvert.inflate(name, "c2d", weights="random").eval())
        clip, run = torch.randn(1, 3, 1, *size), lambda: flat(clip)
    elif way == "window":
        form = i3dconvert.optimize(network)
        clip, run = torch.randn(1, 3, 16, *size), lambda: form(clip)
    elif way == "stream":
        flow = i3dconvert.stream(network)
        per, clip, state = flow.frames, torch.randn(1, 3, flow.frames, *size), flow.start(1, *size)
        def run():
            global state
            _, state = flow.step(clip, state)
    else:
        from i3dconvert.streaming.onnx import export_stream
        from i3dconvert.streaming.runtime import StreamRuntime
        with TemporaryDirectory() as folder:
            export_stream(network, Path(folder) / "net.onnx")
            flow = StreamRuntime(Path(folder) / "net.onnx", sparing=False)
        per, clip, state = flow.frames, torch.randn(1, 3, flow.frames, *size), flow.start(1)
        def run():
            global state
            _, state = flow.step(clip, state)
    del network
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, seconds = memory("VmRSS"), []
    for _ in range(12):
        started = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - started) / per)
print(statistics.median(seconds[3:]) * 1000, memory("VmHWM") - before)
"""


def measure(*words: str) -> tuple[float, float]:
    """Return the milliseconds for a new frame, and the peak MiB besides the weights."""
    done = subprocess.run([sys.executable, "-c", FRAME, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed: {done.stderr.strip().splitlines()[-1]}")
    milliseconds, memory = map(float, done.stdout.split())
    return milliseconds, memory


def main() -> None:
    """Print the table."""
    ways = (*WAYS, "onnx") if "--onnx" in sys.argv else WAYS
    print(
        f"| network | recipe | taps | {' | '.join(f'{way}, ms' for way in ways)} | times less | MiB, window | stream |"
    )
    for case in CASES:
        found = dict(zip(ways, (measure(*case, way) for way in ways), strict=True))
        times = " | ".join(f"{found[way][0]:.0f}" for way in ways)
        less = found["window"][0] / found["stream"][0]
        print(f"| {' | '.join(case)} | {times} | {less:.1f} | {found['window'][1]:.0f} | {found['stream'][1]:.0f} |")


if __name__ == "__main__":
    main()
