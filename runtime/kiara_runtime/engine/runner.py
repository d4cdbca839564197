"""What computes sequences for a model: the engine over a bundle's graph, or any other way to compute logits."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Sequence as List
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine.sequence import Sequence


class Runner(Protocol):
    """What a `Model` needs."""

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
                end = len(sequence.tokens) - sequence.heals  # a token that may become another is not computed yet
                logits = self._running[sequence](sequence.tokens[sequence.computed : end])
                sequence.take(end, logits)

    def load(self) -> tuple[int, int]:
        return sum(not sequence.over for sequence in self._running), 0

    def close(self) -> None:
        self._running.clear()
