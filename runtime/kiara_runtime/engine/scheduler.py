"""What the next step computes: who gets a slot, a chunk of which prompt, and one token of whoever decodes."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine.sequence import Sequence
from kiara_runtime.engine.slots import Slots, Stored
from kiara_runtime.errors import BusyError

CHUNK = 256  # tokens of a prompt in one pass: bounds the logits held at once
# Beside M sequences that decode, a prompt gets about as many tokens a pass as take two of their steps.
CHUNK_BESIDE_OTHERS, CHUNK_FOR_EACH = 2, 2
SHORT = 32  # tokens of a prompt that is not worth cutting: its parts would take longer than the whole


@dataclass(frozen=True)
class Batch:
    """One pass over consecutive slots, from `first` on. ids: (B, S). lengths: of each sequence after it.

    every: whether the logits after each token are needed, not after the last alone.
    """

    first: int
    sequences: list[Sequence]
    ids: NDArray[np.int64]
    lengths: list[int]
    every: bool = False


class Scheduler:
    """Sequences that wait, and the plan of each step. lock: held while the queue changes, never during a step."""

    def __init__(self, slots: Slots, queue: int, lock: threading.Lock) -> None:
        self._slots, self._queue, self._lock = slots, queue, lock
        self._waiting: deque[Sequence] = deque()
        self._stored = weakref.WeakKeyDictionary[Sequence, Stored]()  # of sequences that have not begun

    def submit(self, sequence: Sequence, stored: Stored | None = None) -> None:
        """Queue it. stored: keys and values of its prompt's beginning. Raises BusyError where too many wait."""
        with self._lock:
            if len(self._waiting) >= self._queue:  # perhaps of some that nobody waits for any more
                self._waiting = deque(other for other in self._waiting if not other.over)
            if len(self._waiting) >= self._queue:
                raise BusyError("queue", f"the queue is full ({self._queue} requests wait)", "try again later")
            if stored is not None:
                self._stored[sequence] = stored
            self._waiting.append(sequence)

    def schedule(self) -> Iterator[Batch]:
        """A chunk of one prompt, then a step of every sequence whose prompt is done."""
        self._slots.retire()
        self._admit()
        slots = self._slots
        decoding = [i for i in slots.used() if slots.sequence(i).started]
        yield from self._prefill(len(decoding))
        alone = [i for i in decoding if len(slots.sequence(i).pending()) != 1]
        for index in alone:  # who guessed tokens ahead has several to check
            yield self._pass(index, len(slots.sequence(index).pending()))
        for first, end in _runs([i for i in decoding if i not in alone]):
            sequences = [slots.sequence(index) for index in range(first, end)]
            ids = np.array([sequence.tokens[-1:] for sequence in sequences], dtype=np.int64)
            yield Batch(first, sequences, ids, [len(sequence.tokens) for sequence in sequences])

    def done(self, batch: Batch) -> None:
        """Note what a pass over several tokens of one sequence has left in its slot."""
        if len(batch.sequences) == 1 and batch.ids.shape[1] > 1:
            slot, start = self._slots[batch.first], batch.lengths[0] - batch.ids.shape[1]
            if slot.exact >= start:
                slot.exact = batch.sequences[0].computed

    def load(self) -> tuple[int, int]:
        """How many sequences run and how many wait."""
        return len(self._slots.used()), sum(not sequence.over for sequence in list(self._waiting))

    def clear(self) -> None:
        self._slots.clear()
        self._waiting = deque()
        self._stored.clear()

    def _admit(self) -> None:
        while (free := self._slots.free()) and (sequence := self._next_waiting()) is not None:
            self._slots.place(sequence, free)
            self._next_waiting()  # which takes it out of the queue, now that it has a slot

    def _next_waiting(self) -> Sequence | None:
        """It stays in the queue until it has a slot, so that an interrupt in between does not lose it."""
        with self._lock:
            while self._waiting:
                sequence = self._waiting[0]
                if not sequence.over and not self._slots.holds(sequence):
                    return sequence
                self._waiting.popleft()
        return None

    def _prefill(self, decoding: int) -> Iterator[Batch]:
        """One chunk of the prompt that came first."""
        slots = self._slots
        waiting = [i for i in slots.used() if not slots.sequence(i).started]
        if not waiting:
            return
        index = min(waiting, key=lambda i: slots[i].touched)
        sequence = slots.sequence(index)
        if sequence.computed == 0:
            slots.reuse(index, self._stored.pop(sequence, None))
        rest = len(sequence.pending())
        chunk = CHUNK_BESIDE_OTHERS + CHUNK_FOR_EACH * decoding if decoding else CHUNK
        if sequence.computed == sequence.reused and rest <= SHORT:
            chunk = rest
        count = rest if rest <= chunk + 1 else chunk
        if sequence.heals and count == rest > SHORT:
            count = rest - 2  # healing needs the logits after the last two, and a pass with all of them takes longer
        yield self._pass(index, count)

    def _pass(self, index: int, count: int) -> Batch:
        """The next `count` tokens of one sequence."""
        sequence = self._slots.sequence(index)
        start = sequence.computed
        ids = np.array([sequence.pending()[:count]], dtype=np.int64)
        return Batch(index, [sequence], ids, [start + count], sequence.wants_every(start, start + count))


def _runs(indices: List[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as runs of consecutive ones, (first, one past the last)."""
    starts = [i for i in indices if i - 1 not in indices]
    ends = [i + 1 for i in indices if i + 1 not in indices]
    return zip(starts, ends, strict=True)
