"""A split of conversations, packed into training sequences. Elsewhere it is a split like others: their text in a row.

Sequences hold whole conversations, several if they fit. Which ones go together depends on their lengths only, so that
the sequences of a step are a pure function of (seed, step, row), as those of text are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from kiara.data.sequences import Examples, Split, order
from kiara_runtime.errors import UserError

IGNORED = -100  # a target that does not count, as in PyTorch's cross-entropy
OPEN = 64  # sequences that a conversation may still be put in


@dataclass(frozen=True)
class Packing:
    """windows: of each sequence, its conversations as (begin, length) in the tokens. targets: what counts in each.

    cut, dropped: numbers of conversations, or pairs, that were too long.
    """

    windows: list[list[tuple[int, int]]]
    targets: np.ndarray
    cut: int
    dropped: int


@dataclass(frozen=True, eq=False)
class ChatSplit(Split):
    """learned: for each token of the only shard, whether it is learned. begins: of the conversations, and the end."""

    learned: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    begins: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    overlong: Literal["cut", "drop"] = "cut"
    _packings: dict[int, Packing] = field(default_factory=dict[int, Packing])

    def packed(self, length: int) -> Packing:
        """The conversations in sequences of `length`: best fit, the longest first."""
        if length not in self._packings:
            self._packings[length] = self._pack(length)
        return self._packings[length]

    def sequences(self, length: int) -> int:
        if not (count := len(self.packed(length).windows)):
            raise UserError(
                f"the {self.name} split",
                f"no conversation has an answer within {length} tokens",
                "set a longer training.sequence_length",
            )
        return count

    def step_targets(self, seed: int, step: int, rows: int, length: int) -> int:
        targets = self.packed(length).targets
        return int(sum(targets[self._picked(seed, step * rows + row, length)] for row in range(rows)))

    def examples(self, seed: int, step: int, rows: int, length: int, part: range | None = None) -> Examples:
        picked = [self._picked(seed, step * rows + row, length) for row in (range(rows) if part is None else part)]
        return self.rows(picked, length)

    def rows(self, indices: list[int], length: int) -> Examples:
        """The sequences of these indices, padded to `length`; every conversation is a segment, and the padding one."""
        return self._padded([self.packed(length).windows[index] for index in indices], length)

    def _padded(self, windows: list[list[tuple[int, int]]], length: int) -> Examples:
        ids = np.zeros((len(windows), length), np.int64)
        targets, segments = np.full_like(ids, IGNORED), np.full_like(ids, -1)
        for row, window in enumerate(windows):
            at = 0
            for number, (begin, size) in enumerate(window):
                tokens = self.shards[0][begin : begin + size].astype(np.int64)
                here = slice(at, at + size - 1)
                ids[row, here], segments[row, here] = tokens[:-1], number
                targets[row, here] = np.where(self.learned[begin + 1 : begin + size], tokens[1:], IGNORED)
                at += size - 1
        return Examples(ids, targets, segments)

    def questions(self) -> Iterator[list[int]]:
        """The ids of each conversation up to its first answer."""
        for begin, end in zip(self.begins[:-1].tolist(), self.begins[1:].tolist(), strict=True):
            yield self.shards[0][begin : begin + int(self.learned[begin:end].argmax())].tolist()

    def _picked(self, seed: int, row: int, length: int) -> int:
        count = self.sequences(length)
        epoch, index = divmod(row, count)
        return int(order(seed, epoch, count)[index])

    def _pack(self, length: int) -> Packing:
        kept, cut, dropped = self._kept(length)
        windows: list[list[tuple[int, int]]] = []
        room: list[int] = []
        for begin, size in sorted(kept, key=lambda one: -one[1]):
            fitting = [i for i in range(max(0, len(room) - OPEN), len(room)) if room[i] >= size - 1]
            best = min(fitting, key=lambda i: room[i], default=None)
            if best is None:
                windows.append([])
                room.append(length)
                best = len(room) - 1
            windows[best].append((begin, size))
            room[best] -= size - 1
        targets = [sum(int(self.learned[b + 1 : b + size].sum()) for b, size in window) for window in windows]
        return Packing(windows, np.array(targets, np.int64), cut, dropped)

    def _kept(self, length: int) -> tuple[list[tuple[int, int]], int, int]:
        """Begin and length of the conversations to learn; how many are cut, and how many left out."""
        kept: list[tuple[int, int]] = []
        cut = dropped = 0
        for begin, end in zip(self.begins[:-1].tolist(), self.begins[1:].tolist(), strict=True):
            size = min(end - begin, length + 1)
            shorter = size < end - begin
            if (shorter and self.overlong == "drop") or not self.learned[begin + 1 : begin + size].any():
                dropped += 1
                continue
            cut += shorter
            kept.append((begin, size))
        return kept, cut, dropped


@dataclass(frozen=True, eq=False)
class PairSplit(ChatSplit):
    """Conversations in pairs, each a chosen one and then the rejected one. A sequence of training is a pair."""

    def rows(self, indices: list[int], length: int) -> Examples:
        """The pairs of these indices, padded to `length`: their chosen conversations, then the rejected ones."""
        windows = [self.packed(length).windows[index] for index in indices]
        single = [[window[kind]] for kind in (0, 1) for window in windows]
        found = self._padded(single, length)
        return Examples(found.ids, found.targets, pairs=True)

    def _pack(self, length: int) -> Packing:
        kept = dict(self._kept(length)[0])
        sizes = {int(begin): int(end - begin) for begin, end in pairwise(self.begins)}
        begins = list(sizes)
        pairs = [(begins[i], begins[i + 1]) for i in range(0, len(begins), 2)]
        windows = [[(begin, kept[begin]) for begin in pair] for pair in pairs if all(one in kept for one in pair)]
        cut = sum(any(size < sizes[begin] for begin, size in window) for window in windows)
        return Packing(windows, np.ones(len(windows), np.int64), cut, len(pairs) - len(windows))
