"""The OpenAPI document, generated from the pydantic models of requests and responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pydantic
from pydantic.json_schema import models_json_schema

from kiara_runtime import __version__
from kiara_runtime.server import values
from kiara_runtime.server.anthropic import requests as anthropic_requests
from kiara_runtime.server.anthropic import responses as anthropic_responses
from kiara_runtime.server.anthropic.requests import CountRequest, MessagesRequest
from kiara_runtime.server.anthropic.responses import MessagesAnswer, MessagesError, TokenCount
from kiara_runtime.server.models import SHOWN
from kiara_runtime.server.ollama import embeddings as ollama_embeddings
from kiara_runtime.server.ollama import objects as ollama_objects
from kiara_runtime.server.ollama import requests as ollama_requests
from kiara_runtime.server.ollama.embeddings import Embedded, EmbedRequest, OneEmbedded, OneRequest
from kiara_runtime.server.ollama.objects import Line, OllamaError, Shown, Tags, Version
from kiara_runtime.server.ollama.requests import GenerateRequest, OllamaChatRequest, ShowRequest
from kiara_runtime.server.openai import embeddings, messages
from kiara_runtime.server.openai import requests as api
from kiara_runtime.server.openai import responses as answers
from kiara_runtime.server.openai.embeddings import EmbeddingList, EmbeddingRequest
from kiara_runtime.server.responses import objects
from kiara_runtime.server.responses import requests as responses_requests
from kiara_runtime.server.responses.objects import Deleted, ResponseObject
from kiara_runtime.server.responses.requests import ResponsesRequest
from kiara_runtime.server.values import TOKEN_NAME, Request

REFERENCE = "#/components/schemas/{model}"
_CHATS = ("/v1/chat", "/v1/messages", "/v1/responses", "/api/chat")  # paths that need a chat template
JSON, EVENTS, LINES = "application/json", "text/event-stream", "application/x-ndjson"
EVENT = {
    "type": "object",
    "description": "An event of a stream: its data is a chunk in JSON, or [DONE] at the end.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}


def document(cards: Sequence[answers.Model], keyed: bool, root_path: str = "") -> dict[str, Any]:
    """The document for models: their ids, the bounds of the smallest vocabulary, chat only if one has a template.

    keyed: whether clients must send a key. root_path: prefix of all paths.
    """
    paths: dict[str, Any] = {
        "/v1/completions": {"post": _post("Continue prompts.", api.CompletionRequest, answers.Completion, events=True)},
        "/v1/chat/completions": {
            "post": _post("Answer a conversation.", api.ChatRequest, answers.ChatCompletion, events=True)
        },
        "/v1/responses": {
            "post": _post("Answer, and keep the conversation.", ResponsesRequest, ResponseObject, events=True)
        },
        "/v1/responses/{id}": {
            "get": _stored("A stored response.", ResponseObject),
            "delete": _stored("Forget it.", Deleted),
        },
        "/v1/messages": {
            "post": _post("Answer a conversation, in Anthropic's format.", MessagesRequest, MessagesAnswer, events=True)
        },
        "/v1/messages/count_tokens": {"post": _post("Count a prompt's tokens.", CountRequest, TokenCount)},
        "/api/chat": {"post": _ollama("Answer a conversation, in Ollama's format.", OllamaChatRequest, Line, LINES)},
        "/api/generate": {"post": _ollama("Answer a prompt, in Ollama's format.", GenerateRequest, Line, LINES)},
        "/api/show": {"post": _ollama("What the model is.", ShowRequest, Shown)},
        "/api/tags": {"get": _get("The models, in Ollama's format.", Tags, OllamaError)},
        "/api/version": {"get": _get("The version of Kiara.", Version)},
        "/v1/embeddings": {"post": _post("Texts as vectors.", EmbeddingRequest, EmbeddingList)},
        "/api/embed": {"post": _ollama("Texts as vectors, in Ollama's format.", EmbedRequest, Embedded)},
        "/api/embeddings": {"post": _ollama("A text as a vector, in Ollama's older format.", OneRequest, OneEmbedded)},
        "/api/ps": {"get": _get("The loaded models, in Ollama's format.", Tags, OllamaError)},
        "/v1/models": {"get": _get("The models.", answers.ModelList)},
        "/v1/models/{model}": {"get": {**_get("A model by its id.", answers.Model), "parameters": [_model_id(cards)]}},
        "/tokenize": {"post": _post("A text's token ids.", api.TokenizeRequest, answers.Tokenized)},
        "/detokenize": {"post": _post("The text of token ids.", api.DetokenizeRequest, answers.Detokenized)},
        "/tokenizer_info": {"get": _get("What the tokenizer is.", answers.TokenizerInfo)},
        "/health": {"get": _get("Whether the server is alive; needs no key.", answers.Status)},
        "/ready": {"get": _get("Whether the model is loaded.", answers.Status, answers.Status)},
        "/metrics": {"get": {"summary": "For Prometheus.", "responses": _responses("text/plain", {"type": "string"})}},
        "/openapi.json": {"get": {"summary": "This.", "responses": _responses(JSON, {"type": "object"})}},
        "/bundle/{name}": {"get": _file()},
    }
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        paths[path]["post"]["responses"]["default"]["content"][JSON]["schema"] = _ref(MessagesError)
    if keyed:
        paths["/health"]["get"]["security"] = []
    for path in () if any(card.chat for card in cards) else [path for path in paths if path.startswith(_CHATS)]:
        del paths[path]
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Kiara: {', '.join(card.id for card in cards)}", "version": __version__},
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "paths": paths,
        "security": [{"key": []}] if keyed else [],
        "components": {
            "schemas": _schemas(cards),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas(cards: Sequence[answers.Model]) -> dict[str, Any]:
    homes = (
        values,
        messages,
        api,
        answers,
        anthropic_requests,
        anthropic_responses,
        responses_requests,
        objects,
        ollama_requests,
        ollama_objects,
        ollama_embeddings,
        embeddings,
    )
    names = {home.__name__ for home in homes}
    ours = [m for home in homes for m in vars(home).values() if isinstance(m, type) and m.__module__ in names]
    models = [m for m in dict.fromkeys(ours) if issubclass(m, pydantic.BaseModel)]
    kinds: list[Any] = [(m, "validation" if issubclass(m, Request) else "serialization") for m in models]
    _, made = models_json_schema(kinds, ref_template=REFERENCE)
    schemas: dict[str, Any] = made["$defs"]
    for schema in schemas.values():
        _narrow(schema, cards)
    return schemas


def _narrow(schema: Any, cards: Sequence[answers.Model]) -> None:
    """Restrict request fields to these models' ids and vocabulary."""
    parts: list[Any] = []
    largest = min(card.vocab_size for card in cards) - 1
    if isinstance(schema, list):
        parts = cast("list[Any]", schema)
    elif isinstance(schema, dict):
        given = cast("dict[str, Any]", schema)
        if given.pop("x-token", False):
            given["maximum"] = largest
        if TOKEN_NAME in given.get("patternProperties", {}):
            bounded = given["patternProperties"]
            bounded[_numbers(largest)] = bounded.pop(TOKEN_NAME)
        asked = given.get("properties", {}).get("model", {})
        if "anyOf" in asked:
            asked["anyOf"] = [_ids(cards), {"type": "null"}]
        parts = list(given.values())
    for part in parts:
        _narrow(part, cards)


