"""The requests as pydantic models; the names and meanings are those of OpenAI's API reference.

Fields listed here take effect; all others are refused by name, never ignored. For fields of OpenAI that this server
does not support, values that request nothing are accepted, because some clients send every field. Fields that OpenAI
does not have are named as in `kiara_runtime.SamplingParams`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from kiara_runtime.server.openai.messages import ChatMessage, Tool, ToolChoice
from kiara_runtime.server.values import (
    LARGEST,
    MAX_BIASES,
    MAX_MESSAGES,
    MAX_N,
    MAX_TOOLS,
    MAX_TOP,
    TOKEN_NAME,
    WHOLE,
    Bias,
    Count,
    Finite,
    Nothing,
    Penalty,
    Prompt,
    Request,
    Stop,
    TokenId,
)


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
    suffix: str | None = Field(
        None, description="Write what is between the prompt, a text, and this; for models that fill in the middle."
    )


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
