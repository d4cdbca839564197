"""Many sequences on one session: slots of one cache, prompts in chunks, one step for all that decode.

Whoever waits for a token makes the next step for everybody (`turns`). What a sequence gets does not depend on its
company:

- Passes of one token give it the same bits regardless of what else is in the batch. Passes of two tokens and more do
  so too wherever they are cut, but for a few lengths on some processors, where the last bit of float32 differs; the
  two kinds always differ in it (ONNX Runtime takes another attention kernel for one token). So a prompt is never left
  with a single token at its end, and only what passes of several tokens left in the cache is used again.
- How many tokens a sequence guesses ahead depends on its own text alone.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as List
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine.leader import Turns
from kiara_runtime.engine.prompt_store import PromptStore, common_prefix
from kiara_runtime.engine.sequence import Sequence
from kiara_runtime.engine.session import Session
from kiara_runtime.errors import UserError

SLOTS = 8
QUEUE = 256  # sequences that may wait for a slot
CHUNK = 256  # tokens of a prompt in one pass: bounds the logits held at once
# With M others decoding a prompt gets about as many tokens a pass as take two of their steps.
CHUNK_IN_COMPANY, CHUNK_FOR_EACH = 2, 2
SHORT = 32  # tokens of a prompt that is not worth cutting: its parts would take longer than the whole
LEAST_REUSED = 8  # tokens; fewer are computed sooner than looked for


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class BusyError(UserError):
    """The queue is full; try again later."""


class ClosedError(UserError):
    """The model has been closed."""


class Runner(Protocol):
    """What a `Model` needs: an engine over a bundle's graph, or any other way to compute logits."""

    def submit(self, sequence: Sequence) -> None:
        """Queue it. Raises BusyError where too many wait."""
        ...

    def wait(self, sequences: List[Sequence], timeout: float | None = None) -> None:
        """Return once one of them has pieces or is over, or after `timeout` seconds and the step that is under way."""
        ...

    def load(self) -> tuple[int, int]:
        """How many sequences run and how many wait."""
        ...

    def close(self) -> None: ...


class Alone:
    """Each sequence by itself, over a function from token ids (N,) to the logits (N, V): the obvious way."""

    def __init__(self, begin: Callable[[], Callable[[List[int]], NDArray[np.float32]]]) -> None:
        self._begin = begin
        self._running: weakref.WeakKeyDictionary[Sequence, Callable[[List[int]], NDArray[np.float32]]]
        self._running = weakref.WeakKeyDictionary()

    def submit(self, sequence: Sequence) -> None:
        self._running[sequence] = self._begin()

    def wait(self, sequences: List[Sequence], timeout: float | None = None) -> None:
        while not any(sequence.ready for sequence in sequences):
            for sequence in sequences:
                logits = self._running[sequence](sequence.tokens[sequence.computed :])
                sequence.take(len(sequence.tokens), logits)

    def load(self) -> tuple[int, int]:
        return sum(not sequence.over for sequence in self._running), 0

    def close(self) -> None:
        self._running.clear()


@dataclass
class _Slot:
    """tokens: those whose keys and values a sequence that left it has left behind. exact: of how many from the
    beginning, by passes of several tokens."""

    sequence: Sequence | None = None
    tokens: list[int] = field(default_factory=list[int])
    exact: int = 0
    touched: int = 0

    def known(self) -> list[int]:
        tokens = self.tokens if self.sequence is None else self.sequence.tokens
        return tokens[: self.exact]


