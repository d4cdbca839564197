"""A continuation, streamed piece by piece or as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from kiara_runtime.engine import FinishReason, Piece, Runner, Sequence
from kiara_runtime.sampling import TokenLogprob
from kiara_runtime.tools import CallFormat, CallReader, ToolCall, gathered


@dataclasses.dataclass(frozen=True)
class Generation:
    """A whole continuation.

    tokens: all generated ids, including those of a stop sequence but not an end-of-text token.
    finish_reason: "stop" at an end-of-text token, a stop sequence or the end of a grammar, "length" at max_tokens or at
    the end of the context, "tool_calls" after calls.
    queue_seconds: waiting for a slot. prefill_seconds: until the first token was sampled,
    including queue_seconds. decode_seconds: from then to the end.
    logprobs: one for each token, and one more if an end-of-text token ended it; prompt_logprobs: if requested, one for
    each prompt token but the first. cached_tokens: prompt tokens found in the cache of earlier requests.
    drafted_tokens, accepted_tokens: of speculative decoding. tool_calls: of an answer to a conversation with tools; its
    text is then what comes before them.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason | Literal["tool_calls"]
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
    tool_calls: list[ToolCall] = dataclasses.field(default_factory=list[ToolCall])


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a continuation is. tokens: the log-probability (nats) of each of its tokens; logprob: their sum.

    greedy: whether each token is the most likely one.
    """

    logprob: float
    greedy: bool
    tokens: list[TokenLogprob]


class Stream(Iterator[Piece]):
    """Iterates over the pieces of a continuation as they are generated.

    `close`, or deleting the last reference, ends the request at the next step.
    """

    def __init__(self, runner: Runner, sequence: Sequence, seed: int) -> None:
        self._runner, self.sequence, self.seed = runner, sequence, seed

    def __next__(self) -> Piece:
        sequence = self.sequence
        self._runner.wait([sequence])
        if sequence.error is not None:
            raise sequence.error
        if not sequence.pieces:  # finished, or cancelled (another thread may have closed it)
            raise StopIteration
        return sequence.pieces.popleft()

    @property
    def ready(self) -> bool:
        """Whether `next` would return, or end the iteration, without waiting."""
        return self.sequence.ready

    def close(self) -> None:
        self.sequence.cancelled = True

    def __del__(self) -> None:
        self.sequence.cancelled = True

    def generation(self, format: CallFormat | None = None) -> Generation:
        """Wait for the end and return all pieces that have not been read yet as one `Generation`.

        format: of calls, which are taken out of the text.
        """
        pieces, sequence = list(self), self.sequence
        drafter, times = sequence.drafter, sequence.times
        reader = CallReader(format)
        text, calls = gathered(part for piece in pieces for part in reader.feed(piece))
        reason = (pieces[-1].finish_reason if pieces else None) or "stop"
        return Generation(
            text=text,
            tokens=[token for piece in pieces for token in piece.tokens],
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
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
            tool_calls=calls,
        )
