"""The interface that runs a model's sequences: the engine over a bundle's graph, or any other source of logits."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Sequence as List
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine.sequence import Sequence


class Runner(Protocol):
    """What a `Model` needs to run sequences. hidden_size: of the hidden states, if it can give them."""

    @property
    def hidden_size(self) -> int | None: ...

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises BusyError if too many wait."""
        ...

    def wait(self, sequences: List[Sequence], timeout: float | None = None) -> None:
        """Return once a sequence has pieces or is over, or after `timeout` seconds plus the current step."""
        ...

    def load(self) -> tuple[int, int]:
        """Number of running and of waiting sequences."""
        ...

    def close(self) -> None: ...


class SequentialRunner:
    """Runs each sequence by itself, with a function from token ids (N,) to logits (N, V)."""

    hidden_size = None

    def __init__(self, begin: Callable[[], Callable[[List[int]], NDArray[np.float32]]]) -> None:
        self._begin = begin
        self._running: weakref.WeakKeyDictionary[Sequence, Callable[[List[int]], NDArray[np.float32]]]
        self._running = weakref.WeakKeyDictionary()

    def submit(self, sequence: Sequence) -> None:
        self._running[sequence] = self._begin()

    def wait(self, sequences: List[Sequence], timeout: float | None = None) -> None:
        while not any(sequence.ready for sequence in sequences):
            for sequence in sequences:
                end = len(sequence.tokens) - sequence.heals  # healing may still replace the last token
                logits = self._running[sequence](sequence.tokens[sequence.computed : end])
                sequence.take(end, logits)

    def load(self) -> tuple[int, int]:
        return sum(not sequence.over for sequence in self._running), 0

    def close(self) -> None:
        self._running.clear()
