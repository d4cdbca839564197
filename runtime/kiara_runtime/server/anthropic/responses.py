"""Responses and events of /v1/messages as pydantic models, with Anthropic's names."""

from __future__ import annotations

from typing import Any, Literal

from kiara_runtime.server.openai.responses import Response

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessagesUsage(Response):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class AnswerText(Response):
    type: Literal["text"] = "text"
    text: str


class AnswerToolUse(Response):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


class MessagesAnswer(Response):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerText | AnswerToolUse]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage


class TokenCount(Response):
    input_tokens: int


class Event(Response):
    """An event of a stream; its name is its `type`."""


class MessageStart(Event):
    type: Literal["message_start"] = "message_start"
    message: MessagesAnswer


class BlockStart(Event):
    type: Literal["content_block_start"] = "content_block_start"
    index: int
    content_block: AnswerText | AnswerToolUse


class TextDelta(Response):
    type: Literal["text_delta"] = "text_delta"
    text: str


class InputDelta(Response):
    type: Literal["input_json_delta"] = "input_json_delta"
    partial_json: str


class BlockDelta(Event):
    type: Literal["content_block_delta"] = "content_block_delta"
    index: int
    delta: TextDelta | InputDelta


class BlockStop(Event):
    type: Literal["content_block_stop"] = "content_block_stop"
    index: int


class Stopped(Response):
    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(Event):
    type: Literal["message_delta"] = "message_delta"
    delta: Stopped
    usage: MessagesUsage


class MessageStop(Event):
    type: Literal["message_stop"] = "message_stop"


class MessagesErrorDetail(Response):
    type: str
    message: str


class MessagesError(Event):
    type: Literal["error"] = "error"
    error: MessagesErrorDetail
