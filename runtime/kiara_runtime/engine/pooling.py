"""The embedding of a prompt: the hidden states of its tokens, pooled into one vector."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pooling = Literal["mean", "last"]


class Pool:
    """Collects hidden states pass by pass. mean: over all tokens; last: the state of the last token alone.

    A pass that an interrupt has repeated counts once.
    """

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self._passes: dict[int, tuple[int, NDArray[np.float64]]] = {}  # start -> tokens, and their sum or last state

    def add(self, start: int, states: NDArray[np.float32]) -> None:
        """Add the hidden states (N, D) of the tokens from `start` on."""
        kept = states.sum(axis=0, dtype=np.float64) if self.pooling == "mean" else states[-1].astype(np.float64)
        self._passes[start] = len(states), kept

    @property
    def vector(self) -> NDArray[np.float64]:
        """The pooled states, (D,)."""
        if self.pooling == "last":
            return self._passes[max(self._passes)][1]
        counts, sums = zip(*self._passes.values(), strict=True)
        return np.sum(sums, axis=0) / sum(counts)
