"""The requests as pydantic models; the names and meanings are those of OpenAI's API reference.

Fields listed here take effect; all others are refused by name, never ignored. For fields of OpenAI that this server
does not support, values that request nothing are accepted, because some clients send every field. Fields that OpenAI
does not have are named as in `kiara_runtime.SamplingParams`. Types are strict: "1" is not a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

from annotated_types import GroupedMetadata
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    StringConstraints,
    Tag,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

MAX_N, MAX_PROMPTS, MAX_MESSAGES, MAX_BIASES, MAX_STOPS, MAX_TOP = 16, 256, 1024, 1024, 16, 20
MAX_TOOLS, MAX_CALLS = 128, 128
LARGEST = (1 << 31) - 1


def _whole(value: object) -> object:
    """Accept 1.0 as an integer, because JSON has only one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # after the bounds; otherwise pydantic writes them into the schema under wrong names
Finite = Field(allow_inf_nan=False)
TokenId = Annotated[int, Field(ge=0, le=LARGEST, json_schema_extra={"x-token": True}), WHOLE]
TOKEN_NAME = r"^(0|[1-9][0-9]{0,8})$"  # a token id as an object key
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Text = Annotated[str, StringConstraints(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=LARGEST), WHOLE]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


def _form(value: object) -> str:
    """The form of a value, from its first element; otherwise pydantic would report the errors of every form.

    In brackets, because they appear in the paths of errors, from which `guard` removes them.
    """
    if not isinstance(value, list):
        return "[one]"
    first: object = next(iter(cast("list[object]", value)), "")
    return "[many]" if isinstance(first, (str, dict, BaseModel)) else "[lists]" if isinstance(first, list) else "[ids]"


One, Many, Ids, Lists = Tag("[one]"), Tag("[many]"), Tag("[ids]"), Tag("[lists]")
ByForm = Discriminator(_form)
Stops = Annotated[list[Text], Field(max_length=MAX_STOPS, fail_fast=True), Many]
Stop = Annotated[Annotated[Text, One] | Stops, ByForm]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Many]
IdLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Lists]
Prompt = Annotated[Annotated[str, One] | Texts | Annotated[TokenIds, Ids] | IdLists, ByForm]


class Nothing(GroupedMetadata):
    """A field that is not supported: only null, or a value that requests the default behaviour."""

    def __init__(self, *values: object) -> None:
        self._known = [None, *values]

    def __iter__(self) -> Iterator[object]:
        yield PlainValidator(self._check)
        yield WithJsonSchema({"enum": self._known})

    def _check(self, given: object) -> None:
        if not any(given == known and isinstance(given, bool) == isinstance(known, bool) for known in self._known):
            raise PydanticCustomError("unsupported", "is not supported by this server")


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Request):
    include_usage: bool | None = Field(
        None, description="Send the usage in a last chunk; whole responses always include it."
    )
    include_obfuscation: Annotated[None, Nothing(False)] = None


class TextFormat(Request):
    type: Literal["text"]


class JsonObject(Request):
    type: Literal["json_object"]


class NamedSchema(Request):
    name: str = Field(max_length=64, description="For the client's own use.")
    schema_: dict[str, Any] = Field(alias="schema", description="A JSON Schema; llguidance supports a large subset.")
    strict: bool | None = Field(None, description="Accepted; the text always follows the schema.")
    description: str | None = Field(None, description="For the client's own use.")


class JsonSchema(Request):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class Regex(Request):
    """Not OpenAI's: the whole text matches a regular expression."""

    type: Literal["regex"]
    regex: str = Field(min_length=1, json_schema_extra={"format": "regex"})


class Grammar(Request):
    """Not OpenAI's: the text follows a Lark grammar."""

    type: Literal["grammar"]
    grammar: str = Field(min_length=1, json_schema_extra={"format": "lark"})


ResponseFormat = Annotated[TextFormat | JsonObject | JsonSchema | Regex | Grammar, Field(discriminator="type")]


