"""Texts to embed. They have a slot of their own, so that they never take one from a text that is generated.

While other work is done, they get a share of the time, so that streams keep their speed; alone they get all of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from kiara_runtime.engine.batch import Batch
from kiara_runtime.engine.sequence import Sequence
from kiara_runtime.engine.session import CHUNK

SHARE = 0.08  # seconds for texts to embed, for each second of other work
CHUNK_BESIDE_OTHERS = 32  # tokens per pass while there is other work; alone CHUNK


class EmbeddingQueue:
    """slot: index of the slot that its sequences use, one after the other. lock: held by callers of `add` and
    `drop_ended`, never during a pass.
    """

    def __init__(self, slot: int, lock: threading.Lock) -> None:
        self._slot, self._lock = slot, lock
        self._texts: deque[Sequence] = deque()
        self._owed = 0.0  # seconds of other work until the next pass beside it

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, sequence: Sequence) -> None:
        self._texts.append(sequence)

    def load(self) -> tuple[int, int]:
        """Number of running and of waiting texts."""
        there = [sequence.admitted is not None for sequence in list(self._texts) if not sequence.over]
        return sum(there), len(there) - sum(there)

    def drop_ended(self) -> None:
        """Remove the sequences that are over; some may have been cancelled while they waited."""
        self._texts = deque(sequence for sequence in self._texts if not sequence.over)

    def clear(self) -> None:
        self._texts.clear()

    def passes(self, other_seconds: float) -> Iterator[Batch]:
        """The next pass, if it may run now. other_seconds: that other work has taken in this step; 0 if there is none.

        The last two tokens of a text stay together: a pass of a single token uses another attention kernel.
        """
        self._owed = max(0.0, self._owed - other_seconds) if other_seconds else 0.0
        sequence, began = self._next(), time.perf_counter()
        if sequence is None or self._owed:
            return
        sequence.admitted = sequence.admitted or began
        rest, chunk = sequence.pending(), CHUNK_BESIDE_OTHERS if other_seconds else CHUNK
        ids = np.array([rest if len(rest) <= chunk + 1 else rest[:chunk]], dtype=np.int64)
        yield Batch(self._slot, [sequence], ids, [sequence.computed + ids.shape[1]])
        self._owed = (time.perf_counter() - began) / SHARE

    def _next(self) -> Sequence | None:
        with self._lock:
            while self._texts and self._texts[0].over:
                self._texts.popleft()
            return self._texts[0] if self._texts else None
