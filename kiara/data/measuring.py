"""The documents of files, measured in pieces: groups of whole files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kiara.data.documents import Reader
from kiara.data.engines import Engine, make_pieces
from kiara.data.pieces import Card, Pieces
from kiara.data.split import measure

GROUP_BYTES = 1 << 26  # of files that are measured together


@dataclass(frozen=True)
class Measured:
    """sizes: bytes of each document, int64; hashes: of their texts, uint64; counts: documents of each file.

    bad: documents that are not text, by reason. replaced: how many had unreadable characters replaced.
    """

    sizes: np.ndarray
    hashes: np.ndarray
    counts: list[int]
    bad: Counter[str]
    replaced: int

    @classmethod
    def joined(cls, parts: list[Measured]) -> Measured:
        return cls(
            np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)]),
            np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in parts)]),
            [count for part in parts for count in part.counts],
            sum((part.bad for part in parts), Counter[str]()),
            sum(part.replaced for part in parts),
        )


@dataclass(frozen=True)
class Measurer:
    """Measures groups of files. lenient: count documents that are not text, instead of raising an error."""

    pieces: Pieces
    reader: Reader
    groups: list[list[Path]]
    lenient: bool

    def __call__(self, number: int, advance: Callable[[int], None]) -> None:
        reader, bad = replace(self.reader, replaced=set()), Counter[str]()
        found = [measure(reader.read([file]), bad if self.lenient else None) for file in self.groups[number]]

        def fill(path: Path) -> Card:
            np.concatenate([sizes.view(np.uint64) for sizes, _ in found]).tofile(path)
            with path.open("ab") as file:
                np.concatenate([hashes for _, hashes in found]).tofile(file)
            return {"counts": [len(sizes) for sizes, _ in found], "bad": bad, "replaced": len(reader.replaced)}

        self.pieces.write(number, fill)
        advance(self.size(number))

    def size(self, number: int) -> int:
        return sum(file.stat().st_size for file in self.groups[number])

    def read(self, number: int) -> Measured:
        card = self.pieces.card(number)
        sizes, hashes = np.fromfile(self.pieces.data(number), np.uint64).reshape(2, -1)
        return Measured(sizes.view(np.int64), hashes, card["counts"], Counter(card["bad"]), card["replaced"])


def measured(
    pieces: Pieces, reader: Reader, files: list[Path], lenient: bool, engine: Engine, advance: Callable[[int], None]
) -> Measured:
    """Measure all documents of the files, but for pieces that are there already."""
    measurer = Measurer(pieces, reader, [*_groups(files)], lenient)
    count = len(measurer.groups)
    make_pieces(engine, measurer, pieces.missing(count, measurer.size, advance), advance)
    return Measured.joined([measurer.read(number) for number in range(count)])


def _groups(files: list[Path]) -> Iterator[list[Path]]:
    """Consecutive files, of GROUP_BYTES together at most; a larger one is alone."""
    group: list[Path] = []
    held = 0
    for file in files:
        size = file.stat().st_size
        if group and held + size > GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(file)
        held += size
    if group:
        yield group
