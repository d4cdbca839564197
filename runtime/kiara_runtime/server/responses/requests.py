"""Requests of /v1/responses as pydantic models; names and meanings are those of OpenAI's API reference.

As in OpenAI's formats, fields that are not listed are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Discriminator, Field, Tag

from kiara_runtime.server.openai.requests import StreamOptions, TextFormat
from kiara_runtime.server.values import (
    LARGEST,
    MAX_MESSAGES,
    MAX_TOOLS,
    TOOL_NAME,
    WHOLE,
    ByForm,
    ByWord,
    Finite,
    Many,
    Nothing,
    Object,
    One,
    Request,
    Text,
    Word,
)

Anything = Field(None, description="As a response has it; ignored.")


class InputText(Request):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Any = Anything
    logprobs: Any = Anything
    parsed: Any = Anything


InputParts = Annotated[list[InputText], Field(fail_fast=True), Many]
InputContent = Annotated[Annotated[str, One] | InputParts, ByForm]


class InputMessage(Request):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: InputContent
    id: str | None = Anything
    status: Any = Anything
    phase: Any = Anything


class InputCall(Request):
    type: Literal["function_call"]
    call_id: str
    name: Text
    arguments: str = Field(description="A JSON object as text.")
    id: str | None = Anything
    status: Any = Anything
    namespace: Any = Anything
    caller: Any = Anything
    parsed_arguments: Any = Anything


class InputResult(Request):
    type: Literal["function_call_output"]
    call_id: str
    output: InputContent
    id: str | None = Anything
    status: Any = Anything
    caller: Any = Anything


def _kind(value: object) -> str:
    """The form of an input item, from its type."""
    given: Any = cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else None
    given = getattr(value, "type", given) if isinstance(value, BaseModel) else given
    return {"function_call": "[call]", "function_call_output": "[result]"}.get(str(given), "[message]")


Item = Annotated[
    Annotated[InputMessage, Tag("[message]")]
    | Annotated[InputCall, Tag("[call]")]
    | Annotated[InputResult, Tag("[result]")],
    Discriminator(_kind),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), Many]


class FunctionTool(Request):
    type: Literal["function"]
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Accepted; arguments always follow the schema.")


class NamedFunction(Request):
    type: Literal["function"]
    name: Text


FunctionChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Word] | Annotated[NamedFunction, Object],
    ByWord,
]


class ObjectFormat(Request):
    type: Literal["json_object"]


class SchemaFormat(Request):
    type: Literal["json_schema"]
    name: str = Field(max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextOptions(Request):
    format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Annotated[None, Nothing("medium")] = None


class Reasoning(Request):
    effort: Annotated[None, Nothing("none")] = None
    summary: Annotated[None, Nothing("auto")] = None
    generate_summary: Annotated[None, Nothing()] = None


class ResponsesRequest(Request):
    model: str | None = Field(None, description="The id that /v1/models gives; the server has one model.")
    input: Annotated[Annotated[str, One] | Items, ByForm]
    instructions: str | None = Field(None, description="A system message of this response alone.")
    previous_response_id: str | None = Field(None, description="Continue the conversation of a stored response.")
    store: bool | None = Field(None, description="Keep the conversation in memory, as by default; the oldest go first.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=LARGEST), WHOLE] | None = None
    temperature: Annotated[float, Field(ge=0, le=2), Finite] | None = Field(None, description="Default 1.")
    top_p: Annotated[float, Field(gt=0, le=1), Finite] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Annotated[None, Nothing("disabled", "auto")] = None
    include: list[str] | None = Field(None, description="No effect: there is nothing more to include.")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Returned with the response.")
    user: str | None = Field(None, max_length=256, description="Written into the server's log line.")
    prompt_cache_key: str | None = Field(None, description="No effect: known prompts are found automatically.")
    prompt_cache_retention: str | None = Field(None, description="No effect.")
    safety_identifier: str | None = Field(None, description="No effect.")
    service_tier: Annotated[None, Nothing("auto", "default")] = None
    background: Annotated[None, Nothing(False)] = None
    conversation: Annotated[None, Nothing()] = None
    max_tool_calls: Annotated[None, Nothing()] = None
    prompt: Annotated[None, Nothing()] = None
    top_logprobs: Annotated[None, Nothing(0)] = None
