"""The pieces of a request as OpenAI's choices, in whole responses and in streams, made by the same functions.

The chunks of a stream, joined, equal the whole response. Tokens that are not valid UTF-8 alone are written as OpenAI
writes them, `bytes:\\xe2\\x80`. Log-probabilities cover every generated token, including those of a stop sequence and,
in completions, the end-of-text token, which is listed by name although it is not part of the text.
"""

from __future__ import annotations

import codecs
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pydantic

from kiara_runtime.engine import FinishReason, Piece
from kiara_runtime.sampling import TokenLogprob
from kiara_runtime.server.guard import ApiError
from kiara_runtime.server.jobs import Work
from kiara_runtime.server.openai import responses as answers
from kiara_runtime.server.voice import Voice
from kiara_runtime.tokens import Tokenizer
from kiara_runtime.tools import CallFormat, CallPart, CallReader, call_id, gathered


class TokenTexts:
    """Texts of single tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._special = {i: name for name, i in tokenizer.special_tokens.items()}

    def bytes(self, token: int) -> bytes:
        """Bytes that a token adds to a text; none for special tokens and padding ids."""
        return self._bytes[token] if token < len(self._bytes) else b""

    def text(self, token: int) -> str:
        if token in self._special:
            return self._special[token]
        try:
            return self.bytes(token).decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes(token))


def apart(piece: Piece) -> list[Piece]:
    """The chunks of a piece: text that was held back comes before the finish reason."""
    if not (piece.text and piece.finish_reason):
        return [piece]
    return [Piece(piece.text, []), replace(piece, text="")]


class OpenAIVoice(Voice):
    """What both formats share. head: fields of all their responses. usage: send it in a last chunk."""

    end = b"data: [DONE]\n\n"

    def __init__(self, head: dict[str, Any], work: Work, usage: bool) -> None:
        super().__init__(work)
        self._head, self._told_usage = head, usage

    def event(self, chunk: pydantic.BaseModel) -> bytes:
        """If usage was requested, OpenAI's chunks have it as null in all but the last."""
        told = chunk.model_dump_json(exclude=None if self._told_usage else {"usage"})
        return b"data: %s\n\n" % told.encode()

    def failure(self, refusal: ApiError) -> bytes:
        return b"data: %s\n\n" % refusal.body.model_dump_json().encode()

    def closing(self) -> Iterable[answers.Answer]:
        """The last chunk, which has only the usage."""
        if self._told_usage:
            yield self._last()

    @abstractmethod
    def _last(self) -> answers.Answer: ...

    def usage(self) -> answers.Usage:
        prompt, completion = self._work.prompt_tokens, self._work.completion_tokens
        return answers.Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=answers.PromptDetails(cached_tokens=self._work.cached_tokens),
        )


class CompletionVoice(OpenAIVoice):
    def __init__(
        self,
        head: dict[str, Any],
        work: Work,
        usage: bool,
        texts: TokenTexts,
        echoed: Sequence[str] | None,
        n: int,
        logprobs: bool,
    ) -> None:
        """echoed: the texts of the prompts, if responses begin with them."""
        super().__init__(head, work, usage)
        self._texts, self._echoed, self._n, self._logprobs = texts, echoed, n, logprobs
        self._places: dict[int, _Places] = {}

    def chunks(self, index: int, piece: Piece) -> Iterable[answers.Answer]:
        choice = self._choice(index, [piece])
        if choice.text or choice.finish_reason or (choice.logprobs and choice.logprobs.tokens):
            yield answers.Completion(**self._head, choices=[choice])

    def whole(self, choices: Sequence[list[Piece]]) -> answers.Answer:
        made = [self._choice(index, pieces) for index, pieces in enumerate(choices)]
        return answers.Completion(**self._head, choices=made, usage=self.usage())

    def _last(self) -> answers.Answer:
        return answers.Completion(**self._head, choices=[], usage=self.usage())

    def _choice(self, index: int, pieces: list[Piece]) -> answers.CompletionChoice:
        text, logprobs = "".join(piece.text for piece in pieces), self._empty()
        if index not in self._places:
            self._places[index] = _Places(self._texts, self._work.streams[index].sequence.healed)
            if self._echoed is not None:
                text = self._echoed[index // self._n] + text
                if logprobs is not None:
                    self._echo_logprobs(index, logprobs)
        if logprobs is not None:
            for one in (one for piece in pieces for one in piece.logprobs):
                self._append(index, logprobs, one)
        return answers.CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=_reason(pieces))

    def _empty(self) -> answers.Logprobs | None:
        if not self._logprobs:
            return None
        return answers.Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])

    def _echo_logprobs(self, index: int, into: answers.Logprobs) -> None:
        sequence = self._work.streams[index].sequence
        first = sequence.tokens[0]
        into.tokens.append(self._texts.text(first))
        into.text_offset.append(self._places[index].place(first))
        into.token_logprobs.append(None)  # nothing precedes it
        into.top_logprobs.append(None)
        for one in sequence.prompt_logprobs:
            self._append(index, into, one)

    def _append(self, index: int, into: answers.Logprobs, one: TokenLogprob) -> None:
        into.tokens.append(self._texts.text(one.token))
        into.text_offset.append(self._places[index].place(one.token))
        into.token_logprobs.append(one.logprob)
        rivals = {self._texts.text(token): logprob for token, logprob in one.top}
        into.top_logprobs.append({**rivals, self._texts.text(one.token): one.logprob})


