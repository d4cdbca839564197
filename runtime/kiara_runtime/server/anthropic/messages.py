"""A request of /v1/messages as a conversation, and its answer as a message or as the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pydantic

from kiara_runtime.engine import Piece
from kiara_runtime.server.anthropic import requests as api
from kiara_runtime.server.anthropic import responses as answers
from kiara_runtime.server.guard import ApiError
from kiara_runtime.server.jobs import Work
from kiara_runtime.server.voice import Voice
from kiara_runtime.tools import CallFormat, CallPart, CallReader, ToolUse, call_id, gathered, tool_use

_KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


def conversation_of(asked: api.CountRequest) -> list[dict[str, Any]]:
    """The messages of a request in OpenAI's form, which chat templates take."""
    system = [] if asked.system is None else [{"role": "system", "content": _text(asked.system)}]
    return [*system, *(message for turn in asked.messages for message in _messages(turn))]


def _messages(turn: api.MessagesTurn) -> Iterator[dict[str, Any]]:
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    results = [block for block in turn.content if isinstance(block, api.ToolResultBlock)]
    for block in results:
        text = f"{'error: ' if block.is_error else ''}{_text(block.content or '')}"
        yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
    text = "".join(block.text for block in turn.content if isinstance(block, api.MessagesText))
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in turn.content
        if isinstance(block, api.ToolUseBlock)
    ]
    if calls:
        yield {"role": turn.role, "content": text, "tool_calls": calls}
    elif text or not results:
        yield {"role": turn.role, "content": text}


def _text(given: str | Sequence[api.MessagesText]) -> str:
    return given if isinstance(given, str) else "".join(block.text for block in given)


def tools_of(asked: api.CountRequest) -> ToolUse | None:
    """The tools of a request, and which of them may be called. Raises UserError."""
    tools = [
        {"function": {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}}
        for tool in asked.tools or ()
    ]
    choice = asked.tool_choice or api.MessagesChoice(type="auto", name=None, disable_parallel_tool_use=None)
    if choice.type == "tool" and choice.name is None:
        raise ApiError(400, "tool_choice.name: is required but missing; add it", "tool_choice")
    named = {"type": "function", "function": {"name": choice.name}}
    word = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type)
    return tool_use(tools, word or named, not choice.disable_parallel_tool_use)  # pyright: ignore[reportArgumentType]


def sampling_of(asked: api.MessagesRequest) -> dict[str, Any]:
    """Fields of SamplingParams that the request sets."""
    given = {name: value for name in ("top_p", "top_k") if (value := getattr(asked, name)) is not None}
    temperature = 1.0 if asked.temperature is None else asked.temperature
    return {"max_tokens": asked.max_tokens, "temperature": temperature, "stop": asked.stop_sequences or (), **given}


class MessagesVoice(Voice):
    """One answer; its blocks are one of text, where there is any, and one for each call."""

    def __init__(self, id: str, model: str, work: Work, calls: CallFormat | None) -> None:
        super().__init__(work)
        self._id, self._model = f"msg_{id}", model
        self._reader = CallReader(calls)
        self._block = -1  # the one that is open
        self._in_text = False
        self._reason: answers.StopReason | None = None

    def opening(self) -> Iterable[pydantic.BaseModel]:
        yield answers.MessageStart(message=self._message([], None, self._usage()))

    def chunks(self, index: int, piece: Piece) -> Iterable[pydantic.BaseModel]:
        for part in self._reader.feed(piece):
            yield from self._text(part) if isinstance(part, str) else self._call(part)
        self._reason = self._stop_reason(piece)

    def closing(self) -> Iterable[pydantic.BaseModel]:
        if self._block >= 0:
            yield answers.BlockStop(index=self._block)
        stopped = answers.Stopped(stop_reason=self._reason, stop_sequence=self._stop_sequence())
        yield answers.MessageDelta(delta=stopped, usage=self._usage())
        yield answers.MessageStop()

    def whole(self, choices: Sequence[list[Piece]]) -> pydantic.BaseModel:
        [pieces] = choices
        text, found = gathered(part for piece in pieces for part in self._reader.feed(piece))
        calls = [
            answers.AnswerToolUse(id=call_id(), name=call.name, input=json.loads(call.arguments))
            for call in found
            if call.complete  # not one that max_tokens cut off
        ]
        content = [*([answers.AnswerText(text=text)] if text or not calls else []), *calls]
        return self._message(content, self._stop_reason(pieces[-1]), self._usage())

    def event(self, chunk: pydantic.BaseModel) -> bytes:
        kind = str(getattr(chunk, "type", ""))
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), chunk.model_dump_json().encode())

    def failure(self, refusal: ApiError) -> bytes:
        return self.event(error_body(refusal))

    def _text(self, text: str) -> Iterator[answers.Event]:
        if not self._in_text:
            yield from self._next_block(answers.AnswerText(text=""))
            self._in_text = True
        yield answers.BlockDelta(index=self._block, delta=answers.TextDelta(text=text))

    def _call(self, part: CallPart) -> Iterator[answers.Event]:
        if part.name is not None:
            yield from self._next_block(answers.AnswerToolUse(id=call_id(), name=part.name, input={}))
            self._in_text = False
        if part.arguments:
            yield answers.BlockDelta(index=self._block, delta=answers.InputDelta(partial_json=part.arguments))

    def _next_block(self, block: answers.AnswerText | answers.AnswerToolUse) -> Iterator[answers.Event]:
        if self._block >= 0:
            yield answers.BlockStop(index=self._block)
        self._block += 1
        yield answers.BlockStart(index=self._block, content_block=block)

    def _stop_reason(self, piece: Piece) -> answers.StopReason | None:
        if piece.finish_reason == "length":
            return "max_tokens"
        if piece.finish_reason is None:
            return None
        if self._reader.calls:
            return "tool_use"
        return "end_turn" if self._stop_sequence() is None else "stop_sequence"

    def _stop_sequence(self) -> str | None:
        return self._work.streams[0].sequence.stop_sequence

    def _usage(self) -> answers.MessagesUsage:
        cached = self._work.cached_tokens
        return answers.MessagesUsage(
            input_tokens=self._work.prompt_tokens - cached,
            output_tokens=self._work.completion_tokens,
            cache_read_input_tokens=cached,
        )

    def _message(
        self,
        content: list[answers.AnswerText | answers.AnswerToolUse],
        reason: answers.StopReason | None,
        usage: answers.MessagesUsage,
    ) -> answers.MessagesAnswer:
        stop = self._stop_sequence()
        return answers.MessagesAnswer(
            id=self._id, model=self._model, content=content, stop_reason=reason, stop_sequence=stop, usage=usage
        )


def error_body(refusal: ApiError) -> answers.MessagesError:
    """An error in Anthropic's form."""
    kind = _KINDS.get(refusal.status) or ("api_error" if refusal.status >= 500 else "invalid_request_error")
    detail = answers.MessagesErrorDetail(type=kind, message=refusal.body.error.message)
    return answers.MessagesError(error=detail)
