"""One sequence: its output so far, the tokens to compute next, and when it ends.

Independent of slots and sessions: any engine that computes `pending` and passes the logits to `take` can run it. So
the PyTorch reference shares sampling, stopping and the assembly of text.

Shape letters: N positions of a pass, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine.drafter import Drafter
from kiara_runtime.engine.pooling import Pool
from kiara_runtime.sampling import Sampler, SamplingParams, TokenLogprob, token_logprob
from kiara_runtime.tokens import TextStream

if TYPE_CHECKING:
    from kiara_runtime.sampling import Constraint

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """A token of a streamed continuation and the text that has become certain with it, often none.

    The last piece has no token; it has the text held back until then and the finish reason.
    The texts join to `Generation.text`, the tokens to `Generation.tokens`. logprobs: of the token, if requested;
    in the last piece those of the end-of-text token, if one was chosen.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])


@dataclass(frozen=True)
class ModelFacts:
    """What all sequences of a model have in common."""

    token_bytes: List[bytes]
    eos_token_ids: frozenset[int]
    context_length: int


class Sequence:
    """A prompt and its continuation so far.

    tokens: prompt and output, including those not computed yet; at least one. computed: how many of them the cache
    holds. pieces: those not fetched yet.
    """

    def __init__(
        self,
        prompt: List[int],
        params: SamplingParams,
        facts: ModelFacts,
        choice: int = 0,
        constraint: Constraint | None = None,
        scored_from: int | None = None,
        healing: NDArray[np.bool_] | None = None,
        pool: Pool | None = None,
    ) -> None:
        """choice: index among several continuations of a prompt. scored_from: index of the first prompt token to score.
        healing: (V,), the last token and those that start with its text; None if the prompt cannot end inside one.
        pool: collects the hidden states of the prompt, which is all that is computed."""
        self.tokens = list(prompt)
        self.prompt_tokens = len(prompt)
        self.computed = self.reused = 0
        self.pieces: deque[Piece] = deque()
        self.prompt_logprobs: list[TokenLogprob] = []
        self.drafter = Drafter() if params.speculate and constraint is None else None
        self.finished = self.cancelled = False
        self.error: BaseException | None = None
        self.pool = pool
        self.times = [time.perf_counter()]  # of submission, of the first token, of the end
        self.admitted: float | None = None  # when it got a slot
        self._params, self._facts, self._constraint = params, facts, constraint
        self._scored_from = 1 if params.prompt_logprobs and scored_from is None else scored_from
        self._sample = Sampler(params, prompt, choice)
        self._text = TextStream(facts.token_bytes, params.stop)
        self._end = min(len(prompt) + params.max_tokens, facts.context_length)
        self._healing = healing
        self.healed = b""  # the prompt text that the first output token starts with
        self._draft: list[int] = []
        self._ends = {*params.stop_token_ids, *(() if params.ignore_eos else facts.eos_token_ids)}
        if self._end == len(prompt) and self._scored_from is None and pool is None:
            self._finish("length")
        elif constraint is not None and self._scored_from is None:
            self._force()
        self._first = len(self.tokens)

    @property
    def started(self) -> bool:
        """Whether the prompt is computed, including the tokens that a grammar forces right after it."""
        return self.computed >= self._first

    @property
    def heals(self) -> bool:
        """Whether token healing may still replace the last token of the prompt."""
        return self._healing is not None

    @property
    def over(self) -> bool:
        return self.finished or self.cancelled or self.error is not None

    @property
    def queue_seconds(self) -> float:
        """Seconds spent waiting for a slot, so far or in total; 0 if it needed none."""
        if self.admitted is not None:
            return self.admitted - self.times[0]
        return 0.0 if self.finished else time.perf_counter() - self.times[0]

    @property
    def stop_sequence(self) -> str | None:
        """The stop sequence that ended the text."""
        return self._text.stop_sequence

    @property
    def ready(self) -> bool:
        """Whether there are pieces to fetch, or the sequence is over."""
        return bool(self.pieces) or self.over

    @property
    def reusable(self) -> int:
        """Number of leading prompt tokens whose logits are not needed. At least two are left: a pass of one differs."""
        needed = self.prompt_tokens if self._scored_from is None else self._scored_from - 1
        return max(0, min(needed, self.prompt_tokens - 2))

    def pending(self) -> list[int]:
        """Tokens to compute next, followed by guesses."""
        return self.tokens[self.computed :] + self._draft

    def wants_every(self, start: int, end: int) -> bool:
        """Whether a pass over positions `start` to `end` must return logits for each of them, not only the last."""
        if self._healing is not None and end == self.prompt_tokens:
            return True
        scored = self._scored_from is not None and self._scored_from < end and start + 1 < self.prompt_tokens
        return scored or (bool(self._draft) and end > len(self.tokens))

    def take(self, end: int, logits: NDArray[np.float32]) -> None:
        """Process the logits (N, V) of the N positions before `end`, in `tokens` followed by the guesses."""
        drafted, accepted = len(self._draft), 0
        for place, row in enumerate(logits, start=end - len(logits)):
            if place + 1 < len(self.tokens):
                self._score(place + 1, row)
                self.computed = place + 1
                if self._healing is not None and place + 2 == self.prompt_tokens and self._heal(row):
                    break
                continue
            if place + 1 == self._end:
                self._finish("length")
                break
            token = self._next(row)
            self.computed = place + 1  # only now: an interrupt during sampling has this row computed again
            right = bool(self._draft) and self._draft[0] == token
            accepted += right
            self._draft = self._draft[1:] if right else []
            if self.finished or (place + 1 < end and not right):
                break
        if drafted and self.drafter is not None:
            self.drafter.judge(drafted, accepted)
        self._draft = []
        if self.drafter is not None and not self.over and self.started:
            self._draft = self.drafter.guess(self.tokens, self._end - len(self.tokens) - 1)

    def _score(self, place: int, row: NDArray[np.float32]) -> None:
        """Store the log-probability of the prompt's token at `place`."""
        if self._scored_from is not None and self._scored_from <= place < self.prompt_tokens:
            self.prompt_logprobs.append(token_logprob(row, self.tokens[place], self._params.logprobs or 0))

    def _heal(self, row: NDArray[np.float32]) -> bool:
        """Sample the prompt's last token again, among those that start with its text; return whether it changed.

        If it did not, the output is the same as without healing: this draw has a random generator of its own.
        """
        given, allowed, self._healing = self.tokens[-1], self._healing, None
        token = self._sample.heal(row, allowed)
        if token == given:
            return False
        self.tokens.pop()
        self.prompt_tokens -= 1
        self._end = min(self.prompt_tokens + self._params.max_tokens, self._facts.context_length)
        self._first = len(self.tokens)
        self.healed = self._facts.token_bytes[given]
        self._text.skip(len(self.healed))
        logprobs = [] if self._params.logprobs is None else [token_logprob(row, token, self._params.logprobs)]
        self._note_first()
        self._append(token, logprobs)
        return True

    def _note_first(self) -> None:
        if len(self.times) == 1:
            self.times.append(time.perf_counter())

    def _next(self, row: NDArray[np.float32]) -> int:
        """Sample the next token."""
        token = self._sample(row, None if self._constraint is None else self._constraint.allowed())
        logprobs = [] if self._params.logprobs is None else [token_logprob(row, token, self._params.logprobs)]
        self._note_first()
        if token in self._ends or (self._constraint is not None and token in self._facts.eos_token_ids):
            self._finish("stop", logprobs)
            return token
        self._append(token, logprobs)
        if self._constraint is not None and not self.finished:
            self._constraint.accept(token)
            self._force()
        return token

    def _append(self, token: int, logprobs: list[TokenLogprob]) -> None:
        self.tokens.append(token)
        self._sample.record(token)
        self.pieces.append(Piece(self._text.feed(token), [token], logprobs=logprobs))
        if self._text.stopped:
            self._finish("stop")
        elif len(self.tokens) == self._end:
            self._finish("length")

    def _force(self) -> None:
        """Append the tokens that the grammar forces; with logprobs they are sampled one by one instead."""
        assert self._constraint is not None
        forced = self._constraint.forced() if self._params.logprobs is None else []
        for token in forced:
            if self.finished:
                return
            if token in self._ends or token in self._params.banned_tokens:
                return  # sampling handles it
            self._constraint.accept(token)
            self._append(token, [])
        if self._constraint.finished and not self.finished:
            self._finish("stop")

    def _finish(self, reason: FinishReason, logprobs: List[TokenLogprob] = ()) -> None:
        self.times.append(time.perf_counter())
        self.pieces.append(Piece(self._text.flush(), [], reason, list(logprobs)))
        self.finished = True  # last: other threads fetch the pieces once it is set
