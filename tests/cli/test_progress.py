"""What a terminal is told while a command works, and that nothing of it gets into pipes."""

import os
import pty
import select
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from i3dconvert.backbones import Source
from i3dconvert.inflation import inflate_to_file
from i3dconvert.progress import stages, within
from tests.conftest import Run

Told = list[tuple[str, float | None]]


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[bytearray]:
    """What is written to standard error, which is a terminal for so long."""
    ours, theirs = pty.openpty()
    told, done = bytearray(), threading.Event()

    def read() -> None:
        while select.select([ours], [], [], 0.1)[0] or not done.is_set():
            if select.select([ours], [], [], 0)[0]:
                told.extend(os.read(ours, 4096))

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        patched.setenv("TERM", "xterm")
        patched.setenv("COLUMNS", "160")
        try:
            yield told
        finally:
            stream.flush()
            done.set()  # what the command started may keep the terminal open: it does not end by itself
            reader.join()
    os.close(ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("inspect net.safetensors", "reading net.safetensors"),
        ("verify net.safetensors -f 8 -s 64", "float64"),
        ("export net.safetensors --onnx --static --force", "tracing, 1 of 3"),
        ("report net.safetensors net.onnx -f 4 -s 64", "net.onnx, 2 of 2: "),
        ("classify net.onnx noise", "loading net.onnx"),
    ],
)
def test_a_terminal_is_told_what_is_done_and_a_pipe_is_not(
    command: str, said: str, run: Run, tmp_path: Path, checkpoint: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(checkpoint, "net.safetensors")
    shutil.copy(exported, "net.onnx")
    Path("noise").mkdir()
    for index in range(4):
        Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "noise" / f"{index}.png")
    with terminal(monkeypatch) as told:
        result = run(*command.split())
    assert result.code == 0, told.decode()
    assert said in told.decode()
    assert "\x1b" not in result.out


def test_pipes_and_quiet_terminals_are_told_nothing(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("inspect", checkpoint)
    with terminal(monkeypatch) as told:
        assert run(*words, "-q").out == ""
    assert told == b""
    result = run(*words)
    assert "reading" not in result.out + result.err
    assert "\x1b" not in result.out + result.err


def test_inflation_tells_how_far_it_is(tmp_path: Path) -> None:
    told: Told = []
    source = Source("shufflenet_v2_x0_5", "random", size=64)
    inflate_to_file(source, tmp_path / "net.safetensors", progress=lambda step, share=None: told.append((step, share)))
    shares = [share for step, share in told if share is not None]
    assert told[0] == ("reading shufflenet_v2_x0_5", None)
    assert shares == sorted(shares)
    assert (shares[0], 0.5 < shares[-1] < 1) == (0, True)


def test_stages_and_parts_are_counted() -> None:
    told: Told = []

    def listen(step: str, share: float | None = None, /) -> None:
        told.append((step, share))

    begin = stages(within(listen, 1, 2, "b.onnx"), ("reading", "checking"))
    begin("checking")
    within(listen, 0, 1, "a.onnx")("reading")
    assert told == [("b.onnx, 2 of 2: checking, 2 of 2", 0.75), ("a.onnx: reading", None)]
