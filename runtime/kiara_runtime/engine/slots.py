"""Which sequence is in which slot of the cache, and which keys and values of earlier sequences a slot still holds.

Independent of files, threads and sampling. Keys and values in a slot are reused for a prompt that starts with the same
tokens, but only those from passes of several tokens: a pass of one token uses another attention kernel, whose last bit
differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine.sequence import Sequence
from kiara_runtime.engine.session import Cache

LEAST_REUSED = 8  # tokens; fewer are faster to compute than to reuse


@dataclass
class Slot:
    """A slot of the cache.

    tokens: those of the previous sequence whose keys and values are still there. exact: how many leading tokens were
    computed in passes of several tokens. touched: the counter when the slot was last assigned.
    """

    sequence: Sequence | None = None
    tokens: list[int] = field(default_factory=list[int])
    exact: int = 0
    touched: int = 0

    def known(self) -> list[int]:
        """The tokens whose keys and values may be reused."""
        tokens = self.tokens if self.sequence is None else self.sequence.tokens
        return tokens[: self.exact]


@dataclass(frozen=True)
class Stored:
    """Keys and values from the prompt store: content (2 L, K, N, E), whose first `length` positions match a prompt."""

    length: int
    content: NDArray[Any]


class Slots:
    """The slots of a cache. Those in use are kept adjacent, so that one pass covers them all.

    left: called with the tokens and the buffers (2 L, K, C, E) when a sequence leaves a slot.
    """

    def __init__(
        self, cache: Cache, count: int, left: Callable[[list[int], NDArray[Any]], None] = lambda tokens, buffers: None
    ) -> None:
        self._cache, self._slots, self._left = cache, [Slot() for _ in range(count)], left
        self._clock = 0

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def sequence(self, index: int) -> Sequence:
        sequence = self._slots[index].sequence
        assert sequence is not None
        return sequence

    def used(self) -> list[int]:
        """Slots whose sequence is not over; it may have been cancelled since the last step."""
        return [i for i, slot in enumerate(self._slots) if slot.sequence is not None and not slot.sequence.over]

    def holds(self, sequence: Sequence) -> bool:
        return any(slot.sequence is sequence for slot in self._slots)

    def longest_known(self, prompt: list[int]) -> int:
        """Length of the longest prefix of a prompt in any slot. In other threads it may be a step out of date."""
        return max((common_prefix(slot.known(), prompt) for slot in self._slots), default=0)

    def free(self) -> list[int]:
        """Free slots that a sequence may get: between those in use, else next to them."""
        used = [i for i, slot in enumerate(self._slots) if slot.sequence is not None]
        free = [i for i, slot in enumerate(self._slots) if slot.sequence is None]
        if not used:
            return free
        return [i for i in free if used[0] < i < used[-1]] or [i for i in free if i in (used[0] - 1, used[-1] + 1)]

    def place(self, sequence: Sequence, free: list[int]) -> None:
        """Give the sequence the free slot that holds most of its prompt; of equal ones the least recently assigned."""
        prompt = sequence.tokens[: sequence.reusable]
        best = max(free, key=lambda i: (common_prefix(self._slots[i].known(), prompt), -self._slots[i].touched))
        slot = self._slots[best]
        slot.exact = common_prefix(slot.known(), prompt)
        slot.sequence, slot.tokens = sequence, []
        sequence.admitted = time.perf_counter()
        self._clock += 1
        slot.touched = self._clock

    def reuse(self, index: int, stored: Stored | None) -> None:
        """Start a sequence with the longest prefix of its prompt in this slot, another slot or `stored`."""
        slot, sequence = self._slots[index], self.sequence(index)
        prompt = sequence.tokens[: sequence.reusable]
        if self._cache.copies:
            lengths = [common_prefix(other.known(), prompt) for other in self._slots]
            source = max(range(len(lengths)), key=lambda i: (lengths[i], i == index))
            if source != index and lengths[source] >= LEAST_REUSED:
                self._cache.copy(source, index, lengths[source])
                slot.exact = lengths[source]
        if stored is not None and stored.length > slot.exact:
            self._cache.buffers[:, index, :, : stored.length] = stored.content[:, :, : stored.length]
            slot.exact = stored.length
        if slot.exact < LEAST_REUSED:
            slot.exact = 0
        sequence.computed = sequence.reused = slot.exact

    def retire(self) -> None:
        """Free the slots of sequences that are over."""
        for index in range(len(self._slots)):
            # Another sequence may move into the slot, and it may be over too.
            while (sequence := self._slots[index].sequence) is not None and sequence.over:
                self._leave(index)

    def clear(self) -> None:
        self._slots = []

    def _leave(self, index: int) -> None:
        """Free a slot; a sequence from either end of those in use moves into the gap."""
        slot = self._slots[index]
        sequence, slot.tokens = self.sequence(index), slot.known()
        slot.sequence = None
        if self._cache.copies and sequence.error is None and slot.exact:
            self._left(slot.tokens, self._cache.buffers[:, index])
        used = [i for i, other in enumerate(self._slots) if other.sequence is not None]
        if not self._cache.copies or not used or not used[0] < index < used[-1]:
            return
        source = min(used[0], used[-1], key=lambda i: self.sequence(i).computed)
        moved, slot.exact = self._slots[source], 0  # before its cache is overwritten: an interrupt may come at any time
        self._cache.copy(source, index, max(self.sequence(source).computed, moved.exact))
        left = Slot(touched=moved.touched, tokens=moved.known(), exact=moved.exact)
        self._slots[index], self._slots[source] = moved, left


def common_prefix(a: list[int], b: list[int]) -> int:
    """Number of leading tokens that two lists share."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:  # one comparison in C; the most frequent case
        return size
    return int(np.argmin(np.equal(a[:size], b[:size])))
