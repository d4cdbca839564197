"""Plans each step: which sequences get a slot, which prompt chunk is prefilled, and which sequences decode."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as List

import numpy as np

from kiara_runtime.engine.batch import Batch
from kiara_runtime.engine.embedding_queue import EmbeddingQueue
from kiara_runtime.engine.sequence import Sequence
from kiara_runtime.engine.slots import Slots, Stored
from kiara_runtime.errors import BusyError

CHUNK = 256  # prompt tokens per pass; bounds the size of the logits
# While M sequences decode, a chunk has CHUNK_BESIDE_OTHERS + M * CHUNK_FOR_EACH tokens: the time of two decode steps.
CHUNK_BESIDE_OTHERS, CHUNK_FOR_EACH = 2, 2
SHORT = 32  # prompts of up to this many tokens are not split: the chunks would take longer than one pass


class Scheduler:
    """The queues and the plan of each step. lock: held while a queue changes, never during a step."""

    def __init__(self, slots: Slots, queue: int, lock: threading.Lock, texts: EmbeddingQueue) -> None:
        self._slots, self._queue, self._lock = slots, queue, lock
        self._waiting: deque[Sequence] = deque()
        self._texts = texts
        self._stored = weakref.WeakKeyDictionary[Sequence, Stored]()  # for sequences that have not started

    def submit(self, sequence: Sequence, stored: Stored | None = None) -> None:
        """Queue a sequence. stored: keys and values of a prefix of its prompt. Raises BusyError if too many wait."""
        with self._lock:
            if len(self._waiting) + len(self._texts) >= self._queue:  # some may have been cancelled
                self._waiting = deque(other for other in self._waiting if not other.over)
                self._texts.drop_ended()
            if len(self._waiting) + len(self._texts) >= self._queue:
                raise BusyError("queue", f"the queue is full ({self._queue} requests wait)", "try again later")
            if sequence.pool is not None:
                self._texts.add(sequence)
                return
            if stored is not None:
                self._stored[sequence] = stored
            self._waiting.append(sequence)

    def schedule(self) -> Iterator[Batch]:
        """Yield a chunk of one prompt, a decode step of every sequence whose prompt is done, and texts to embed."""
        self._slots.retire()
        self._admit()
        began, others = time.perf_counter(), bool(self._slots.used())
        yield from self._generate()
        yield from self._texts.passes(time.perf_counter() - began if others else 0.0)

    def _generate(self) -> Iterator[Batch]:
        slots = self._slots
        decoding = [i for i in slots.used() if slots.sequence(i).started]
        yield from self._prefill(len(decoding))
        alone = [i for i in decoding if len(slots.sequence(i).pending()) != 1]
        for index in alone:  # a sequence with guesses has several tokens to verify
            yield self._pass(index, len(slots.sequence(index).pending()))
        for first, end in _runs([i for i in decoding if i not in alone]):
            sequences = [slots.sequence(index) for index in range(first, end)]
            ids = np.array([sequence.tokens[-1:] for sequence in sequences], dtype=np.int64)
            yield Batch(first, sequences, ids, [len(sequence.tokens) for sequence in sequences])

    def done(self, batch: Batch) -> None:
        """Record which keys and values of its slot a pass of several tokens has made reusable."""
        if batch.sequences[0].pool is not None:
            return
        if len(batch.sequences) == 1 and batch.ids.shape[1] > 1:
            slot, start = self._slots[batch.first], batch.lengths[0] - batch.ids.shape[1]
            if slot.exact >= start:
                slot.exact = batch.sequences[0].computed

    def load(self) -> tuple[int, int]:
        """Number of running and of waiting sequences."""
        running, waiting = self._texts.load()
        waiting += sum(not sequence.over for sequence in list(self._waiting))
        return len(self._slots.used()) + running, waiting

    def clear(self) -> None:
        self._slots.clear()
        self._waiting = deque()
        self._texts.clear()
        self._stored.clear()

    def _admit(self) -> None:
        while (free := self._slots.free()) and (sequence := self._next_waiting()) is not None:
            self._slots.place(sequence, free)
            self._next_waiting()  # removes it from the queue, as it has a slot now

    def _next_waiting(self) -> Sequence | None:
        """The next sequence to admit. It stays queued until it has a slot, so that an interrupt does not lose it."""
        with self._lock:
            while self._waiting:
                sequence = self._waiting[0]
                if not sequence.over and not self._slots.holds(sequence):
                    return sequence
                self._waiting.popleft()
        return None

    def _prefill(self, decoding: int) -> Iterator[Batch]:
        """One chunk of the prompt that got its slot first."""
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
            count = rest - 2  # healing needs the logits of the last two tokens; for all tokens they take longer
        yield self._pass(index, count)

    def _pass(self, index: int, count: int) -> Batch:
        """The next `count` tokens of one sequence."""
        sequence = self._slots.sequence(index)
        start = sequence.computed
        ids = np.array([sequence.pending()[:count]], dtype=np.int64)
        return Batch(index, [sequence], ids, [start + count], sequence.wants_every(start, start + count))


def _runs(indices: List[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers in ascending ones, as (first, one past the last)."""
    starts = [i for i in indices if i - 1 not in indices]
    ends = [i + 1 for i in indices if i + 1 not in indices]
    return zip(starts, ends, strict=True)