class ChatVoice(OpenAIVoice):
    def __init__(
        self,
        head: dict[str, Any],
        work: Work,
        usage: bool,
        texts: TokenTexts,
        choices: int,
        logprobs: bool,
        calls: CallFormat | None,
    ) -> None:
        """calls: the format of calls in the answers, if they may have some."""
        super().__init__(head, work, usage)
        self._texts, self._logprobs = texts, logprobs
        self._readers = [CallReader(calls) for _ in range(choices)]

    def opening(self) -> Iterable[answers.Answer]:
        for index in range(len(self._readers)):
            yield self._chunk(index, answers.ChatDelta(role="assistant", content=""), self._told([]), None)

    def chunks(self, index: int, piece: Piece) -> Iterable[answers.Answer]:
        deltas, told = list(map(_delta, self._readers[index].feed(piece))), self._told([piece])
        reason = self._reason(index, [piece])
        for delta in deltas:
            yield self._chunk(index, delta, told, None)
            told = self._told([])  # once
        if reason:
            yield self._chunk(index, answers.ChatDelta(), told, reason)
        elif told and told.content:
            yield self._chunk(index, answers.ChatDelta(content=""), told, None)

    def whole(self, choices: Sequence[list[Piece]]) -> answers.Answer:
        made = [
            answers.ChatChoice(
                index=index,
                message=self._message(index, pieces),
                logprobs=self._told(pieces),
                finish_reason=self._reason(index, pieces),
            )
            for index, pieces in enumerate(choices)
        ]
        return answers.ChatCompletion(**self._head, choices=made, usage=self.usage())

    def _message(self, index: int, pieces: Sequence[Piece]) -> answers.ChatAnswer:
        text, found = gathered(part for piece in pieces for part in self._readers[index].feed(piece))
        calls = [
            answers.Call(id=call_id(), function=answers.CalledFunction(name=call.name, arguments=call.arguments))
            for call in found
        ]
        return answers.ChatAnswer(content=text or None if calls else text, tool_calls=calls or None)

    def _reason(self, index: int, pieces: Sequence[Piece]) -> answers.ChatFinishReason | None:
        reason, reader = _reason(pieces), self._readers[index]
        return "tool_calls" if reason == "stop" and reader.calls else reason

    def _last(self) -> answers.Answer:
        return answers.ChatChunk(**self._head, choices=[], usage=self.usage())

    def _chunk(
        self,
        index: int,
        delta: answers.ChatDelta,
        told: answers.ChatLogprobs | None,
        reason: answers.ChatFinishReason | None,
    ) -> answers.ChatChunk:
        choice = answers.ChatChunkChoice(index=index, delta=delta, logprobs=told, finish_reason=reason)
        return answers.ChatChunk(**self._head, choices=[choice])

    def _told(self, pieces: list[Piece]) -> answers.ChatLogprobs | None:
        if not self._logprobs:
            return None
        tokens = (one for piece in pieces if piece.tokens for one in piece.logprobs)
        return answers.ChatLogprobs(content=[self._logprob(one) for one in tokens])

    def _logprob(self, one: TokenLogprob) -> answers.ChatLogprob:
        token = self._top(one.token, one.logprob)
        return answers.ChatLogprob(**token.model_dump(), top_logprobs=[self._top(*rival) for rival in one.top])

    def _top(self, token: int, logprob: float) -> answers.TopLogprob:
        return answers.TopLogprob(token=self._texts.text(token), logprob=logprob, bytes=list(self._texts.bytes(token)))


def _delta(part: str | CallPart) -> answers.ChatDelta:
    if isinstance(part, str):
        return answers.ChatDelta(content=part)
    function = answers.FunctionDelta(name=part.name, arguments=part.arguments)
    begins = part.name is not None
    call = answers.CallDelta(
        index=part.index, id=call_id() if begins else None, type="function" if begins else None, function=function
    )
    return answers.ChatDelta(tool_calls=[call])


class _Places:
    """Character offset of each token in the text."""

    def __init__(self, texts: TokenTexts, healed: bytes = b"") -> None:
        """healed: the end of the prompt that the first token repeats."""
        self._texts, self._seen = texts, -len(healed.decode("utf-8", "replace"))
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def place(self, token: int) -> int:
        """Offset of the next token. A token that continues a character has the offset of that character."""
        added, begun = self._texts.bytes(token), self._utf8.getstate()[0]
        place = self._seen + (len(begun.decode("utf-8", "replace")) if _breaks(begun, added) else 0)
        self._seen += len(self._utf8.decode(added))
        return max(0, place)


def _breaks(begun: bytes, added: bytes) -> bool:
    """Whether an incomplete character can no longer become valid UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begun + added[:1])
    except UnicodeDecodeError:
        return bool(begun and added)
    return False


def _reason(pieces: Sequence[Piece]) -> FinishReason | None:
    return pieces[-1].finish_reason if pieces else None
