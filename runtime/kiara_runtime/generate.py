"""The public face: `load` a bundle, `generate` or `stream` from it.

The loop takes any function from token ids to the next logits, so that the PyTorch reference runs through
the very same sampling, stopping and assembling of text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.bundle import Bundle
from kiara_runtime.chat import Message, chat_ids
from kiara_runtime.errors import UserError
from kiara_runtime.sampling import SamplingParams, make_sampler
from kiara_runtime.session import Session
from kiara_runtime.text import TextStream
from kiara_runtime.tokenizer import Tokenizer

Advance = Callable[[Sequence[int]], NDArray[np.float32]]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """A token of a streamed continuation and the text that has become certain with it, often none.

    The last piece has no token; it brings the text still held back and says why the continuation ended.
    The texts join to `Generation.text`, the tokens to `Generation.tokens`.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Generation:
    """A whole continuation.

    tokens: every id generated, those of a stop text included, an end-of-text id not.
    finish_reason: "stop" at an end-of-text id or a stop text, "length" at max_tokens or the context's end.
    prefill_seconds: until the first token was chosen; decode_seconds: from there to the end.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Model:
    """What continuing a prompt takes, whichever engine computes the logits.

    begin: makes a function that appends token ids to a fresh sequence and returns the logits (V,) after the last.
    """

    tokenizer: Tokenizer
    begin: Callable[[], Advance]
    context_length: int
    eos_token_ids: frozenset[int]
    bos_token_id: int

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text`; names of special tokens in it are ordinary text."""
        return self.tokenizer.encode(text)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids that ask for the answer to a conversation, by the model's chat template; a prompt for `generate`.

        messages: dictionaries with `role` and `content`.
        """
        return chat_ids(self.tokenizer, messages)

    def generate(self, prompt: str | Sequence[int], **sampling: Any) -> Generation:
        """Continue `prompt`, text or token ids. sampling: fields of SamplingParams, such as max_tokens=64."""
        params = SamplingParams(**sampling)
        ids = self._prompt_ids(prompt)
        started = time.perf_counter()
        pieces: list[Piece] = []
        times: list[float] = []
        for piece in self._continue(ids, params):
            pieces.append(piece)
            times.append(time.perf_counter())
        return Generation(
            text="".join(piece.text for piece in pieces),
            tokens=[token for piece in pieces for token in piece.tokens],
            finish_reason=pieces[-1].finish_reason or "stop",
            prompt_tokens=len(ids),
            seed=params.seed or 0,
            prefill_seconds=times[0] - started,
            decode_seconds=times[-1] - times[0],
        )

    def stream(self, prompt: str | Sequence[int], **sampling: Any) -> Iterator[Piece]:
        """As `generate`, a piece a token. Bad arguments are refused here, before the first piece is asked for."""
        return self._continue(self._prompt_ids(prompt), SamplingParams(**sampling))

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            ids = [*self.tokenizer.prompt_prefix, *self.tokenize(prompt)]
        else:
            ids = self.tokenizer.check_ids(prompt)
        if len(ids) >= self.context_length:
            raise UserError(
                f"prompt: {len(ids)} tokens leave no room in the context of {self.context_length}; "
                f"shorten it to {self.context_length - 1} at most"
            )
        return ids or [self.bos_token_id]

    def _continue(self, prompt: list[int], params: SamplingParams) -> Iterator[Piece]:
        advance, sample = self.begin(), make_sampler(params)
        text = TextStream(self.tokenizer.token_bytes, params.stop)
        history, fed = list(prompt), 0
        end = min(len(prompt) + params.max_tokens, self.context_length)
        while len(history) < end and not text.stopped:
            logits = advance(history[fed:])
            fed = len(history)
            token = sample(logits, history)
            if token in self.eos_token_ids and not params.ignore_eos:
                yield Piece(text.flush(), [], "stop")
                return
            history.append(token)
            yield Piece(text.feed(token), [token])
        rest = text.flush()
        yield Piece(rest, [], "stop" if text.stopped else "length")


def load(path: str | Path, variant: str | None = None, threads: int | None = None) -> Model:
    """Open a bundle, once every file that this takes has the recorded size and hash.

    variant: such as "int8", by default the first one that the bundle lists. threads: of ONNX Runtime, by
    default one for every core. Raises UserError for a bundle that is missing, damaged or too new.
    """
    bundle = Bundle.open(path)
    bundle.check(bundle.files_of(variant))
    session = Session(bundle.graph_of(variant), bundle.architecture, threads)
    return Model(
        bundle.load_tokenizer(),
        session.decoder,
        bundle.architecture.context_length,
        bundle.eos_token_ids,
        bundle.bos_token_id,
    )
