"""Ollama's API: whole answers and lines agree with the Python API, tools, formats, what desktop programs ask first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from server_api import _ok
from serving import TOOL_TEMPLATE

from kiara_runtime.model import Model

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
SCHEMA: dict[str, Any] = {
    "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False,
}  # fmt: skip
OPTIONS: dict[str, Any] = {"num_predict": 9, "temperature": 0, "num_ctx": 2048, "num_thread": 2}
GREEDY: dict[str, Any] = {"max_tokens": 9, "temperature": 0.0, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def chat_bundle(tool_bundle: Path) -> Path:
    """What `model` and `client` are made of here."""
    return tool_bundle


def _lines(client: FlaskClient, path: str, **body: Any) -> list[dict[str, Any]]:
    response = client.post(path, json=body)
    assert (response.status_code, response.mimetype) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines


def test_chat_and_generate_are_those_of_the_python_api(client: FlaskClient, model: Model) -> None:
    expected = model.chat(HELLO, **GREEDY)
    asked = {"model": "small:latest", "options": OPTIONS}
    chat = _ok(client, "/api/chat", **asked, messages=HELLO, stream=False)
    assert chat["message"] == {"role": "assistant", "content": expected.text} and chat["done"] is True
    assert (chat["done_reason"], chat["prompt_eval_count"], chat["eval_count"]) == ("length", expected.prompt_tokens, 9)
    assert chat["model"] == "small:latest" and chat["eval_duration"] > 0
    lines = _lines(client, "/api/chat", **asked, messages=HELLO)
    assert "".join(line["message"]["content"] for line in lines) == expected.text
    lines = _lines(client, "/api/generate", **asked, prompt="x")
    assert "".join(line["response"] for line in lines) == expected.text
    raw = _ok(client, "/api/generate", **asked, prompt="def main", raw=True, stream=False)
    assert raw["response"] == model.generate("def main", **GREEDY).text


def test_tools_and_their_results(client: FlaskClient, model: Model) -> None:
    """A model of this size calls a tool only if it must, which Ollama's API cannot ask for; so its chance is taken."""
    tools = [{"type": "function", "function": {"name": "set", "parameters": SCHEMA}}]
    begun = {"model": "small", "messages": HELLO, "tools": tools}
    for seed in range(3):
        options = {"num_predict": 60, "seed": seed}
        whole = _ok(client, "/api/chat", **begun, options=options, stream=False)["message"]
        lines = _lines(client, "/api/chat", **begun, options=options)
        assert "".join(line["message"]["content"] for line in lines) == whole["content"]
        calls = [call for line in lines for call in line["message"].get("tool_calls", ())]
        assert calls == whole.get("tool_calls", [])
    call = {"function": {"name": "set", "arguments": {"ok": True}}}
    results = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "1", "tool_name": "set"}]
    found = _ok(client, "/api/chat", model="small", messages=[*HELLO, *results], options=OPTIONS, stream=False)
    calls = [{"id": "a", "function": {"name": "set", "arguments": {"ok": True}}}]
    messages = [*HELLO, {"role": "assistant", "content": "", "tool_calls": calls},
                {"role": "tool", "content": "1", "tool_call_id": "a"}]  # fmt: skip
    assert found["message"]["content"] == model.chat(messages, **GREEDY).text


def test_text_follows_a_format(client: FlaskClient) -> None:
    for path, asked in (("/api/chat", {"messages": HELLO}), ("/api/generate", {"prompt": "x"})):
        options = {"num_predict": 40, "seed": 1}
        found = _ok(client, path, model="small", **asked, format=SCHEMA, options=options, stream=False)
        text = found["message"]["content"] if "message" in found else found["response"]
        assert type(json.loads(text)["ok"]) is bool


def test_what_programs_ask_first(client: FlaskClient) -> None:
    [tag] = client.get("/api/tags").json["models"]
    assert tag["name"] == "small:latest" and len(tag["digest"]) == 64 and tag["size"] > 10_000
    shown = _ok(client, "/api/show", model="small")
    assert shown["capabilities"] == ["completion", "tools"] and shown["template"] == TOOL_TEMPLATE
    assert shown["model_info"]["kiara.context_length"] == 96
    assert client.get("/api/version").json["version"]
    for path, asked in (("/api/chat", {"messages": []}), ("/api/generate", {})):
        assert _ok(client, path, model="small", stream=False, **asked)["done_reason"] == "load"


@pytest.mark.parametrize(
    ("path", "body", "status", "where"),
    [
        ("/api/chat", {"model": "other", "messages": HELLO}, 404, "model"),
        ("/api/chat", {"messages": HELLO}, 400, "model"),
        ("/api/chat", {"model": "small", "messages": HELLO, "think": True}, 400, "think"),
        ("/api/chat", {"model": "small", "messages": HELLO, "options": {"odd": 1}}, 400, "options.odd"),
        ("/api/chat", {"model": "small", "messages": HELLO, "format": {"not": {}}}, 400, "format.not"),
        ("/api/generate", {"model": "small", "prompt": "x " * 500}, 400, "messages"),
        ("/api/generate", {"model": "small", "prompt": "x", "suffix": "y"}, 400, "suffix"),
        ("/api/embed", {"model": "small", "input": "x"}, 400, "embeddings"),
    ],
)
def test_errors_have_ollamas_form(client: FlaskClient, path: str, body: Any, status: int, where: str) -> None:
    response = client.post(path, json=body)
    assert response.status_code == status and list(response.json) == ["error"]
    assert response.json["error"].startswith(where)
