"""Responses of Ollama's API as pydantic models, with its names. Durations are nanoseconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kiara_runtime.server.openai.responses import Response, missing


class AnsweredFunction(Response):
    name: str
    arguments: dict[str, Any]


class AnsweredCall(Response):
    function: AnsweredFunction


class OllamaAnswer(Response):
    role: Literal["assistant"] = "assistant"
    content: str
    tool_calls: Annotated[list[AnsweredCall] | None, Field(exclude_if=missing)] = None


class Line(Response):
    """A line of a stream, or the whole answer. The last one has the reason, counts and durations."""

    model: str
    created_at: str
    message: Annotated[OllamaAnswer | None, Field(exclude_if=missing)] = None
    response: Annotated[str | None, Field(exclude_if=missing)] = None
    done: bool
    done_reason: Annotated[Literal["stop", "length", "load"] | None, Field(exclude_if=missing)] = None
    total_duration: Annotated[int | None, Field(exclude_if=missing)] = None
    load_duration: Annotated[int | None, Field(exclude_if=missing)] = None
    prompt_eval_count: Annotated[int | None, Field(exclude_if=missing)] = None
    prompt_eval_duration: Annotated[int | None, Field(exclude_if=missing)] = None
    eval_count: Annotated[int | None, Field(exclude_if=missing)] = None
    eval_duration: Annotated[int | None, Field(exclude_if=missing)] = None


class Details(Response):
    format: Literal["onnx"] = "onnx"
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    parent_model: str = ""


class Tag(Response):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(Response):
    models: list[Tag]


class Shown(Response):
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]


class Version(Response):
    version: str


class OllamaError(Response):
    error: str
