"""Write and read ONNX files one tensor at a time, as whole models take several times their size in memory.

A message of protobuf is a sequence of fields, a number and content each (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import onnx
import onnx_ir

from i3dconvert.errors import first_line

GRAPH, METADATA = 7, 14
"""Fields of `ModelProto` in onnx.proto."""
INITIALIZER = 5
"""A field of `GraphProto`."""
NAME, RAW_DATA = 8, 9
"""Fields of `TensorProto`."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Kinds of content."""


def write(model: Any, path: Path) -> None:
    """Write a graph of onnx_ir to one file."""
    tensors = {value.name: value.const_value for value in model.graph.initializers.values()}
    bare = _without_initializers(model)
    graph = bare.graph.SerializeToString(deterministic=True)
    bare.ClearField("graph")
    starts = [_start_of(name, tensor) for name, tensor in tensors.items()]
    sizes = [len(start) + tensor.nbytes for start, tensor in zip(starts, tensors.values(), strict=True)]
    total = len(graph) + sum(len(_tag(INITIALIZER, size)) + size for size in sizes)
    with path.open("wb") as file:
        file.write(bare.SerializeToString(deterministic=True) + _tag(GRAPH, total) + graph)
        for start, size, tensor in zip(starts, sizes, tensors.values(), strict=True):
            file.write(_tag(INITIALIZER, size) + start)
            file.write(tensor.tobytes())


def add_metadata(path: Path, key: str, value: str) -> None:
    """Add an entry to `metadata_props` at the end of a file."""
    entry = onnx.StringStringEntryProto(key=key, value=value).SerializeToString(deterministic=True)
    with path.open("ab") as file:
        file.write(_tag(METADATA, len(entry)) + entry)


def read(path: Path) -> tuple[onnx.ModelProto, dict[str, memoryview]]:
    """Return the model without its initialisers, and the `TensorProto` of each by name, mapped from the file.

    Raises `ValueError` for a file that is no model.
    """
    with path.open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    rest, tensors = bytearray(), dict[str, memoryview]()
    for number, field, content in _fields(mapped):
        if number != GRAPH:
            rest += field
            continue
        graph = bytearray()
        for part, whole, tensor in _fields(content):
            if part == INITIALIZER:
                tensors[_name_of(tensor)] = tensor
            else:
                graph += whole
        rest += _tag(GRAPH, len(graph)) + graph
    return parsed(onnx.ModelProto, rest), tensors


Message = TypeVar("Message", onnx.ModelProto, onnx.TensorProto)


def parsed(kind: type[Message], content: bytes | bytearray | memoryview) -> Message:
    """Return the message of this kind with `content`; raises `ValueError` if it is none."""
    try:
        return kind.FromString(bytes(content))
    except Exception as error:  # noqa: BLE001 - protobuf's error type differs between its implementations
        raise ValueError(first_line(error)) from None


def _without_initializers(model: Any) -> onnx.ModelProto:
    """Return the model with the initialisers' types alone, in the order in which onnx_ir writes it."""
    held = dict(model.graph.initializers)
    model.graph.initializers.clear()
    try:
        proto: onnx.ModelProto = onnx_ir.to_proto(model)
    finally:
        model.graph.initializers.update(held)
    given = {value.name for value in model.graph.inputs}
    typed = [value for name, value in held.items() if name not in given and value.type is not None]
    infos = [*map(onnx_ir.to_proto, typed), *proto.graph.value_info]
    proto.graph.ClearField("value_info")
    proto.graph.value_info.extend(infos)
    return proto


def _start_of(name: str, tensor: Any) -> bytes:
    """Return a `TensorProto` up to its data."""
    described = onnx.TensorProto(dims=[int(size) for size in tensor.shape], data_type=int(tensor.dtype), name=name)
    return bytes(described.SerializeToString(deterministic=True)) + _tag(RAW_DATA, tensor.nbytes)


def _name_of(tensor: memoryview) -> str:
    return next((str(content, "utf-8") for number, _, content in _fields(tensor) if number == NAME), "")


def _tag(number: int, length: int) -> bytes:
    """Return what precedes `length` bytes of content in a field."""
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    """Return a number seven bits at a time, the lowest first; the highest bit says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield the number of each field, the whole field, and its content."""
    at = 0
    while at < len(message):
        begin = at
        key, at = _number(message, at)
        kind, start = key & 7, at
        if kind == _BYTES:
            length, start = _number(message, at)
            at = start + length
        elif kind == _VARINT:
            _, at = _number(message, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"protobuf has no fields of kind {kind}")
        if at > len(message):
            raise ValueError("the file is truncated")
        yield key >> 3, message[begin:at], message[start:at]


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it."""
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a number in it is truncated or too long")
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
