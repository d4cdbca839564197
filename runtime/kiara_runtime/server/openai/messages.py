"""Messages and tools of a chat request as pydantic models, with OpenAI's names."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from kiara_runtime.server.values import (
    MAX_CALLS,
    TOOL_NAME,
    ByForm,
    ByWord,
    Many,
    Nothing,
    Object,
    One,
    Request,
    Text,
    Word,
)


class TextPart(Request):
    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Many]
Content = Annotated[Annotated[str, One] | Parts, ByForm]


class Message(Request):
    name: Text | None = Field(None, max_length=64, description="Passed to the chat template; many ignore it.")
    # Fields that OpenAI's clients add to a response's message, so that it can be sent back unchanged.
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    parsed: Any = Field(None, description="The content as parsed by the client; ignored.")


def _role(value: object) -> object:
    """Refuse what is no role of any message; the type below would list only some of them."""
    if value not in ("system", "developer", "user"):
        raise PydanticCustomError("role", "is not system, developer, user, assistant or tool")
    return value


class TextMessage(Message):
    role: Annotated[Literal["system", "developer", "user"], BeforeValidator(_role)] = Field(
        description="developer is the same as system."
    )
    content: Content
    tool_calls: Annotated[None, Nothing([])] = None


class CalledFunction(Request):
    name: Text
    arguments: str = Field(description="A JSON object as text.")
    parsed_arguments: Any = Field(None, description="The arguments as parsed by the client; ignored.")


class Call(Request):
    id: str
    type: Literal["function"]
    function: CalledFunction
    index: Any = Field(None, description="Of a streamed call; ignored.")


class AssistantMessage(Message):
    model_config = ConfigDict(  # checked when the prompt is made
        json_schema_extra={
            "anyOf": [
                {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
                {"required": ["tool_calls"], "properties": {"tool_calls": {"type": "array", "minItems": 1}}},
            ]
        }
    )
    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[Call], Field(max_length=MAX_CALLS, fail_fast=True)] | None = Field(
        None, description="Calls of this answer; their results follow as messages of the role tool."
    )


class ToolMessage(Message):
    role: Literal["tool"]
    content: Content = Field(description="The result of a call.")
    tool_call_id: str = Field(description="The id of the call.")
    tool_calls: None = None


def _message_form(value: object) -> str:
    role = cast("dict[str, object]", value).get("role") if isinstance(value, dict) else None
    return {"assistant": "[assistant]", "tool": "[tool]"}.get(str(role), "[text]")


ChatMessage = Annotated[
    Annotated[TextMessage, Tag("[text]")]
    | Annotated[AssistantMessage, Tag("[assistant]")]
    | Annotated[ToolMessage, Tag("[tool]")],
    Discriminator(_message_form),
]


class FunctionDefinition(Request):
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="A JSON Schema of an object, which the arguments always follow."
    )
    strict: bool | None = Field(None, description="Accepted; arguments always follow the schema.")


class Tool(Request):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Request):
    name: Text


class NamedTool(Request):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Word] | Annotated[NamedTool, Object],
    ByWord,
]
