"""What a split reads of its files: a number of bytes of each document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from kiara.data.documents import Document, Reader
from kiara.data.split import held_out, trained


@dataclass(frozen=True)
class Part:
    """Documents of files, and how much of each belongs to a split.

    counts: documents of each file. sizes: bytes of each document, 0 for one that is left out. heads: bytes of each,
    from its start, to train on. after: whether the split has the rest instead.
    """

    reader: Reader
    files: list[Path]
    counts: list[int]
    sizes: np.ndarray
    heads: np.ndarray
    after: bool

    @property
    def bytes(self) -> np.ndarray:
        """Of each document, in this split."""
        return self.sizes - self.heads if self.after else self.heads

    def read(self) -> Iterator[Document]:
        """What the split has of all documents."""
        return self.chosen(self.stream(0), 0, len(self.sizes))

    def stream(self, begin: int) -> Iterator[Document]:
        """All documents from `begin` on, whole; those before it in the same file are skipped unread."""
        starts = np.cumsum([0, *self.counts])
        file = max(0, int(np.searchsorted(starts, begin, side="right")) - 1)
        return islice(self.reader.read(self.files[file:]), begin - int(starts[file]), None)

    def chosen(self, stream: Iterator[Document], begin: int, end: int) -> Iterator[Document]:
        """What the split has of the next documents of a stream, which are those from begin to end."""
        choose = held_out if self.after else trained
        return choose(islice(stream, end - begin), self.sizes[begin:end], self.heads[begin:end])
