"""Embedding tables, memory-mapped from the graph's file.

A token reads one row. If the LM head is the same table, ONNX Runtime packs it for its kernel and would keep a second
copy for the embedding: 28 of SmolLM2's 139 MB.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import numpy as np
import onnxruntime as ort

from kiara_runtime.bundle import gathered_tables

LEAST_BYTES = 1 << 20  # smaller tables are not worth it
# By their numbers in onnx.proto. One-byte types only, as tensors in a file are not aligned.
_KINDS: dict[int, type[np.generic]] = {2: np.uint8, 3: np.int8}


class Tables:
    """The embedding tables of a graph's file. Must live as long as the session that they were added to."""

    def __init__(self, graph: Path) -> None:
        with graph.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._values: dict[str, ort.OrtValue] = {}
        for name, found in gathered_tables(self._data, _KINDS, LEAST_BYTES).items():
            table = np.frombuffer(self._data, _KINDS[found.type], found.last - found.first, found.first)
            self._values[name] = ort.OrtValue.ortvalue_from_numpy(table.reshape(found.shape))

    def add_to(self, options: ort.SessionOptions) -> None:
        for name, value in self._values.items():
            options.add_initializer(name, value)

    def forget(self) -> None:
        """Release the pages that packing has read; rows are read again when needed."""
        with contextlib.suppress(AttributeError, OSError):  # not available on Windows
            self._data.madvise(mmap.MADV_DONTNEED)
