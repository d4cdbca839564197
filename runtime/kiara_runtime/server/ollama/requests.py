"""Requests of /api/chat, /api/generate and /api/show as pydantic models; names and meanings are Ollama's.

As in OpenAI's formats, fields that are not listed are refused by name. Options that only matter to
Ollama's own engine are accepted, because desktop programs send all of them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kiara_runtime.server.openai.messages import Tool
from kiara_runtime.server.values import (
    LARGEST,
    MAX_MESSAGES,
    MAX_TOOLS,
    WHOLE,
    ByWord,
    Count,
    Finite,
    Nothing,
    Object,
    Penalty,
    Request,
    Stop,
    Text,
    Word,
)

Ignored = Field(None, description="No effect.")


class Options(Request):
    num_predict: Annotated[int, Field(ge=-2, le=LARGEST), WHOLE] | None = Field(
        None, description="Maximum number of tokens; -1 and -2, the default, go to the end of the context."
    )
    temperature: Annotated[float, Field(ge=0, le=100), Finite] | None = Field(None, description="Default 0.8.")
    top_k: Annotated[int, Field(ge=-1, le=LARGEST), WHOLE] | None = Field(None, description="Default 40.")
    top_p: Annotated[float, Field(gt=0, le=1), Finite] | None = Field(None, description="Default 0.9.")
    min_p: Annotated[float, Field(ge=0, le=1), Finite] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1), Finite] | None = None
    seed: Count | None = Field(None, description="The same seed gives the same text.")
    stop: Stop | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=10), Finite] | None = Field(None, description="Default 1.1.")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_ctx: int | None = Field(None, description="No effect: the context is the model's.")
    num_keep: int | None = Ignored
    num_batch: int | None = Ignored
    num_gpu: int | None = Ignored
    main_gpu: int | None = Ignored
    num_thread: int | None = Ignored
    use_mmap: bool | None = Ignored
    use_mlock: bool | None = Ignored
    numa: bool | None = Ignored
    low_vram: bool | None = Ignored
    repeat_last_n: int | None = Field(None, description="No effect: the whole text counts.")
    penalize_newline: bool | None = Ignored
    mirostat: Annotated[None, Nothing(0)] = None
    mirostat_tau: float | None = Ignored
    mirostat_eta: float | None = Ignored
    tfs_z: float | None = Ignored


Format = Annotated[Annotated[Literal["json", ""], Word] | Annotated[dict[str, Any], Object], ByWord]


class OllamaRequest(Request):
    """Fields of both ways to generate."""

    model: str = Field(description="The id that /api/tags gives, with or without `:latest`.")
    stream: bool = Field(True, description="Stream lines of JSON, as by default.")
    format: Format | None = Field(None, description="`json`, or a JSON Schema that the text follows.")
    options: Options | None = None
    keep_alive: Any = Field(None, description="No effect: the model stays loaded.")
    think: Annotated[None, Nothing(False)] = None
    logprobs: Annotated[None, Nothing(False)] = None
    top_logprobs: Annotated[None, Nothing(0)] = None

    @property
    def user(self) -> None:
        """Ollama's requests name no user."""
        return


class OllamaFunction(Request):
    name: Text
    arguments: dict[str, Any]
    index: Any = Ignored


class OllamaCall(Request):
    function: OllamaFunction
    id: str | None = None
    type: str | None = Ignored


class OllamaMessage(Request):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: Annotated[None, Nothing([])] = None
    tool_calls: list[OllamaCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_name: str | None = Field(None, description="Of the function that a message of the role tool is from.")
    tool_call_id: str | None = None
    thinking: str | None = Field(None, description="Passed to the chat template.")


class OllamaChatRequest(OllamaRequest):
    messages: Annotated[list[OllamaMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None


class GenerateRequest(OllamaRequest):
    prompt: str = ""
    system: str | None = Field(None, description="A system message, for the chat template.")
    raw: bool | None = Field(None, description="Continue the prompt itself, without the chat template.")
    suffix: str | None = Field(None, description="Write what is between the prompt and this.")
    images: Annotated[None, Nothing([])] = None
    template: Annotated[None, Nothing("")] = None
    context: Annotated[None, Nothing([])] = None


class ShowRequest(Request):
    model: str
    verbose: bool | None = Ignored
