"""Runs many sequences on one session. A step is three calls: schedule what to compute, run it, postprocess the logits.

A thread that waits for a token runs the next step for all threads (`leader`). The output of a sequence does not depend
on what else is in the batch:

- A pass of one token gives a sequence the same bits regardless of what else is in the batch. So do passes of two or
  more tokens, wherever a prompt is split, except at a few lengths on some processors, where the last bit of float32
  differs. The two kinds of pass always differ in that bit, as ONNX Runtime uses another attention kernel for one
  token. So a prompt is never split with a single token at its end, and only keys and values from passes of several
  tokens are reused.
- How many tokens a sequence guesses ahead depends on its own text alone.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Generator
from collections.abc import Sequence as List
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine.batch import Batch
from kiara_runtime.engine.embedding_queue import EmbeddingQueue
from kiara_runtime.engine.leader import Leader
from kiara_runtime.engine.prompt_store import PromptStore, PromptWriter
from kiara_runtime.engine.scheduler import Scheduler
from kiara_runtime.engine.sequence import Sequence
from kiara_runtime.engine.session import Session
from kiara_runtime.engine.slots import Slots, Stored
from kiara_runtime.errors import ClosedError, UserError

SLOTS = 8
QUEUE = 256  # sequences that may wait for a slot

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Runs any number of sequences, `slots` at a time. Thread-safe.

    store: keeps keys and values of prompts on disk. It is read when a sequence is submitted and written in a separate
    thread, so that no step waits for the disk.
    """

    def __init__(self, session: Session, slots: int = SLOTS, queue: int = QUEUE, store: PromptStore | None = None):
        spare = 0 if session.hidden_size is None else 1  # the slot of texts to embed
        self._cache, self._store, self._leader = session.cache(slots + spare), store, Leader()
        self.hidden_size = session.hidden_size
        self._writer = None if store is None else PromptWriter(store)
        kept = {} if self._writer is None else {"left": self._writer.offer}
        self._slots = Slots(self._cache, slots, **kept)
        self._scheduler = Scheduler(self._slots, queue, self._leader.lock, EmbeddingQueue(slots, self._leader.lock))
        self._closed = self._frozen = False
        self._process = os.getpid()
        _engines.add(self)

    def submit(self, sequence: Sequence) -> None:
        self._check_usable()
        self._scheduler.submit(sequence, self._stored(sequence))

    def wait(self, sequences: List[Sequence], timeout: float | None = None) -> None:
        def ready() -> bool:
            return any(sequence.ready for sequence in sequences)

        def waits_again() -> bool:
            return not all(sequence.over for sequence in sequences)

        if not ready():
            self._check_usable()
            self._leader.until(ready, waits_again, self.step, self._check_usable, timeout)

    def step(self) -> None:
        """Run one step; only the leader calls this."""
        for batch in self._scheduler.schedule():
            with _isolated_errors(batch.sequences):
                hidden = self._hidden(batch)
                logits = self._cache.run(batch.ids, batch.lengths, batch.first, batch.every, hidden)
                if hidden is not None and (pool := batch.sequences[0].pool):
                    pool.add(batch.lengths[0] - len(hidden[0]), hidden[0])
                self._postprocess(batch, logits)
        self._slots.retire()

    def close(self) -> None:
        """Wait for the current step, end every request and free the cache."""
        if self._closed or self._frozen or self._forked():
            return
        self._closed = True
        self._leader.end(self._empty)
        if self._writer is not None:
            self._writer.close()

    def freeze(self) -> None:
        """Wait for the current step and allow no further one: a step that outlives the interpreter would crash."""
        if self._forked():
            return
        self._leader.freeze()
        self._frozen = True

    def load(self) -> tuple[int, int]:
        return self._scheduler.load()

    def _hidden(self, batch: Batch) -> NDArray[np.float32] | None:
        """Memory (1, S, D) for the hidden states of a pass, if its sequence collects them."""
        if batch.sequences[0].pool is None:
            return None
        assert self.hidden_size is not None
        return np.empty((*batch.ids.shape, self.hidden_size), dtype=np.float32)

    def _postprocess(self, batch: Batch, logits: NDArray[np.float32]) -> None:
        """Give each sequence its logits: it samples a token, and the text that is now certain can be fetched."""
        if len(batch.sequences) == 1:
            batch.sequences[0].take(batch.lengths[0], logits[0] if batch.every else logits)
            self._scheduler.done(batch)
            return
        for sequence, length, row in zip(batch.sequences, batch.lengths, logits, strict=True):
            with _isolated_errors([sequence]):
                sequence.take(length, row[None])

    def _stored(self, sequence: Sequence) -> Stored | None:
        """Stored keys and values of the prompt, if they cover more of it than any slot."""
        if self._store is None or sequence.pool is not None:
            return None
        prompt = sequence.tokens[: sequence.reusable]
        with suppress(Exception):  # the prompt is computed instead
            return self._store.find(prompt, self._slots.longest_known(prompt), self._cache.buffers[:, 0])
        return None

    def _forked(self) -> bool:
        """Whether this is a forked child: ONNX Runtime's threads are missing, and a lock that one held stays held."""
        return os.getpid() != self._process

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedError("model", "it has been closed", "load it again")
        if self._forked():
            raise UserError("model", "it was loaded before this process was forked", "load it in the new process")

    def _empty(self) -> None:
        self._scheduler.clear()
        del self._cache


@atexit.register
def _freeze() -> None:
    for engine in list(_engines):
        engine.freeze()


@contextmanager
def _isolated_errors(sequences: List[Sequence]) -> Generator[None]:
    """End only these sequences if the block raises."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a Rust library is not an Exception
        for sequence in sequences:
            sequence.error = error if isinstance(error, Exception) else RuntimeError(repr(error))
