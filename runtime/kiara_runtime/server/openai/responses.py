"""Responses as pydantic models, with OpenAI's names; the OpenAPI document is made from them, too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class Response(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptDetails(Response):
    cached_tokens: int


class Usage(Response):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Logprobs(Response):
    """Four lists of equal length: text, log-probability, top alternatives and character offset of each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Response):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class Answer(Response):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None


class Completion(Answer):
    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class TopLogprob(Response):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Response):
    content: list[ChatLogprob]
    refusal: None = None


def missing(value: object) -> bool:
    return value is None


class CalledFunction(Response):
    name: str
    arguments: str = Field(description="A JSON object as text; cut off if finish_reason is length.")


class Call(Response):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatAnswer(Response):
    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="null if the answer is calls alone.")
    refusal: None = None
    tool_calls: Annotated[list[Call] | None, Field(exclude_if=missing)] = None


class ChatChoice(Response):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatCompletion(Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class FunctionDelta(Response):
    name: Annotated[str | None, Field(exclude_if=missing)] = None
    arguments: str


class CallDelta(Response):
    """A part of a call; id, type and name are in its first part only."""

    index: int
    id: Annotated[str | None, Field(exclude_if=missing)] = None
    type: Annotated[Literal["function"] | None, Field(exclude_if=missing)] = None
    function: FunctionDelta


class ChatDelta(Response):
    role: Annotated[Literal["assistant"] | None, Field(exclude_if=missing)] = None
    content: Annotated[str | None, Field(exclude_if=missing)] = None
    tool_calls: Annotated[list[CallDelta] | None, Field(exclude_if=missing)] = None


class ChatChunkChoice(Response):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatChunk(Answer):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class Model(Response):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["kiara"] = "kiara"
    context_length: int
    vocab_size: int
    parameters: int
    variant: str
    chat: bool = Field(description="Whether it has a chat template.")
    loaded: bool = Field(description="Whether it is in memory; the first request loads it.")


class ModelList(Response):
    object: Literal["list"] = "list"
    data: list[Model]


class Tokenized(Response):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class Detokenized(Response):
    prompt: str


class TokenizerInfo(BaseModel):
    """tokenizer_config.json of the bundle, and what the runtime supports of it."""

    engine: str
    vocab_size: int
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None


class Status(Response):
    status: Literal["ok", "loading", "draining"]


class ErrorDetail(Response):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Response):
    error: ErrorDetail
