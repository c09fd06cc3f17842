"""Mutated files: each is read, or refused by an error of ours, within two seconds and without a trace."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from i3dconvert import I3DError, checkpoint, export_onnx, inflate, save
from i3dconvert.checkpoint import Document
from i3dconvert.export.runtime import Runtime, read_document
from i3dconvert.export.seal import broken
from i3dconvert.recipes import PRESETS, toml
from i3dconvert.weights import read_state

SECONDS = 2
EACH, MANY = 50, 1700
"""Inputs of each kind: 350 in the default suite, 11,900 by `make fuzz`."""

MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def make_checkpoint(path: Path) -> None:
    save(inflate(MODEL.eval(), size=16), path)


def make_onnx(path: Path) -> None:
    export_onnx(inflate(MODEL.eval(), size=16), path, static=True)


def read_onnx(path: Path) -> None:
    read_document(path)
    broken(path)
    Runtime(path)


Kind = tuple[str, Callable[[Path], object], Callable[[Path], object]]
BYTES: tuple[Kind, ...] = (
    ("net.safetensors", make_checkpoint, lambda path: checkpoint.load(path, MODEL)),
    ("net.pth", make_checkpoint, lambda path: checkpoint.load(path, MODEL)),
    ("net.onnx", make_onnx, read_onnx),
    ("weights.pth", lambda path: torch.save(MODEL.state_dict(), path), read_state),
    ("weights.safetensors", lambda path: save_file(MODEL.state_dict(), path), read_state),
    ("recipe.toml", lambda path: path.write_text(toml.dumps(PRESETS["volumetric"])), toml.read),
)
"""By file name: how one is made, and how it is read."""


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """What is done, where (as a share of the file), and with which bytes."""
    what = st.sampled_from(["flip", "overwrite", "insert", "cut", "repeat", "truncate"])
    return draw(
        st.lists(
            st.tuples(what, st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)),
            min_size=1,
            max_size=4,
        )
    )


def mutated(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    out = bytearray(content)
    for what, share, extra in changes:
        # Half of the changes fall into the header, where they matter.
        place = int(share * 2 * len(out)) if share < 0.5 else int((share - 0.5) * 2 * min(len(out), 600))
        place = min(place, max(len(out) - 1, 0))
        if what == "flip" and out:
            out[place] ^= 1 << extra[0] % 8
        elif what == "overwrite":
            out[place : place + len(extra)] = extra
        elif what == "insert":
            out[place:place] = extra
        elif what == "cut":
            del out[place : place + extra[0]]
        elif what == "repeat":
            out[place:place] = out[place : place + extra[0]]
        else:
            del out[place:]
    return bytes(out)


class Hang(Exception):
    """Raised by the alarm."""


def survives(read: Callable[[], object]) -> None:
    """`read` returns or raises an error of ours, in time."""

    def alarm(signum: int, frame: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    message = ""
    try:
        read()
    except I3DError as error:
        message = str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert "Traceback" not in message


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    for name, make, _ in BYTES:
        make(folder / name)
    return {name: (folder / name).read_bytes() for name, _, _ in BYTES}


def bytes_survive(kind: Kind, originals: dict[str, bytes], changes: list[tuple[str, float, bytes]]) -> None:
    name, _, read = kind
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(mutated(originals[name], changes))
        survives(lambda: read(path))
        assert list(Path(folder).iterdir()) == [path]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=9),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-2, 9), max_size=4),
)


def metadata_survives(text: str, data: st.DataObject) -> None:
    document = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = document
        while isinstance(place, dict | list) and place:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                place[key] = data.draw(VALUES)
                break
            place = place[key]
    survives(lambda: checkpoint.rebuild(Document.loads(json.dumps(document), Path("net.safetensors")), MODEL))


@pytest.fixture(scope="module")
def metadata(originals: dict[str, bytes]) -> str:
    content = originals["net.safetensors"]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text: str = header["__metadata__"][checkpoint.KEY]
    return text


lenient = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
few = settings(max_examples=EACH, derandomize=True, deadline=None, suppress_health_check=lenient)
many = settings(max_examples=MANY, deadline=None, suppress_health_check=lenient)
kinds = pytest.mark.parametrize("kind", BYTES, ids=[name for name, _, _ in BYTES])


@kinds
@few
@given(changes=mutations())
def test_mutated_bytes(kind: Kind, originals: dict[str, bytes], changes: list[tuple[str, float, bytes]]) -> None:
    bytes_survive(kind, originals, changes)


@few
@given(data=st.data())
def test_mutated_metadata(metadata: str, data: st.DataObject) -> None:
    metadata_survives(metadata, data)


@pytest.mark.fuzz
@kinds
@many
@given(changes=mutations())
def test_many_mutated_bytes(kind: Kind, originals: dict[str, bytes], changes: list[tuple[str, float, bytes]]) -> None:
    bytes_survive(kind, originals, changes)


@pytest.mark.fuzz
@many
@given(data=st.data())
def test_many_mutated_metadata(metadata: str, data: st.DataObject) -> None:
    metadata_survives(metadata, data)


def test_a_hang_is_seen() -> None:
    def forever() -> None:
        while True:
            pass

    with pytest.raises(Hang):
        survives(forever)
    with pytest.raises(ZeroDivisionError):
        survives(lambda: 1 // 0)
