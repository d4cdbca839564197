"""Responses and events of /v1/responses as pydantic models, with OpenAI's names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kiara_runtime.server.openai.responses import Response

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Response):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(Response):
    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputText]


class OutputCall(Response):
    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


class InputDetails(Response):
    cached_tokens: int


class OutputDetails(Response):
    reasoning_tokens: int = 0


class ResponsesUsage(Response):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Response):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(Response):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    model: str
    status: ItemStatus
    output: list[OutputMessage | OutputCall]
    error: None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None = None
    store: bool
    temperature: float
    text: dict[str, Any] = Field(description="The format of the text, as requested.")
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    background: Literal[False] = False
    reasoning: dict[str, None]
    usage: ResponsesUsage | None
    user: str | None = None


class ResponseEvent(Response):
    """An event of a stream. Those of an item have its output_index and id, others a whole object."""

    type: str
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int | None = None
    item: OutputMessage | OutputCall | None = None
    item_id: str | None = None
    content_index: int | None = None
    part: OutputText | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    logprobs: list[Any] | None = None


class Deleted(Response):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
