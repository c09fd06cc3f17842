"""Measure a network's forward pass in several runtimes, each in its own process."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from i3dconvert import checkpoint
from i3dconvert.choices import Init
from i3dconvert.errors import BenchmarkError, I3DError, first_line
from i3dconvert.export import export_onnx
from i3dconvert.export.frames import optimize
from i3dconvert.export.runtime import Runtime, as_input, read_document
from i3dconvert.inflation import inflate
from i3dconvert.lift.arithmetic import flops
from i3dconvert.lift.memory import check_room, told_by_linux
from i3dconvert.lift.network import Network3d, inflation_of
from i3dconvert.progress import Progress, silent
from i3dconvert.streaming.runtime import is_stream
from i3dconvert.video.preprocessing import Preprocessing

WARM_UP, RUNS = 2, 7
_TICK = 1e-9
"""The shortest time that is measured, in seconds."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A measurement: a network (a backbone with random weights, or a file) in a runtime.

    An exported `.onnx` runs unchanged. `init` is for backbones: `mean` uses all temporal taps, as after fine-tuning.
    """

    network: str
    runtime: str
    init: Init = "center"
    batch: int = 1
    frames: int = 16
    size: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    channels_last: bool = False
    runs: int = RUNS


@dataclass(frozen=True)
class Measurement:
    """The result of a case. `seconds` is the median of the runs, `spread` their interquartile range."""

    case: Case
    seconds: float
    spread: float
    peak_memory: int
    """Bytes for loading and running the network, of the process or of torch's allocator on a GPU; 0 if unknown."""
    gflops: float
    """GFLOP of one forward pass of the 3D network; a multiplication and an addition count as two."""

    @property
    def frames_per_second(self) -> float:
        """Input frames per second."""
        return self.case.batch * self.case.frames / max(self.seconds, _TICK)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        clips = self.case.batch / max(self.seconds, _TICK)
        return asdict(self) | {"clips_per_second": clips, "frames_per_second": self.frames_per_second}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Measurement:
        """Read the data written by `to_dict`; raises `BenchmarkError`."""
        try:
            fields = {name: document[name] for name in cls.__dataclass_fields__ if name != "case"}
            return cls(Case(**document["case"]), **fields)
        except (KeyError, TypeError) as error:
            raise BenchmarkError(f"a measurement of `bench --json` is not complete: {error}") from None


@dataclass(frozen=True)
class _Prepared:
    """A case with all that it needs to run."""

    shape: tuple[int, ...]
    flops: int
    path: Path | None


def measure(cases: Sequence[Case], progress: Progress = silent) -> Iterator[Measurement]:
    """Run each case in a fresh process, one at a time, after another process has exported it.

    Raises `BenchmarkError`, which names the case that failed.
    """
    with TemporaryDirectory() as folder:
        for done, case in enumerate(cases):
            which = f"{case.network}, {case.runtime}, batch {case.batch}"
            progress(f"{which}, {done + 1} of {len(cases)}", done / len(cases))
            yield _in_process(_run, case, _in_process(_prepare, case, Path(folder)))


def _in_process(function: Callable[[Case, Any], Any], case: Case, argument: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, case, argument, theirs))
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        process.join()
        result = f"its process ended with exit code {process.exitcode}"
    process.join()
    if isinstance(result, str):
        raise BenchmarkError(f"{case.network} in {case.runtime}: {result}")
    return result


def _child(function: Callable[[Case, Any], Any], case: Case, argument: Any, pipe: Any) -> None:
    try:
        pipe.send(function(case, argument))
    except I3DError as error:
        pipe.send(str(error))
    except Exception as error:  # noqa: BLE001 - the user should see a runtime's own errors
        pipe.send(f"{type(error).__name__}: {first_line(error)}")


def _prepare(case: Case, folder: Path) -> _Prepared:
    path = Path(case.network) if case.network.endswith(".onnx") else None
    if path is not None and case.runtime not in _FORMS:
        raise BenchmarkError(f"for ONNX files, --runtime is one of {', '.join(_FORMS)}")
    if path is not None and is_stream(path):
        raise BenchmarkError("bench can't measure a stream; examples/stream.py does")
    network = _network(case)
    channels, *size = inflation_of(network).input
    shape = (case.batch, channels, case.frames, *((case.size, case.size) if case.size else size))
    check_room(network, case.frames, case.batch, case.size, getattr(torch, case.dtype), case.device)
    if path is None and case.runtime in _FORMS:
        optimize = _FORMS[case.runtime]
        stem = case.network.replace("/", "-").replace(":", "-")
        path = folder / f"{stem}-{case.init}-{case.size}-{case.dtype}-{'frames' if optimize else 'plain'}.onnx"
        if not path.exists():
            export_onnx(network, path, optimize=optimize, dtype=getattr(torch, case.dtype))
    return _Prepared(shape, flops(network, shape), path)


