"""A continuation: its pieces as they come, and the whole of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kiara_runtime.engine import FinishReason, Piece, Runner, Sequence
from kiara_runtime.sampling import TokenLogprob


@dataclasses.dataclass(frozen=True)
class Generation:
    """A whole continuation.

    tokens: every id generated, those of a stop text included, an end-of-text id not.
    finish_reason: "stop" at an end-of-text id, a stop text or a grammar's end, "length" at max_tokens or the context's
    end. prefill_seconds: until the first token was chosen, time in the queue included; decode_seconds: from there on.
    queue_seconds: of the first, until it was begun.
    logprobs: one for each token, and one more where an end-of-text token ended it; prompt_logprobs: one for each token
    of the prompt but the first, where asked for.
    cached_tokens: of the prompt, known from earlier ones. drafted_tokens, accepted_tokens: guessed ahead, and rightly.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    logprobs: list[TokenLogprob]
    prompt_logprobs: list[TokenLogprob]
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a text is after another. tokens: log-probabilities (nats) of its tokens; logprob: their sum.

    greedy: whether each of them is the likeliest.
    """

    logprob: float
    greedy: bool
    tokens: list[TokenLogprob]


class Stream(Iterator[Piece]):
    """The pieces of a continuation as they come. `close`, or letting go of it, ends the request at the next step."""

    def __init__(self, runner: Runner, sequence: Sequence, seed: int) -> None:
        self._runner, self.sequence, self.seed = runner, sequence, seed

    def __next__(self) -> Piece:
        sequence = self.sequence
        self._runner.wait([sequence])
        if sequence.error is not None:
            raise sequence.error
        if not sequence.pieces:  # all fetched, or cancelled, perhaps by another thread
            raise StopIteration
        return sequence.pieces.popleft()

    @property
    def ready(self) -> bool:
        """Whether the next piece, or the end, is there already."""
        return self.sequence.ready

    def close(self) -> None:
        self.sequence.cancelled = True

    def __del__(self) -> None:
        self.sequence.cancelled = True

    def generation(self) -> Generation:
        """The rest of it, as a whole; of a stream that nobody has read from, all of it."""
        pieces, sequence = list(self), self.sequence
        drafter, times = sequence.drafter, sequence.times
        return Generation(
            text="".join(piece.text for piece in pieces),
            tokens=[token for piece in pieces for token in piece.tokens],
            finish_reason=(pieces[-1].finish_reason if pieces else None) or "stop",
            prompt_tokens=sequence.prompt_tokens,
            seed=self.seed,
            queue_seconds=sequence.queue_seconds,
            prefill_seconds=times[min(1, len(times) - 1)] - times[0],
            decode_seconds=times[-1] - times[min(1, len(times) - 1)],
            logprobs=[logprob for piece in pieces for logprob in piece.logprobs],
            prompt_logprobs=sequence.prompt_logprobs,
            cached_tokens=sequence.reused,
            drafted_tokens=drafter.guessed if drafter else 0,
            accepted_tokens=drafter.accepted if drafter else 0,
        )
