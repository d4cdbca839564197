"""The container format of GGUF: metadata and tensors of one file, little-endian, version 2 or 3.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package `gguf` knows the types of tensors. Its own reader
is not used: it makes objects for every token, which takes 22 s and 0.8 GB for a vocabulary of 262,144.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiara.importing.weights import row_ranges

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MAX_DIMENSIONS, _MAX_VALUES = 4, 1 << 24
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = dict(enumerate("<u1 <i1 <u2 <i2 <u4 <i4 <f4 <u1".split())) | {10: "<u8", 11: "<i8", 12: "<f8"}


@dataclass(frozen=True)
class StoredTensor:
    """shape: outputs first. kind: GGMLQuantizationType. data: (rows, bytes of a row), or (1, bytes) of a vector."""

    name: str
    shape: list[int]
    kind: Any
    data: NDArray[np.uint8]

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """The values, some rows at a time: dequantising takes several times their size.

        Raises NotImplementedError if the package gguf does not know the quantisation.
        """
        from gguf.quants import dequantize

        if len(self.shape) == 1:
            yield np.array(dequantize(self.data, self.kind), np.float32).reshape(self.shape)
            return
        for start, end in row_ranges(self.shape):
            piece = dequantize(self.data[start:end], self.kind)
            yield np.array(piece, np.float32).reshape(-1, *self.shape[1:])


class Container:
    """metadata, tensors: of the file, tensors by name. Raises ValueError, IndexError or struct.error if damaged."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        if self._take(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        if (version := self._number("<I")) not in _VERSIONS:
            raise ValueError(f"version {version} is not supported")
        tensors, keys = self._number("<Q"), self._number("<Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = self._string()
            self.metadata[name] = self._value(self._number("<I"))
        listed = [self._listed() for _ in range(tensors)]
        self.tensors = {tensor.name: tensor for tensor in map(self._tensor, listed, [self._data_start()] * tensors)}

    def _data_start(self) -> int:
        alignment = int(self.metadata.get("general.alignment", 32))
        if alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        return self._at + -self._at % alignment

    def _take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._bytes) - self._at:
            raise ValueError("it ends too early")
        self._at += size
        return self._bytes[self._at - size : self._at]

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return value

    def _string(self) -> str:
        return self._take(self._number("<Q")).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalars(kind, 1)[0]
        inner, count = self._number("<I"), self._number("<Q")
        if count > _MAX_VALUES:
            raise ValueError(f"a list of {count} values is too long")
        if inner == _STRING:
            return [self._string() for _ in range(count)]
        return self._scalars(inner, count)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise ValueError(f"values of type {kind} are not known")
        form = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self._take(count * form.itemsize), form)
        return (values != 0).tolist() if kind == _BOOL else values.tolist()

    def _listed(self) -> tuple[str, list[int], int, int]:
        """Name, shape, type and offset of a tensor."""
        name, dimensions = self._string(), self._number("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = [self._number("<Q") for _ in range(dimensions)]
        return name, shape[::-1], self._number("<I"), self._number("<Q")

    def _tensor(self, listed: tuple[str, list[int], int, int], start: int) -> StoredTensor:
        import gguf

        name, shape, number, offset = listed
        kind = gguf.GGMLQuantizationType(number)
        *rows, row = gguf.quant_shape_to_byte_shape(shape, kind)
        count = int(np.prod(rows, dtype=object)) if rows else 1
        if start + offset + count * row > len(self._bytes):
            raise ValueError(f"{name} ends beyond the file")
        data = np.frombuffer(self._bytes, np.uint8, count * row, start + offset)
        return StoredTensor(name, shape, kind, data.reshape(rows[0] if rows else 1, -1))
