"""The seal of an ONNX file: hashes in its metadata that show whether, and where, it was changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, MutableSequence
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from i3dconvert.errors import CheckpointError
from i3dconvert.export.wire import add_metadata, parsed, read

SEAL = "seal"
"""The metadata key of a JSON object: the SHA-256 of each initialiser, and of the rest of the file."""

_REST = ""


def seal(path: Path) -> None:
    """Add the seal to a finished file."""
    add_metadata(path, SEAL, json.dumps(_hashes(path)[0], sort_keys=True))


def broken(path: Path) -> list[str]:
    """Return the parts that differ from the seal: initialisers by name, `the graph or its metadata`.

    Raises `CheckpointError` for a file without a seal, or one that can't be read.
    """
    try:
        found, sealed = _hashes(path)
    except (OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} or a tensor file that it refers to can't be read: {error}") from None
    try:
        expected = dict(json.loads(sealed))
    except (ValueError, TypeError):
        raise CheckpointError(
            f"{path} has no seal: it was written by an older i3dconvert or rewritten by another tool; export it again"
        ) from None
    names = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    return [name or "the graph or its metadata" for name in names]


def _hashes(path: Path) -> tuple[dict[str, str], str]:
    """Return the hashes of a file's parts, and its seal."""
    model, tensors = read(path)
    rest = hashlib.sha256()
    for part in _all_but_initialisers(model):
        rest.update(len(part).to_bytes(8, "little") + part)
    sealed = next((entry.value for entry in model.metadata_props if entry.key == SEAL), "")
    return {_REST: rest.hexdigest()} | {name: _hash(one, path.parent) for name, one in tensors.items()}, sealed


def _all_but_initialisers(model: onnx.ModelProto) -> Iterator[bytes]:
    for owner, left_out in ((model, ("graph", "metadata_props")), (model.graph, ("initializer",))):
        for field, value in owner.ListFields():
            if field.name not in left_out:
                for item in value if isinstance(value, MutableSequence) else [value]:
                    yield field.name.encode()
                    yield item.SerializeToString(deterministic=True) if field.message_type else repr(item).encode()
    for entry in model.metadata_props:
        if entry.key != SEAL:
            yield entry.SerializeToString(deterministic=True)


def _hash(tensor: memoryview, folder: Path) -> str:
    total = hashlib.sha256(tensor)
    reference = parsed(onnx.TensorProto, tensor) if len(tensor) <= _LONGEST_REFERENCE else None
    if reference is not None and uses_external_data(reference):
        place = ExternalDataInfo(reference)
        with (folder / place.location).open("rb") as file:
            file.seek(place.offset or 0)
            total.update(file.read(place.length or -1))
    return total.hexdigest()


_LONGEST_REFERENCE = 2**16
"""The most bytes of a tensor whose data is in another file: its name, its shape and its place."""
