"""Reads from a graph's file, before ONNX Runtime opens it, which other files it loads and where its tables are.

A graph may keep weights in other files, named by a path that ONNX Runtime follows. Only plain names that the
manifest lists are allowed. This parses the few fields of onnx.proto that it needs, so that the runtime needs no
protobuf library.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

# Message kind -> field number -> kind of what it holds; the fields of onnx.proto3 that lead to a tensor.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _NODE_INPUT, _NODE_OPERATOR = 7, 1, 5, 1, 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_LOCATION = 1, 2, 8, 9, 14
_MAX_DEPTH, _MAX_RANK = 64, 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """Names of the files that hold tensors of the graph at `path`. Raises ValueError if it is not a protobuf."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found: set[str] = set()
        for entry in _entries(data, 0, len(data), "model", 0):
            if entry.get("key") == b"location":
                found.add(entry.get("value", b"").decode("utf-8", "replace"))
        return found


class Table(NamedTuple):
    """A table in a graph's file. type: its number in onnx.proto. The bytes are from `first` to one before `last`."""

    type: int
    shape: tuple[int, ...]
    first: int
    last: int


def gathered_tables(data: mmap.mmap, types: Collection[int], least: int) -> dict[str, Table]:
    """Initializers that a Gather of the graph reads, of one byte per value and at least `least` bytes.

    types: the accepted ones, by their numbers in onnx.proto. Tables that are not in the file itself, or do not match
    their shape, are left out. Raises ValueError if `data` is not a protobuf.
    """
    read: set[bytes] = set()
    found: dict[bytes, Table | None] = {}  # of a duplicate name ONNX Runtime uses the last one
    for number, wire, first, last in _fields(data, 0, len(data)):
        if (number, wire) == (_MODEL_GRAPH, _BYTES):
            for part, held, start, end in _fields(data, first, last):
                if (part, held) == (_GRAPH_NODE, _BYTES):
                    read.update(_gathered(data, start, end))
                elif (part, held) == (_GRAPH_INITIALIZER, _BYTES):
                    name, table = _table(data, start, end)
                    found[name] = table if table and table.type in types and table.last - table.first >= least else None
    return {name.decode("utf-8", "replace"): table for name, table in found.items() if table and name in read}


def _gathered(data: mmap.mmap, start: int, end: int) -> list[bytes]:
    """The first input of a Gather node; empty for other nodes."""
    source, gathers = None, False
    for number, wire, first, last in _fields(data, start, end):
        if wire == _BYTES and number == _NODE_INPUT and source is None:
            source = data[first:last]
        elif wire == _BYTES and number == _NODE_OPERATOR:
            gathers = last - first == len(b"Gather") and data[first:last] == b"Gather"
    return [source] if gathers and source else []


def _table(data: mmap.mmap, start: int, end: int) -> tuple[bytes, Table | None]:
    """An initializer's name, and its place in the file if it is stored there."""
    shape: list[int] = []
    kind, name, raw, elsewhere = 0, b"", (0, 0), 0
    for number, wire, first, last in _fields(data, start, end):
        if (number, wire) == (_TENSOR_TYPE, _VARINT):
            kind = first
        elif (number, wire) == (_TENSOR_LOCATION, _VARINT):
            elsewhere = first
        elif (number, wire) == (_TENSOR_NAME, _BYTES):
            name = data[first:last]
        elif (number, wire) == (_TENSOR_RAW, _BYTES):
            raw = first, last
        elif number == _TENSOR_DIMS and len(shape) <= _MAX_RANK:  # past that it is not a table, and is left out
            shape += [first] if wire == _VARINT else _packed(data, first, last)
    fits = not elsewhere and 0 < len(shape) <= _MAX_RANK and math.prod(shape) == raw[1] - raw[0]
    return name, Table(kind, tuple(shape), *raw) if fits else None


def _packed(data: mmap.mmap, first: int, last: int) -> list[int]:
    """The numbers of a packed field, at most _MAX_RANK + 1 of them."""
    found: list[int] = []
    while first < last and len(found) <= _MAX_RANK:
        value, first = _varint(data, first, last)
        found.append(value)
    return found


def _entries(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[dict[str, bytes]]:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    inner = _FIELDS[kind]
    entry: dict[str, bytes] = {}
    for number, wire, first, last in _fields(data, start, end):
        what = inner.get(number) if wire == _BYTES else None
        if what in ("key", "value"):
            entry[what] = data[first : min(last, first + 4096)]
        elif what is not None:
            yield from _entries(data, first, last, what, depth + 1)
    if kind == "entry":
        yield entry


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type and extent of each field between `position` and `end`; for a varint its value and 0."""
    while position < end:
        tag, position = _varint(data, position, end)
        if not 8 <= tag < 1 << 32:  # parsers keep 32 bits of a tag, and would read a longer one as another field
            raise ValueError(f"tag {tag}")
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position, end)
            yield tag >> 3, wire, value, 0
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            size, position = _varint(data, position, end)
            if size > end - position:
                raise ValueError("a field is longer than what holds it")
            yield tag >> 3, wire, position, position + size
            position += size
        else:
            raise ValueError(f"wire type {wire}")
    if position != end:
        raise ValueError("a field is cut off")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        value, position, shift = value | (byte & 127) << shift, position + 1, shift + 7
        if byte < 128:
            return value, position
    raise ValueError("a number is cut off")
