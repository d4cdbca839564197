"""The one scorer: negative log-likelihood, accuracy and bits per byte, in NumPy, whichever engine gave the logits.

`kiara evaluate`, `kiara-run evaluate`, training's validation and receipts use it, so that the same text gives the same
figure everywhere. Log-probabilities of single tokens are `filters.log_softmax`'s, in float64. A text is read in order,
in windows that do not overlap, the last of which may be shorter; every token but the first is predicted once.

Shape letters: S positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.sampling import nats
from kiara_runtime.tokens import END_OF_TEXT, Tokenizer

MAX_WINDOW = 1024  # tokens


@dataclass(frozen=True)
class Metrics:
    """loss: mean nats a token. accuracy: part of the tokens that were the likeliest. tokens: how many."""

    loss: float
    perplexity: float
    accuracy: float
    bits_per_byte: float
    tokens: int

    def named(self, prefix: str) -> dict[str, float]:
        return {f"{prefix}{name}": value for name, value in asdict(self).items()}


class Scorer:
    """Sums up predictions. totals: nats, right guesses, bytes and tokens so far; those of several scorers add up."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = np.array([len(token) for token in tokenizer.token_bytes], dtype=np.int64)
        self.totals: list[float] = [0.0, 0, 0, 0]

    @property
    def tokens(self) -> int:
        """How many were predicted so far."""
        return int(self.totals[3])

    def add(self, logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
        """logits (S, V) at positions that were followed by targets (S,); returns the nats of each target, (S,)."""
        each = nats(logits, targets)
        right = int((logits.argmax(-1) == targets).sum())
        length = int(self._token_bytes[np.minimum(targets, len(self._token_bytes) - 1)].sum())
        added = (float(each.sum()), right, length, len(targets))
        self.totals = [total + more for total, more in zip(self.totals, added, strict=True)]
        return each

    def metrics(self, text_bytes: int | None = None) -> Metrics:
        """text_bytes: of all that was predicted, where it is known better than from its tokens."""
        nats_, right, length, tokens = self.totals
        return Metrics(
            loss=nats_ / tokens,
            perplexity=math.exp(min(nats_ / tokens, 700.0)),
            accuracy=right / tokens,
            bits_per_byte=nats_ / math.log(2) / max(1, text_bytes or length),
            tokens=self.tokens,
        )


def window_length(context_length: int) -> int:
    """Tokens a window: the whole context, or what a long one's logits still leave room for."""
    return min(context_length, MAX_WINDOW)


def windows(ids: NDArray[np.int64], length: int) -> Iterator[NDArray[np.int64]]:
    """Each window of a text (N,): at most `length` inputs and one more, the last one's target."""
    for start in range(0, len(ids) - 1, length):
        yield ids[start : start + length + 1]


def first_token(tokenizer: Tokenizer, bos: int) -> int:
    """What stands before a text that is judged: the end of the one before, where the model knows it by END_OF_TEXT."""
    return tokenizer.special_tokens.get(END_OF_TEXT, bos)
