"""Which files a graph reads beside its own: looked up in the protobuf's bytes, before ONNX Runtime opens it.

A graph may keep weights in other files, named by a path that ONNX Runtime follows. Only plain names that the
manifest lists may stand there. This walks the fields of onnx.proto that can hold a tensor and knows nothing else
of the format, so that the runtime needs no protobuf library.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

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
_MAX_DEPTH = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """Names of the files that hold tensors of the graph at `path`. Raises ValueError where it is no protobuf."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found: set[str] = set()
        for entry in _entries(data, 0, len(data), "model", 0):
            if entry.get("key") == b"location":
                found.add(entry.get("value", b"").decode("utf-8", "replace"))
        return found


def _entries(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[dict[str, bytes]]:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    inner = _FIELDS[kind]
    entry: dict[str, bytes] = {}
    for number, first, last in _fields(data, start, end):
        what = inner.get(number)
        if what in ("key", "value"):
            entry[what] = data[first : min(last, first + 4096)]
        elif what is not None:
            yield from _entries(data, first, last, what, depth + 1)
    if kind == "entry":
        yield entry


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number and extent of each length-delimited field between `position` and `end`."""
    while position < end:
        tag, position = _varint(data, position, end)
        if not 8 <= tag < 1 << 32:  # parsers keep 32 bits of a tag, so that a longer one means another field to them
            raise ValueError(f"tag {tag}")
        wire = tag & 7
        if wire == _VARINT:
            _, position = _varint(data, position, end)
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            size, position = _varint(data, position, end)
            if size > end - position:
                raise ValueError("a field is longer than what holds it")
            yield tag >> 3, position, position + size
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