class Engine:
    """Runs any number of sequences, `slots` at a time. Safe to use from several threads."""

    def __init__(self, session: Session, slots: int = SLOTS, queue: int = QUEUE, store: PromptStore | None = None):
        self._cache, self._store, self._queue = session.cache(slots), store, queue
        self._slots = [_Slot() for _ in range(slots)]
        self._waiting: deque[Sequence] = deque()
        self._turns = Turns()
        self._closed = self._frozen = False
        self._clock, self._process = 0, os.getpid()
        _engines.add(self)

    def submit(self, sequence: Sequence) -> None:
        self._check_usable()
        with self._turns.lock:
            if len(self._waiting) >= self._queue:  # perhaps of some that nobody waits for any more
                self._waiting = deque(other for other in self._waiting if not other.over)
            if len(self._waiting) >= self._queue:
                raise BusyError(f"the queue is full ({self._queue} requests wait); try again later")
            self._waiting.append(sequence)

    def wait(self, sequences: List[Sequence], timeout: float | None = None) -> None:
        def ready() -> bool:
            return any(sequence.ready for sequence in sequences)

        def returns() -> bool:
            return not all(sequence.over for sequence in sequences)

        if not ready():
            self._check_usable()
            self._turns.until(ready, returns, self._step, self._check_usable, timeout)

    def close(self) -> None:
        """Give back the cache once a step that is under way has ended; every request ends."""
        if self._closed or self._frozen or self._forked():
            return
        self._closed = True
        self._turns.end(self._empty)

    def freeze(self) -> None:
        """Let no thread begin another step, for ever: those that outlive the interpreter would end in a crash."""
        if self._forked():
            return
        self._turns.freeze()
        self._frozen = True

    def load(self) -> tuple[int, int]:
        running = sum(slot.sequence is not None and not slot.sequence.over for slot in self._slots)
        return running, sum(not sequence.over for sequence in list(self._waiting))

    def _forked(self) -> bool:
        """ONNX Runtime's threads stayed behind then, and a lock that one of them held stays held."""
        return os.getpid() != self._process

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedError("model: it has been closed; load it again")
        if self._forked():
            raise UserError("model: it was loaded before this process was forked; load it in the new process")

    def _empty(self) -> None:
        self._slots, self._waiting = [], deque()
        del self._cache

    def _step(self) -> None:
        """A chunk of one prompt, then a step of every sequence whose prompt is done."""
        self._retire()
        self._admit()
        running = [i for i in self._used() if self._sequence(i).started]
        self._prefill(len(running))
        steps = [i for i in running if len(self._sequence(i).pending()) == 1]
        for index in set(running) - set(steps):
            self._pass(index, len(self._sequence(index).pending()))
        for first, end in _runs(steps):
            self._joint_step(first, end)
        self._retire()

    def _retire(self) -> None:
        for index in range(len(self._slots)):
            # Its place may be taken by one that is over, too.
            while (sequence := self._slots[index].sequence) is not None and sequence.over:
                self._leave(index)

    def _used(self) -> list[int]:
        """Slots whose sequence goes on; one may have been cancelled a moment ago."""
        return [i for i, slot in enumerate(self._slots) if slot.sequence is not None and not slot.sequence.over]

    def _sequence(self, index: int) -> Sequence:
        sequence = self._slots[index].sequence
        assert sequence is not None
        return sequence

    def _admit(self) -> None:
        while (free := self._free()) and (sequence := self._next_waiting()) is not None:
            prompt = sequence.tokens[: sequence.reusable]
            best = max(free, key=lambda i: (common_prefix(self._slots[i].known(), prompt), -self._slots[i].touched))
            slot = self._slots[best]
            slot.exact = common_prefix(slot.known(), prompt)
            slot.sequence, slot.tokens = sequence, []
            sequence.admitted = time.perf_counter()
            self._next_waiting()  # which takes it out of the queue, now that it has a slot
            self._clock += 1
            slot.touched = self._clock

    def _next_waiting(self) -> Sequence | None:
        """It stays in the queue until it has a slot, so that an interrupt in between does not lose it."""
        with self._turns.lock:
            while self._waiting:
                sequence = self._waiting[0]
                if not sequence.over and all(slot.sequence is not sequence for slot in self._slots):
                    return sequence
                self._waiting.popleft()
        return None

    def _free(self) -> list[int]:
        """Slots to choose from: those that keep the used ones together, so that one step takes them all."""
        used = [i for i, slot in enumerate(self._slots) if slot.sequence is not None]
        free = [i for i, slot in enumerate(self._slots) if slot.sequence is None]
        if not used:
            return free
        return [i for i in free if used[0] < i < used[-1]] or [i for i in free if i in (used[0] - 1, used[-1] + 1)]

    def _leave(self, index: int) -> None:
        """Free a slot; its place among the used ones is filled from their end."""
        slot = self._slots[index]
        sequence, slot.tokens = self._sequence(index), slot.known()
        slot.sequence = None
        if self._store is not None and sequence.error is None and slot.exact:
            with suppress(Exception):  # the text matters, not what the next start would have saved
                self._store.save(slot.tokens, self._cache.buffers[:, index])
        used = [i for i, other in enumerate(self._slots) if other.sequence is not None]
        if not self._cache.copies or not used or not used[0] < index < used[-1]:
            return
        source = min(used[0], used[-1], key=lambda i: self._sequence(i).computed)
        moved, slot.exact = self._slots[source], 0  # before its cache is another's: an interrupt may come at any time
        self._cache.copy(source, index, max(self._sequence(source).computed, moved.exact))
        left = _Slot(touched=moved.touched, tokens=moved.known(), exact=moved.exact)
        self._slots[index], self._slots[source] = moved, left

    def _prefill(self, running: int) -> None:
        """One chunk of the prompt that came first."""
        waiting = [i for i in self._used() if not self._sequence(i).started]
        if not waiting:
            return
        index = min(waiting, key=lambda i: self._slots[i].touched)
        sequence = self._sequence(index)
        if sequence.computed == 0:
            self._reuse(index, sequence)
        rest = len(sequence.pending())
        chunk = CHUNK_IN_COMPANY + CHUNK_FOR_EACH * running if running else CHUNK
        if sequence.computed == sequence.reused and rest <= SHORT:
            chunk = rest
        self._pass(index, rest if rest <= chunk + 1 else chunk)

    def _reuse(self, index: int, sequence: Sequence) -> None:
        """Begin with what this slot, another one or the store already knows of the prompt."""
        slot, prompt = self._slots[index], sequence.tokens[: sequence.reusable]
        if self._cache.copies:
            lengths = [common_prefix(other.known(), prompt) for other in self._slots]
            source = max(range(len(lengths)), key=lambda i: (lengths[i], i == index))
            if source != index and lengths[source] >= LEAST_REUSED:
                self._cache.copy(source, index, lengths[source])
                slot.exact = lengths[source]
        if self._store is not None:
            with suppress(Exception):  # it is computed then
                slot.exact = self._store.restore(prompt, slot.exact, self._cache.buffers[:, index])
        if slot.exact < LEAST_REUSED:
            slot.exact = 0
        sequence.computed = sequence.reused = slot.exact

    def _pass(self, index: int, count: int) -> None:
        """Compute the next `count` tokens of one sequence."""
        slot, sequence = self._slots[index], self._sequence(index)
        start = sequence.computed
        ids = np.array([sequence.pending()[:count]], dtype=np.int64)
        every = sequence.wants_every(start, start + count)
        with _blaming([sequence]):
            logits = self._cache.run(ids, [start + count], index, every)
            sequence.take(start + count, logits[0] if every else logits)
            if slot.exact >= start and count > 1:
                slot.exact = sequence.computed

    def _joint_step(self, first: int, end: int) -> None:
        """One token of each of the sequences in a run of slots."""
        sequences = [self._sequence(index) for index in range(first, end)]
        ids = np.array([sequence.tokens[-1:] for sequence in sequences], dtype=np.int64)
        lengths = [len(sequence.tokens) for sequence in sequences]
        with _blaming(sequences):
            logits = self._cache.run(ids, lengths, first)
            for sequence, length, row in zip(sequences, lengths, logits, strict=True):
                with _blaming([sequence]):
                    sequence.take(length, row[None])


@atexit.register
def _freeze() -> None:
    for engine in list(_engines):
        engine.freeze()


@contextmanager
def _blaming(sequences: List[Sequence]) -> Generator[None]:
    """What goes wrong ends the sequences that it went wrong for, and nobody else's."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        for sequence in sequences:
            sequence.error = error if isinstance(error, Exception) else RuntimeError(repr(error))


def _runs(indices: List[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as runs of consecutive ones, (first, one past the last)."""
    starts = [i for i in indices if i - 1 not in indices]
    ends = [i + 1 for i in indices if i + 1 not in indices]
    return zip(starts, ends, strict=True)
