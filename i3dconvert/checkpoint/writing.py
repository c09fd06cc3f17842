"""Write a checkpoint tensor by tensor, under our names or another framework's."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.checkpoint.document import KEY, Document
from i3dconvert.checkpoint.present import document_of, network_in, note
from i3dconvert.checkpoint.reading import PICKLED, read, rebuild
from i3dconvert.errors import CheckpointError, OutputError
from i3dconvert.files import WEIGHTS, replacing, replacing_in
from i3dconvert.frameworks import framework_of
from i3dconvert.frameworks.framework import Place
from i3dconvert.progress import Progress, silent
from i3dconvert.video.labels import Given
from i3dconvert.weights import Digest, State, Stream, one_thread, raw

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_UNKNOWN = "0" * 64


@dataclass(frozen=True)
class Entry:
    """The description of a tensor before it is computed."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]


Pieces = Callable[[Entry], Iterable[Tensor]]
"""Yields a tensor in parts along its first axis, so that large ones are never whole in memory."""
ReadBack = Callable[[Path, bool], None]


def write(
    path: Path,
    document: Document,
    entries: Iterable[Entry],
    pieces: Pieces,
    force: bool,
    check: ReadBack = lambda path, pickled: None,
) -> str:
    """Write a checkpoint as safetensors, or as `.pth` by its suffix; returns the SHA-256 of its tensors.

    `check` gets the written file, and whether it is a pickle, before the file replaces an existing one.

    Raises `OutputError`, and `LayoutError` if the document's layout has no place for a tensor; `path` is then
    unchanged.
    """
    places, target = _placed(document, list(entries)), document.target
    if target is not None and target.files is not None:
        assert document.origin is not None
        with replacing_in(path, force) as folder:
            for name, content in target.files(document.origin).items():
                (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            return _write_safetensors(folder / WEIGHTS, document, places, pieces, force, check)
    write = _write_pickle if path.suffix in PICKLED else _write_safetensors
    return write(path, document, places, pieces, force, check)


@one_thread()
def write_inflated(
    path: Path,
    document: Document,
    state2d: State,
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> tuple[str, list[Entry]]:
    """Write the inflated tensors of a 2D network, floating-point ones in `dtype` if given.

    Returns the SHA-256 and the entries written; raises what `write` raises.
    """
    inflation = document.inflation
    stream = Stream(document.origin is not None and document.origin.weights.kind == "file")

    def stored(tensor: Tensor) -> torch.dtype:
        return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype

    def pieces(entry: Entry) -> Iterator[Tensor]:
        tensor = inflation.source(entry.key, state2d)
        progress(f"writing {path.name}", sum(written) / total)
        written.append(math.prod(entry.shape))
        yield from inflation.pieces(entry.key, tensor.to(entry.dtype))
        stream.passed(tensor)

    sources = {key: inflation.source(key, state2d) for key in inflation.keys(state2d)}
    entries = [Entry(key, stored(tensor), inflation.shape(key, tensor)) for key, tensor in sources.items()]
    written: list[int] = []
    total = sum(math.prod(entry.shape) for entry in entries) or 1
    return write(path, document, entries, pieces, force), entries


def save(
    network: nn.Module,
    path: str | Path,
    force: bool = False,
    finetuned: bool = False,
    layout: str = "",
    classes: Given = None,
) -> str:
    """Write an inflated network with its current weights; returns the SHA-256 of its tensors.

    Layers of torch that replace others, such as a new head, are kept. A network whose weights moved since they were
    inflated is written as trained. The file is read back before it replaces an existing one.

    Args:
        network: the network, also inside DDP, a moving average or `torch.compile`.
        path: `.safetensors`, or `.pth`, `.pt`, `.pyth`; replaces an existing file only with `force`.
        finetuned: records that the weights are no longer the 2D network's, if nothing else shows it.
        layout: the framework whose names the tensors get, `NAME` or `NAME:NETWORK`.
        classes: the class names, or the path of a `.txt` or `.json` file with them.

    Raises `CheckpointError`, naming what a file can't store (adapters, parametrizations, a cut network, foreign
    classes), `ClassesError`, `OutputError`, `LayoutError`.
    """
    inner, path = network_in(network), Path(path)
    check_suffix(path, layout)
    document, state = document_of(inner, layout, finetuned, classes), inner.state_dict()
    entries = entries_in(state)
    sha256 = write(path, document, entries, lambda entry: [state[entry.key].cpu()], force, _read_back)
    if classes is not None:
        note(inner, classes=document.classes)
    return sha256


def check_suffix(path: Path, layout: str = "") -> None:
    """Raise `OutputError` if the suffix is not a checkpoint's."""
    folder = bool(layout) and framework_of(layout).suffix == ""
    if not folder and path.suffix not in (".safetensors", *PICKLED):
        suffixes = ", ".join((".safetensors", *PICKLED))
        raise OutputError(f"{path} is not a checkpoint's name: use one of the suffixes {suffixes}")


def _read_back(path: Path, pickled: bool) -> None:
    """Raise `CheckpointError` if a file that is not yet in place does not describe the network of its tensors."""
    document, state = read(path, pickled)
    if document.exchanged and document.origin is not None:
        wrong = sorted(rebuild(document, where=path).state_dict().keys() ^ state.keys())
        if wrong:
            raise CheckpointError(f"the network can't be built again from its file: {wrong[0]}")


def entries_in(state: Mapping[str, Tensor]) -> list[Entry]:
    """Return the entries of a state dict's tensors."""
    return [Entry(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in state.items()]


def _placed(document: Document, entries: list[Entry]) -> list[tuple[Place, Entry]]:
    """Return the place of each tensor; zeros that the layout adds have an entry without a key."""
    target = document.target
    if target is None:
        return [(Place(entry.key, entry.shape, entry.key), entry) for entry in entries]
    by_key = {entry.key: entry for entry in entries}
    dtype = next(entry.dtype for entry in entries if entry.dtype.is_floating_point)
    places = framework_of(document.layout).places(target, {entry.key: entry.shape for entry in entries})
    return [(place, by_key[place.key] if place.key else Entry("", dtype, place.shape)) for place in places]


def _write_safetensors(
    path: Path, document: Document, places: list[tuple[Place, Entry]], pieces: Pieces, force: bool, check: ReadBack
) -> str:
    """Write one piece at a time."""
    places = sorted(places, key=lambda placed: (-placed[1].dtype.itemsize, placed[0].name))
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", KEY: replace(document, sha256=_UNKNOWN).dumps(path.parent)}
    }
    offset = 0
    for place, entry in places:
        span = [offset, offset + math.prod(place.shape) * entry.dtype.itemsize]
        header[place.name] = {"dtype": _DTYPES[entry.dtype], "shape": list(place.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    total = Digest()
    with replacing(path, force) as partial:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for place, entry in places:
                for piece in _hashed(total, entry, pieces):
                    file.write(raw(place.theirs(piece)))
            file.seek(8 + text.index(_UNKNOWN.encode()))
            file.write(total.hexdigest().encode())
        check(partial, False)
    return total.hexdigest()


def _write_pickle(
    path: Path, document: Document, places: list[tuple[Place, Entry]], pieces: Pieces, force: bool, check: ReadBack
) -> str:
    """Write a pickle; the document goes where torch keeps module versions, beside the state dict's tensors."""
    total = Digest()
    state: Any = OrderedDict()
    for place, entry in places:
        ours = torch.cat([piece.reshape(-1) for piece in _hashed(total, entry, pieces)]).view(entry.shape)
        state[place.name] = place.theirs(ours).contiguous()
    state._metadata = {KEY: replace(document, sha256=total.hexdigest()).dumps(path.parent)}
    nest = framework_of(document.layout).nest if document.layout else None
    with replacing(path, force) as partial:
        with partial.open("wb") as file:
            torch.save({nest: state} if nest else state, file)
        check(partial, True)
    return total.hexdigest()


def _hashed(total: Digest, entry: Entry, pieces: Pieces) -> Iterator[Tensor]:
    if not entry.key:
        yield torch.zeros(entry.shape, dtype=entry.dtype)
        return
    part = total.open(entry.key, entry.dtype, entry.shape)
    for piece in pieces(entry):
        part.update(raw(piece))
        yield piece
