"""Whatever happens while a file is written, there is the old file, the new one, or none: never a broken one."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import onnx
import pytest
import torch

from i3dconvert import checkpoint, export_onnx
from i3dconvert.backbones import Source
from i3dconvert.cli import main
from i3dconvert.export.runtime import Runtime
from i3dconvert.inflation import inflate_to_file
from i3dconvert.weights import digest

FACTORY = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(3, 256, 3), nn.Conv2d(256, 256, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
FORK = multiprocessing.get_context("fork")
ENDING = (signal.SIGINT, signal.SIGTERM)

Work = Callable[[], object]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network of one's own, its checkpoint and its export; it is the current one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    Path("nets.py").write_text(FACTORY)
    inflate(0)
    export()
    return Path.cwd()


def inflate(seed: int) -> None:
    inflate_to_file(Source("nets.py:net", weights="random", seed=seed, size=16), Path("net.safetensors"), force=True)


def export() -> None:
    export_onnx(checkpoint.load("net.safetensors"), Path("net.onnx"), static=True, force=True)


def inflate_for_ever() -> None:
    for seed in cycle((1, 2)):
        inflate(seed)


def export_for_ever() -> None:
    while True:
        export()


def in_child(work: Work) -> multiprocessing.context.ForkProcess:
    """A forked process. A signal waits until the work begins: in the hooks of fork it would end the tests' own loop."""

    def body() -> None:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        code = work()
        os._exit(code if isinstance(code, int) else 0)

    process = FORK.Process(target=body)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def assert_whole() -> None:
    document, state = checkpoint.read(Path("net.safetensors"))
    assert document.sha256 == digest(state)
    onnx.checker.check_model("net.onnx")
    assert Runtime(Path("net.onnx"))(torch.zeros(1, 3, 16, 16, 16))[0].shape == (1, 256)


def files() -> set[str]:
    return {path.name for path in Path.cwd().iterdir() if path.is_file() or path.name.startswith(".")}


@pytest.mark.parametrize(
    "kills", [pytest.param(10, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.sweep)]
)
@pytest.mark.parametrize(("work", "seconds"), [(inflate_for_ever, 0.5), (export_for_ever, 3)])
def test_killed_at_any_moment(work: Work, seconds: float, kills: int, folder: Path) -> None:
    moments = random.Random(0)
    for _ in range(kills):
        process = in_child(work)
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.join()
        assert_whole()
    inflate(0)
    export()
    assert files() == {"nets.py", "net.safetensors", "net.onnx"}


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_ended_at_any_moment_nothing_is_left(signum: signal.Signals, folder: Path) -> None:
    words = ["inflate", "nets.py:net", "-w", "random", "-s", "16", "-o", "net.safetensors", "--force", "--seed", "1"]
    whole = min(seconds(lambda: in_child(lambda: main(words)).join()) for _ in range(2))  # the first one is cold
    codes = set()
    signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    for index in range(8):
        process = in_child(lambda: main(words))
        time.sleep(whole * (index + 1) / 16)
        os.kill(process.pid or 0, signum)
        process.join()
        codes.add(process.exitcode)
        assert_whole()
        assert files() == {"nets.py", "net.safetensors", "net.onnx"}
    assert codes & {128 + signum, -signum, 1}


@pytest.mark.parametrize(
    "command",
    ["inflate nets.py:net -w random -s 16", pytest.param("export --onnx --static", marks=pytest.mark.slow)],
)
def test_a_full_disk_leaves_the_old_file(command: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "net.safetensors" if "inflate" in command else "net.onnx"
    before = Path(name).read_bytes()

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        return main([*command.split(), "-o", name, "--force"])

    process = in_child(limited)
    process.join()
    assert process.exitcode == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert Path(name).read_bytes() == before
    assert files() == {"nets.py", "net.safetensors", "net.onnx"}


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system with the two outputs on it, and not enough room for either again."""
    place = folder / "disk"
    place.mkdir()
    outputs = [folder / "net.safetensors", folder / "net.onnx"]
    room = sum(output.stat().st_size for output in outputs) + (1 << 16)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", place], check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        for output in outputs:
            shutil.copy(output, place)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inflate nets.py:net -w random -s 16", "export net.safetensors --onnx --static"])
def test_a_disk_that_fills_up_keeps_the_old_file(
    command: str, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "net.safetensors" if "inflate" in command else "net.onnx"
    before = (small_disk / name).read_bytes()
    capfd.readouterr()
    assert main([*command.split(), "-o", str(small_disk / name), "--force"]) == 1
    error = capfd.readouterr().err
    assert "No space left on device" in error
    assert len(error.splitlines()) == 1
    assert (small_disk / name).read_bytes() == before
    assert sorted(path.name for path in small_disk.iterdir()) == ["net.onnx", "net.safetensors"]


@pytest.mark.slow
def test_two_writers_end_with_one_whole_file(folder: Path) -> None:
    for _ in range(5):
        writers = [in_child(lambda seed=seed: inflate(seed)) for seed in (1, 2)]  # type: ignore[misc]
        for writer in writers:
            writer.join()
            assert writer.exitcode == 0
        assert_whole()
    assert files() == {"nets.py", "net.safetensors", "net.onnx"}
