"""Requests of /v1/messages as pydantic models; names and meanings are those of Anthropic's API reference.

As in OpenAI's formats, fields that are not listed are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Field, Tag

from kiara_runtime.server.values import (
    LARGEST,
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    TOOL_NAME,
    WHOLE,
    ByForm,
    Finite,
    Many,
    Nothing,
    One,
    Request,
    Text,
)


class CacheControl(Request):
    type: Literal["ephemeral"]
    ttl: str | None = None


class MessagesText(Request):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = Field(None, description="No effect: known prompts are found automatically.")
    citations: Annotated[None, Nothing([])] = None


class ToolUseBlock(Request):
    type: Literal["tool_use"]
    id: str
    name: Text
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: Any = Field(None, description="As a response has it; ignored.")


TextBlocks = Annotated[list[MessagesText], Field(fail_fast=True), Many]
BlockText = Annotated[Annotated[str, One] | TextBlocks, ByForm]


class ToolResultBlock(Request):
    type: Literal["tool_result"]
    tool_use_id: str
    content: BlockText | None = None
    is_error: bool | None = Field(None, description="The result is then shown to the model as an error.")
    cache_control: CacheControl | None = None


def _kind(value: object) -> str:
    given = cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"tool_use": "[use]", "tool_result": "[result]"}.get(str(given), "[text]")


Block = Annotated[
    Annotated[MessagesText, Tag("[text]")]
    | Annotated[ToolUseBlock, Tag("[use]")]
    | Annotated[ToolResultBlock, Tag("[result]")],
    Discriminator(_kind),
]
Blocks = Annotated[list[Block], Field(min_length=1, fail_fast=True), Many]


class MessagesTurn(Request):
    role: Literal["user", "assistant"]
    content: Annotated[Annotated[str, One] | Blocks, ByForm]


class MessagesTool(Request):
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="A JSON Schema of an object, which the input always follows.")
    type: Literal["custom"] | None = None
    strict: bool | None = Field(None, description="Accepted; the input always follows the schema.")
    cache_control: CacheControl | None = None


class MessagesChoice(Request):
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = Field(None, description="Of the tool that must be called, with the type tool.")
    disable_parallel_tool_use: bool | None = None


class Thinking(Request):
    type: Literal["disabled"]


class MessagesMetadata(Request):
    user_id: str | None = Field(None, max_length=256, description="Written into the server's log line.")


class CountRequest(Request):
    """The prompt of a message."""

    model: str | None = Field(None, description="The id that /v1/models gives; the server has one model.")
    messages: Annotated[list[MessagesTurn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: BlockText | None = None
    tools: Annotated[list[MessagesTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: MessagesChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest):
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST), WHOLE]
    temperature: Annotated[float, Field(ge=0, le=1), Finite] | None = Field(None, description="Default 1.")
    top_p: Annotated[float, Field(gt=0, le=1), Finite] | None = None
    top_k: Annotated[int, Field(ge=0, le=LARGEST), WHOLE] | None = None
    stop_sequences: Annotated[list[Text], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stream: bool | None = None
    metadata: MessagesMetadata | None = None
    service_tier: Annotated[None, Nothing("auto", "standard_only")] = None

    @property
    def user(self) -> str | None:
        return self.metadata.user_id if self.metadata else None