def _run(case: Case, prepared: _Prepared) -> Measurement:
    clip = torch.randn(prepared.shape)
    before = _memory("VmRSS")
    run = RUNTIMES[case.runtime](case, clip, prepared.path)
    with torch.inference_mode():
        for _ in range(WARM_UP):
            run()
        times = sorted(timed(run, case.device) for _ in range(case.runs))
    peak = int(torch.cuda.max_memory_allocated()) if case.device == "cuda" else _memory("VmHWM") - before
    seconds = statistics.median(times)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [seconds] * 3
    return Measurement(case, seconds, quartiles[2] - quartiles[0], peak, prepared.flops / 1e9)


def _network(case: Case) -> Network3d:
    if case.network.endswith(".onnx"):
        document = read_document(Path(case.network))
        if document.origin is None:
            raise BenchmarkError("it was made from a module in memory, so its 2D network is unknown")
        return checkpoint.rebuild(document).eval()
    if case.network.endswith(".safetensors"):
        return checkpoint.load(case.network).eval()
    return inflate(case.network, init=case.init, weights="random", size=case.size).eval()


def _eager(case: Case, clip: Tensor, path: Path | None) -> Run:
    dtype = getattr(torch, case.dtype)
    network, clip = _network(case).to(case.device, dtype), clip.to(case.device, dtype)
    if case.channels_last:
        network = network.to(memory_format=torch.channels_last_3d)
        clip = clip.to(memory_format=torch.channels_last_3d)
    return lambda: network(clip)


def _frames(case: Case, clip: Tensor, path: Path | None) -> Run:
    dtype = getattr(torch, case.dtype)
    network, clip = optimize(_network(case)).to(case.device, dtype), clip.to(case.device, dtype)
    return lambda: network(clip)


def _compiled(case: Case, clip: Tensor, path: Path | None) -> Run:
    run: Run = torch.compile(_eager(case, clip, path))
    return run


def _onnxruntime(case: Case, clip: Tensor, path: Path | None) -> Run:
    assert path is not None
    runtime = Runtime(path, provider_of(case.device), trusted=not case.network.endswith(".onnx"))
    feed = {runtime.input: as_input(clip, runtime.dtype, Preprocessing())[0].to(runtime.dtype).numpy()}
    runtime.run(None, feed)  # which bounds its memory, and puts its errors into words
    return lambda: runtime.session.run(None, feed)


def provider_of(device: str) -> str:
    """Return onnxruntime's provider for a device; raises `BenchmarkError` if the installed one has none."""
    import onnxruntime

    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise BenchmarkError(f"the installed onnxruntime has no {provider}; pip install onnxruntime-gpu")
    return provider


def _openvino(case: Case, clip: Tensor, path: Path | None) -> Run:
    try:
        import openvino
    except ImportError:
        raise BenchmarkError("openvino is not installed; pip install openvino") from None
    precision = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[case.dtype]  # its default is bf16
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    dtype = compiled.input(0).get_element_type().to_dtype()
    given = as_input(clip, torch.uint8 if dtype == "uint8" else torch.float32, Preprocessing())[0].numpy().astype(dtype)
    return lambda: compiled(given)


RUNTIMES: dict[str, Callable[[Case, Tensor, Path | None], Run]] = {
    "eager": _eager,
    "frames": _frames,
    "compile": _compiled,
    "onnx": _onnxruntime,
    "onnx-plain": _onnxruntime,
    "openvino": _openvino,
}
"""Runtimes by name: torch as it is, optimised, compiled; onnxruntime on the optimised or plain export; OpenVINO."""

_FORMS = {"onnx": True, "onnx-plain": False, "openvino": False}
"""Runtimes of exported files, and whether they use the optimised one."""


def timed(run: Run, device: str) -> float:
    """Return the seconds of one run; on a GPU between two events, after the work queued before."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _memory(field: str) -> int:
    """Return this process's memory in bytes, from a field of Linux's `/proc/self/status`; elsewhere its peak."""
    with suppress(OSError, StopIteration):
        return told_by_linux("/proc/self/status", field)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