def _numbers(largest: int) -> str:
    """A regular expression for the decimal numbers from 0 to `largest`."""
    digits = str(largest)
    fewer = [f"[1-9][0-9]{{{rest}}}" for rest in range(len(digits) - 1)]
    less = [
        f"{digits[:place]}[{least}-{int(digit) - 1}][0-9]{{{len(digits) - place - 1}}}"
        for place, digit in enumerate(digits)
        if int(digit) > (least := 0 if place else 1)
    ]
    return f"^({'|'.join(['0', *fewer, *less, digits])})$"


def _ids(cards: Sequence[answers.Model]) -> dict[str, Any]:
    return {"enum": [card.id for card in cards]}


def _model_id(cards: Sequence[answers.Model]) -> dict[str, Any]:
    return {"name": "model", "in": "path", "required": True, "schema": _ids(cards)}


def _get(
    summary: str, kind: type[pydantic.BaseModel], unavailable: type[pydantic.BaseModel] = answers.Error
) -> dict[str, Any]:
    responses = _responses(JSON, _ref(kind))
    responses["503"] = {"description": "Not now.", "content": {JSON: {"schema": _ref(unavailable)}}}
    return {"summary": summary, "responses": responses}


def _ollama(
    summary: str, asked: type[pydantic.BaseModel], kind: type[pydantic.BaseModel], streamed: str | None = None
) -> dict[str, Any]:
    made = _post(summary, asked, kind)
    made["responses"]["default"]["content"][JSON]["schema"] = _ref(OllamaError)
    if streamed:
        made["responses"]["200"]["content"][streamed] = {"schema": {"type": "string", "description": "A line each."}}
    return made


def _stored(summary: str, kind: type[pydantic.BaseModel]) -> dict[str, Any]:
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {"summary": summary, "parameters": [id], "responses": _responses(JSON, _ref(kind))}


def _file() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": list(SHOWN)}}
    content: dict[str, Any] = {kind.partition(";")[0]: {} for kind in SHOWN.values()}
    responses: Any = {"200": {"description": "Done.", "content": content}, "default": _responses(JSON, {})["default"]}
    return {"summary": "A file of the bundle that is for people.", "parameters": [name], "responses": responses}


def _post(
    summary: str, asked: type[pydantic.BaseModel], kind: type[pydantic.BaseModel], events: bool = False
) -> dict[str, Any]:
    responses = _responses(JSON, _ref(kind))
    if events:
        responses["200"]["content"][EVENTS] = {"schema": EVENT}
    body = {"required": True, "content": {JSON: {"schema": _ref(asked)}}}
    return {"summary": summary, "requestBody": body, "responses": responses}


def _responses(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    refused = {"description": "Refused, or failed.", "content": {JSON: {"schema": _ref(answers.Error)}}}
    return {"200": {"description": "Done.", "content": {kind: {"schema": schema}}}, "default": refused}


def _ref(kind: type[pydantic.BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=kind.__name__)}