class Generation(Request):
    """Fields of both endpoints."""

    model: str | None = Field(None, description="The id that /v1/models gives; the server has one model.")
    max_tokens: Count | None = Field(
        None, description="Maximum number of tokens to generate; the context may end earlier."
    )
    temperature: Annotated[float, Field(ge=0, le=2), Finite] | None = Field(None, description="0 is greedy; default 1.")
    top_p: Annotated[float, Field(gt=0, le=1), Finite] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N), WHOLE] | None = Field(None, description="Continuations of each prompt.")
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63), WHOLE] | None = Field(
        None, description="The same seed gives the same text."
    )
    stop: Stop | None = Field(None, description="The text ends before the first of these sequences.")
    stream: bool | None = Field(None, description="Stream server-sent events, about one token each, ended by [DONE].")
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, StringConstraints(pattern=TOKEN_NAME)], Bias],
            Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
        ]
        | None
    ) = Field(None, description="Added to the logits of these token ids.")
    response_format: ResponseFormat | None = Field(None, description="The format that the text must follow.")
    user: str | None = Field(None, max_length=256, description="Written into the server's log line.")
    prompt_cache_key: str | None = Field(None, description="No effect: known prompts are found automatically.")
    prompt_cache_retention: str | None = Field(None, description="No effect.")
    safety_identifier: str | None = Field(None, description="No effect.")
    metadata: dict[str, Any] | None = Field(None, description="No effect: responses are not stored.")
    store: Annotated[None, Nothing(False)] = None
    service_tier: Annotated[None, Nothing("auto", "default")] = None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST), WHOLE] | None = Field(None, description="-1 and 0 keep all.")
    min_p: Annotated[float, Field(ge=0, le=1), Finite] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1), Finite] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10), Finite] | None = None
    banned_tokens: Annotated[list[TokenId], Field(max_length=MAX_BIASES, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_BIASES, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    speculate: bool | None = Field(None, description="Speculative decoding: draft tokens from repeats in the text.")


class CompletionRequest(Generation):
    prompt: Prompt = Field(description="Text or token ids, or a list of either. Names of special tokens stay text.")
    echo: bool | None = Field(None, description="Begin the text with the prompt.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP), WHOLE] | None = Field(
        None, description="Log-probabilities of the tokens and of this many top alternatives, also of echoed prompts."
    )
    token_healing: bool | None = Field(
        None, description="Token healing: if the prompt ends inside a token, choose that token again. On by default."
    )
    best_of: Annotated[None, Nothing(1)] = None
    suffix: Annotated[None, Nothing("")] = None


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
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
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


def _choice_form(value: object) -> str:
    return "[word]" if isinstance(value, str) else "[named]"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")] | Annotated[NamedTool, Tag("[named]")],
    Discriminator(_choice_form),
]


class ChatRequest(Generation):
    model_config = ConfigDict(
        json_schema_extra={  # checked by `service`
            "if": {"properties": {"top_logprobs": {"type": "integer"}}, "required": ["top_logprobs"]},
            "then": {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
        }
    )
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Count | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP), WHOLE] | None = Field(
        None, description="Number of top alternatives at each position; needs logprobs."
    )
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        None, description="Functions that the model may call; the client runs them."
    )
    tool_choice: ToolChoice | None = Field(
        None, description="auto (the default), none, required, or the name of the tool that must be called."
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Whether an answer may have several calls, as by default."
    )
    continue_final_message: bool | None = Field(
        None, description="Not OpenAI's: the last message, of the assistant, is the beginning of the answer."
    )
    add_generation_prompt: Annotated[None, Nothing(True, False)] = None  # vLLM's clients send it with the one above
    functions: Annotated[None, Nothing([])] = None
    function_call: Annotated[None, Nothing("none", "auto")] = None
    modalities: Annotated[None, Nothing(["text"])] = None
    audio: Annotated[None, Nothing()] = None
    prediction: Annotated[None, Nothing()] = None
    reasoning_effort: Annotated[None, Nothing("none")] = None
    verbosity: Annotated[None, Nothing()] = None
    web_search_options: Annotated[None, Nothing()] = None


class TokenizeRequest(Request):
    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = Field(
        None, description="Add the tokens that the model expects before a prompt; on by default."
    )
    return_token_strs: bool | None = None


class DetokenizeRequest(Request):
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
    model: str | None = None
