"""The checkpoint: safetensors, the 2D network's own key names, and one JSON document that says all about its origin."""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import i3dconvert
from i3dconvert.backbones import Origin
from i3dconvert.errors import CheckpointError, I3DError, LayoutError, WeightsError
from i3dconvert.files import WEIGHTS, check_input, in_folder, replacing, replacing_in
from i3dconvert.frameworks import Target, check_fits, framework, split
from i3dconvert.frameworks.framework import Place
from i3dconvert.lift.network import Inflation, Network3d, fill, plan, style
from i3dconvert.recipes import Recipe
from i3dconvert.weights import Digest, State, classes_in, fit, nested, raw, read_pickle, read_state

SCHEMA = 2
NO_EMBEDDING = ("time_embedding", "none")
KEY = "i3dconvert"
"""The key of the document in a file's metadata, safetensors and ONNX alike."""

PICKLED = (".pth", ".pt", ".pyth")
"""The suffixes of what `torch.load` reads."""

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_UNKNOWN = "0" * 64


@dataclass(frozen=True)
class Document:
    """What a file says of itself."""

    inflation: Inflation
    origin: Origin | None
    sha256: str = ""
    """Of the 3D tensors under our names: names, dtypes, shapes, bytes."""
    finetuned: bool = False
    layout: str = ""
    """The framework and the network of it that the tensors are named for, `NAME:NETWORK`; ours if empty."""
    intact: bool = True
    """Whether the document, when it was read, had the seal that it was written with."""

    @property
    def schema(self) -> int:
        """The oldest that says all of it: attention over time is new in 2."""
        rules, style = self.inflation.recipe.rules, self.inflation.style
        return 2 if style.time_embedding != "none" or any(rule.kind == "attention" for rule in rules) else 1

    @property
    def target(self) -> Target | None:
        """The network that the tensors are named for, where it is not our own."""
        return framework(self.layout).network(split(self.layout)[1]) if self.layout else None

    @property
    def foreign(self) -> bool:
        """Whether the tensors are made for another framework's network, and are not those of our own."""
        return self.target is not None and self.target.made is not None

    def dumps(self, beside: Path | None = None) -> str:
        """JSON; the path of a weight file is written relative to the directory `beside`."""
        document: dict[str, Any] = {
            "schema": self.schema,
            "version": i3dconvert.__version__,
            **{key: value for key, value in asdict(self.inflation.style).items() if (key, value) != NO_EMBEDDING},
            "recipe": self.inflation.recipe.to_dict(),
            "input": list(self.inflation.input),
            "minimum_frames": self.inflation.minimum_frames,
            "sha256": self.sha256,
            "finetuned": self.finetuned,
        }
        if self.layout:
            document["layout"] = self.layout
        if self.origin is not None:
            document["origin"] = self.origin.to_dict(beside)
        return json.dumps(document | {"seal": _seal(document)}, sort_keys=True)

    @classmethod
    def loads(cls, text: str, where: Path) -> Document:
        """Read what `dumps` wrote; raises `CheckpointError` naming the file `where`."""
        try:
            document = json.loads(text)
            schema = document["schema"]
            if not isinstance(schema, int) or schema > SCHEMA:
                raise CheckpointError(f"{where} was written by a newer i3dconvert (schema {schema}); please upgrade")
            told = style(
                document["init"],
                document["padding"],
                document["conv"],
                document.get("temporal_pool", "mean"),
                document.get("time_embedding", "none"),
            )
            recipe = Recipe.from_dict(document["recipe"], f"{where}: recipe")
            origin = Origin.from_dict(document["origin"], where.parent) if "origin" in document else None
            frames = int(document["minimum_frames"])
            channels, height, width = map(int, document["input"])
            inflation = Inflation(recipe, told, minimum_frames=frames, input=(channels, height, width))
            intact = document["seal"] == _seal(document)
            layout = str(document.get("layout", ""))
            return cls(inflation, origin, str(document["sha256"]), bool(document["finetuned"]), layout, intact)
        except I3DError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{where} has damaged i3dconvert metadata ({type(error).__name__}: {error})"
            ) from None


