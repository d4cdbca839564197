"""Requests of /api/chat and /api/generate as conversations or prompts, and their answers as lines of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pydantic

from kiara_runtime.engine import Piece
from kiara_runtime.server.guard import ApiError
from kiara_runtime.server.jobs import Work
from kiara_runtime.server.ollama import objects as answers
from kiara_runtime.server.ollama import requests as api
from kiara_runtime.server.voice import Voice
from kiara_runtime.tools import CallFormat, CallPart, CallReader, call_id, gathered

_DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}  # Ollama's
_SAME = "temperature top_k top_p min_p typical_p seed stop presence_penalty frequency_penalty".split()


def messages_of(asked: api.OllamaChatRequest) -> list[dict[str, Any]]:
    """The messages in OpenAI's form. Results without an id belong to the calls before them, in order."""
    found: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in asked.messages:
        made: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            made["thinking"] = message.thinking
        if message.tool_calls:
            ids = [call.id or call_id() for call in message.tool_calls]
            functions = [call.function.model_dump(include={"name", "arguments"}) for call in message.tool_calls]
            made["tool_calls"] = [{"id": id, "function": one} for id, one in zip(ids, functions, strict=True)]
            waiting = ids
        if message.role == "tool":
            made["tool_call_id"] = message.tool_call_id or (waiting.pop(0) if waiting else "")
            made |= {"name": message.tool_name} if message.tool_name else {}
        found.append(made)
    return found


def sampling_of(asked: api.OllamaRequest, most: int) -> dict[str, Any]:
    """Fields of SamplingParams. most: tokens, if the request sets no limit."""
    options = asked.options or api.Options.model_validate({})
    given = {name: value for name in _SAME if (value := getattr(options, name)) is not None}
    if options.repeat_penalty is not None:
        given["repetition_penalty"] = options.repeat_penalty
    if asked.format:
        given["json_schema"] = {"type": "object"} if asked.format == "json" else asked.format
    limit = options.num_predict
    return {**_DEFAULTS, "max_tokens": most if limit is None or limit < 0 else limit, **given}


class LineVoice(Voice):
    """Lines of JSON. A call is one line, once it is complete."""

    mimetype, waiting = "application/x-ndjson", b""

    def __init__(self, model: str, work: Work, calls: CallFormat | None, chat: bool, loads: bool) -> None:
        """chat: the answer is a message, not a plain text. loads: nothing was asked, so the model is only loaded."""
        super().__init__(work)
        self._model, self._chat = model, chat
        self._reader = CallReader(calls)
        self._parts = list[CallPart]()
        self._started = time.monotonic_ns()
        self._reason, self._loads = "stop", loads

    def chunks(self, index: int, piece: Piece) -> Iterable[pydantic.BaseModel]:
        for part in self._reader.feed(piece):
            if isinstance(part, str):
                yield self._line(part)
            else:
                self._parts.append(part)
        self._reason = piece.finish_reason or self._reason

    def closing(self) -> Iterable[pydantic.BaseModel]:
        if calls := self._calls():
            yield self._line("", calls)
        yield self._line("", last=True)

    def whole(self, choices: Sequence[list[Piece]]) -> pydantic.BaseModel:
        [pieces] = choices
        lines = [line for piece in pieces for line in self.chunks(0, piece)]
        text = "".join(self._text(line) for line in lines)
        return self._line(text, self._calls() or None, last=True)

    def event(self, chunk: pydantic.BaseModel) -> bytes:
        return chunk.model_dump_json().encode() + b"\n"

    def failure(self, refusal: ApiError) -> bytes:
        return self.event(error_body(refusal))

    def _text(self, line: pydantic.BaseModel) -> str:
        assert isinstance(line, answers.Line)
        return line.message.content if line.message else line.response or ""

    def _calls(self) -> list[answers.AnsweredCall]:
        made = [call for call in gathered(self._parts)[1] if call.complete]
        functions = [answers.AnsweredFunction(name=call.name, arguments=json.loads(call.arguments)) for call in made]
        return [answers.AnsweredCall(function=function) for function in functions]

    def _line(self, text: str, calls: list[answers.AnsweredCall] | None = None, last: bool = False) -> answers.Line:
        held: dict[str, Any] = {"response": text}
        if self._chat:
            held = {"message": answers.OllamaAnswer(content=text, tool_calls=calls)}
        return answers.Line(model=self._model, created_at=now(), done=last, **held, **(self._figures() if last else {}))

    def _figures(self) -> dict[str, Any]:
        times, queued = self._work.streams[0].sequence.times, self._work.streams[0].sequence.queue_seconds
        prompt, rest = (times[min(1, len(times) - 1)] - times[0], times[-1] - times[min(1, len(times) - 1)])
        return {
            "done_reason": "load" if self._loads else self._reason,
            "total_duration": time.monotonic_ns() - self._started,
            "load_duration": 0,
            "prompt_eval_count": self._work.prompt_tokens,
            "prompt_eval_duration": round(1e9 * max(0.0, prompt - queued)),
            "eval_count": self._work.completion_tokens,
            "eval_duration": round(1e9 * rest),
        }


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def error_body(refusal: ApiError) -> answers.OllamaError:
    """An error in Ollama's form."""
    return answers.OllamaError(error=refusal.body.error.message)
