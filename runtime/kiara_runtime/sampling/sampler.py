"""From logits to the next token, in NumPy: the one sampler for every front end, including the PyTorch reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.errors import UserError
from kiara_runtime.sampling import filters
from kiara_runtime.sampling.filters import Logits
from kiara_runtime.sampling.params import SamplingParams

HEALING = 1  # gives token healing a random stream of its own


class Sampler:
    """Samples the tokens of one sequence, one random number each, so that a seed repeats regardless of the batch.

    prompt: its ids. choice: index among a request's continuations; each has a random stream of its own.
    The logits change in this order: repetition penalty (prompt and output), presence and frequency penalty
    (output only, as OpenAI defines them), bias, bans. Temperature and filters follow, see `filters.keep`.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], choice: int = 0) -> None:
        seed = params.seed or 0  # never None: SamplingParams draws one
        self._draw = np.random.default_rng([seed, choice] if choice else seed).random
        self._params, self._choice = params, choice
        self._repetition = params.repetition_penalty != 1.0
        self._bias = {**dict(params.logit_bias), **dict.fromkeys(params.banned_tokens, -math.inf)}
        self._changes = self._repetition or bool(
            self._bias or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        self._prompt = set(prompt) if self._repetition else set[int]()
        self._recorded: list[int] = []  # not counted yet
        self._counts: Counter[int] = Counter()  # of the output
        self._seen = np.zeros(0, dtype=np.bool_)  # (V,) from the first call on
        self._shift = np.zeros(0, dtype=np.float32)

    def __call__(self, logits: Logits, allowed: NDArray[np.bool_] | None = None) -> int:
        """Return the next token. logits: (V,), never written to; allowed: (V,), the tokens that a grammar permits.

        Raises UserError if the largest logit is not finite: no token is left, or the model overflows.
        """
        if self._changes:
            logits = self._changed(logits)
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
        likeliest = int(logits.argmax())
        if not math.isfinite(logits[likeliest]):
            raise _no_choice(float(logits[likeliest]))
        params = self._params
        if params.temperature == 0.0:
            return likeliest
        kept = filters.keep(logits, params.temperature, params.top_k, params.typical_p, params.top_p, params.min_p)
        return filters.pick(*kept, self._draw())

    def heal(self, logits: Logits, allowed: NDArray[np.bool_] | None) -> int:
        """Sample a token in place of the prompt's last one, with a separate random stream: later draws do not change.

        Uses only the temperature, among the tokens `allowed` (V,): penalties and filters apply to new text only.
        """
        logits = logits if allowed is None else np.where(allowed, logits, np.float32(-np.inf))
        if self._params.temperature == 0.0 or not math.isfinite(float(logits.max())):
            return int(logits.argmax())
        seed = self._params.seed or 0
        draw = np.random.default_rng([seed, self._choice, HEALING]).random()
        return filters.pick(*filters.keep(logits, self._params.temperature), draw)

    def record(self, token: int) -> None:
        """Count a token that joined the output, for the penalties."""
        if self._changes:
            self._recorded.append(token)

    def _changed(self, logits: Logits) -> Logits:
        if not len(self._shift):
            self._begin(len(logits))
        for token in self._recorded:
            self._count(token)
        self._recorded.clear()
        if self._repetition:
            logits = filters.penalise(logits, np.flatnonzero(self._seen), self._params.repetition_penalty)
        return logits + self._shift

    def _begin(self, size: int) -> None:
        self._seen, self._shift = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.float32)
        self._seen[list(self._prompt)] = True
        self._shift[list(self._bias)] = list(self._bias.values())

    def _count(self, token: int) -> None:
        self._counts[token] += 1
        self._seen[token] = True
        penalty = self._params.presence_penalty + self._params.frequency_penalty * self._counts[token]
        self._shift[token] = self._bias.get(token, 0.0) - penalty


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural log-probability, and the likeliest tokens in its place as pairs of id and log-probability."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: Logits, token: int, top: int) -> TokenLogprob:
    """A token's log-probability in the model's own distribution, before temperature, penalties and bans. logits: (V,).

    top: how many of the likeliest tokens to include, by descending probability, ties by id.
    """
    logprobs = filters.log_softmax(logits)
    best = filters.ranked(-logits, top)[:top]
    return TokenLogprob(token, float(logprobs[token]), tuple(zip(best.tolist(), logprobs[best].tolist(), strict=True)))


def _no_choice(largest: float) -> UserError:
    if largest == -math.inf:
        return UserError("banned_tokens", "with logit_bias and the grammar they leave no token here", "ban fewer")
    return UserError("logits", f"the largest is {largest}", "the model overflows here, try another variant")