def _seal(document: Mapping[str, Any]) -> str:
    """SHA-256 over all of a document but its hashes."""
    rest = {key: value for key, value in document.items() if key not in ("seal", "sha256")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: what is known before it is made."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]


Pieces = Callable[[Entry], Iterable[Tensor]]
"""The parts of a tensor along its first axis, so that a large one need not be made as a whole."""


def write(path: Path, document: Document, entries: Iterable[Entry], pieces: Pieces, force: bool) -> str:
    """Write a checkpoint, safetensors or by its suffix a `.pth`; returns the SHA-256 of its tensors.

    Raises `OutputError`, and `LayoutError` when the document's layout has no place for a tensor; nothing is left at
    `path` then but what was there before.
    """
    places = _placed(document, list(entries))
    if document.target is not None and document.target.files is not None:
        return _write_folder(path, document, places, pieces, force)
    write = _write_pickle if path.suffix in PICKLED else _write_safetensors
    return write(path, document, places, pieces, force)


def _write_folder(
    path: Path, document: Document, places: list[tuple[Place, Entry]], pieces: Pieces, force: bool
) -> str:
    """Weights and what the framework has beside them."""
    assert document.target is not None
    assert document.target.files is not None
    assert document.origin is not None
    with replacing_in(path, force) as folder:
        for name, content in document.target.files(document.origin).items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return _write_safetensors(folder / WEIGHTS, document, places, pieces, force)


def _placed(document: Document, entries: list[Entry]) -> list[tuple[Place, Entry]]:
    """Where each tensor goes; zeros that the layout adds have an entry without a key."""
    target = document.target
    if target is None:
        return [(Place(entry.key, entry.shape, entry.key), entry) for entry in entries]
    known = {entry.key: entry for entry in entries}
    dtype = next(entry.dtype for entry in entries if entry.dtype.is_floating_point)
    places = framework(document.layout).places(target, {entry.key: entry.shape for entry in entries})
    return [(place, known[place.key] if place.key else Entry("", dtype, place.shape)) for place in places]


def _write_safetensors(
    path: Path, document: Document, places: list[tuple[Place, Entry]], pieces: Pieces, force: bool
) -> str:
    """One piece at a time."""
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
    with replacing(path, force) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for place, entry in places:
            for piece in _hashed(total, entry, pieces):
                file.write(raw(place.form.theirs(piece) if place.form else piece))
        file.seek(8 + text.index(_UNKNOWN.encode()))
        file.write(total.hexdigest().encode())
    return total.hexdigest()


def _write_pickle(
    path: Path, document: Document, places: list[tuple[Place, Entry]], pieces: Pieces, force: bool
) -> str:
    """The document goes where torch keeps the versions of modules, so that the state dict holds tensors alone."""
    total = Digest()
    state: Any = OrderedDict()
    for place, entry in places:
        ours = torch.cat([piece.reshape(-1) for piece in _hashed(total, entry, pieces)]).view(entry.shape)
        state[place.name] = place.form.theirs(ours).contiguous() if place.form else ours
    state._metadata = {KEY: replace(document, sha256=total.hexdigest()).dumps(path.parent)}
    nest = framework(document.layout).nest if document.layout else None
    with replacing(path, force) as partial, partial.open("wb") as file:
        torch.save({nest: state} if nest else state, file)
    return total.hexdigest()


def _hashed(total: Digest, entry: Entry, pieces: Pieces) -> Iterator[Tensor]:
    if not entry.key:
        yield torch.zeros(entry.shape, dtype=entry.dtype)
        return
    part = total.open(entry.key, entry.dtype, entry.shape)
    for piece in pieces(entry):
        part.update(raw(piece))
        yield piece


def entries_of(inflation: Inflation, state2d: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> list[Entry]:
    """The tensors of the 3D network of the 2D `state2d`, floating-point ones in `dtype` where one is given."""
    entries = []
    for key in inflation.keys(state2d):
        tensor = inflation.source(key, state2d)
        stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        entries.append(Entry(key, stored, inflation.shape(key, tensor)))
    return entries


def entries_in(state: Mapping[str, Tensor]) -> list[Entry]:
    """The tensors of a state dict."""
    return [Entry(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in state.items()]


def save(network: Network3d, path: str | Path, force: bool = False, finetuned: bool = False, layout: str = "") -> str:
    """Write an inflated network, its weights as they are now; returns the SHA-256 of its tensors.

    `finetuned` notes in the file that the weights are no longer those of the 2D network; `layout` is the framework
    whose names the tensors get, `NAME` or `NAME:NETWORK`. Raises `OutputError`, `LayoutError`.
    """
    state = network.state_dict()
    origin = network.meta.get("origin")
    if layout:
        layout = checked_layout(layout, origin, network.inflation)
    document = Document(network.inflation, origin, finetuned=finetuned, layout=layout)
    _check_ours(document, layout)
    return write(Path(path), document, entries_in(state), lambda entry: [state[entry.key].cpu()], force)


def read(path: Path) -> tuple[Document, State]:
    """The document and the tensors (memory-mapped, under our names) of a checkpoint; raises `CheckpointError`."""
    path = in_folder(path)
    check_input(path, CheckpointError, "a checkpoint that `i3dconvert inflate` wrote")
    text, state = (_read_pickle if path.suffix in PICKLED else _read_safetensors)(path)
    if text is None:
        raise CheckpointError(
            f"{path} is no i3dconvert checkpoint: its metadata has no {KEY!r}; "
            "--from-layout NAME reads those of other frameworks"
        )
    document = Document.loads(text, path)
    if document.target is not None:
        state = framework(document.layout).restored(document.target, state, str(path))
    return document, state


def _read_safetensors(path: Path) -> tuple[str | None, State]:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(KEY), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable i3dconvert checkpoint: {error}") from None


def _read_pickle(path: Path) -> tuple[str | None, State]:
    found = nested(read_pickle(path))
    metadata = getattr(found, "_metadata", None)
    text = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    return text, {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


def rebuild(document: Document, model: nn.Module) -> Network3d:
    """The 3D network of a document over its 2D `model`, without weights (see `fill`).

    Raises `LayoutError` where its tensors are made for another framework's network alone.
    """
    _check_ours(document, "the file")
    told = document.inflation
    planned = plan(model, told.recipe, told.style, told.input)
    network = planned.network(model)
    network.meta["origin"] = document.origin
    return network


def load(path: str | Path, model: nn.Module | None = None) -> Network3d:
    """The 3D network in a checkpoint, in eval mode.

    `model` is the 2D network, needed only for checkpoints of a user's own module. Raises `CheckpointError`.
    """
    path = Path(path)
    document, state = read(path)
    if model is None:
        if document.origin is None:
            raise CheckpointError(f"{path} was made from a module in memory; give that 2D module: load(path, model)")
        model = document.origin.build()
    return filled(rebuild(document, model), state, path)


def filled(network: Network3d, state: Mapping[str, Tensor], path: Path) -> Network3d:
    """`network` with the tensors of the file at `path`, which may not fit: `CheckpointError`."""
    try:
        return fill(network, state.items())
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise CheckpointError(f"the tensors of {path} are not those of its own recipe: {' '.join(lines)}") from None


def checked_layout(layout: str, origin: Origin | None, inflation: Inflation) -> str:
    """The layout with its network's name; raises `LayoutError` when that is another 3D form of `origin`."""
    if origin is None:
        raise LayoutError(
            f"a network made from a module in memory has no layout {layout}: whose 3D form it is is not known"
        )
    name, network = split(layout)
    known = framework(layout)
    target = known.target(origin.backbone.qualified, network)
    check_fits(known, target, inflation, origin)
    return f"{name}:{target.name}"


def _check_ours(document: Document, what: str) -> None:
    if document.foreign:
        raise LayoutError(
            f"{what} is for {document.layout} alone, whose tensors `inflate --layout` makes of the 2D network's: "
            "that network loads them, `inspect` and `verify` read them, nothing else does"
        )


def read_document(path: Path) -> Document:
    """The document of a checkpoint or an exported ONNX file; raises `CheckpointError`."""
    if path.suffix == ".onnx":
        from i3dconvert.export.runtime import read_document as read_onnx

        return read_onnx(path)
    return read(path)[0]


def load_for_export(
    path: Path, weights: Path | None, read: Callable[[Path], tuple[Document, State]] = read
) -> tuple[Network3d, bool]:
    """The network of a checkpoint, by default of our own, and whether its weights are fine-tuned.

    `weights` is a file with a fine-tuned state dict of the same architecture, which may have another class count.
    Raises `CheckpointError`, `WeightsError`.
    """
    document, state = read(path)
    if document.origin is None:
        raise CheckpointError(
            f"{path} was made from a module in memory; export it in Python: export_onnx(network, path)"
        )
    network = rebuild(document, document.origin.build())
    if weights is None:
        return filled(network, state, path), document.finetuned
    state = read_state(weights)
    count = classes_in(state, network, document.origin.classes)
    if count is not None:
        document = replace(document, origin=document.origin.with_classes(count))
        assert document.origin is not None
        network = rebuild(document, document.origin.build())
    try:
        fit(network, state, str(weights))
    except WeightsError as error:
        flat = any(state[key].dim() == 4 for key in network.inflation.fillings if key in state)
        name = network.meta["origin"].backbone.qualified
        hint = f"; these are 2D weights: i3dconvert inflate {name} -w {weights}" if flat else ""
        raise WeightsError(f"{error}{hint}") from None
    return network, True
