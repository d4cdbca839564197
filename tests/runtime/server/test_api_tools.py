"""Tool calls over HTTP: whole and streamed answers agree, arguments follow their schema, results come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from server_api import CHAT, _events, _ok, _refused

from kiara_runtime.model import Model

HELLO = [{"role": "user", "content": "x"}]
PARAMETERS = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "set", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
REQUIRED: dict[str, Any] = {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}


@pytest.fixture(scope="module")
def chat_bundle(tool_bundle: Path) -> Path:
    """What `model` and `client` are made of here."""
    return tool_bundle


def _streamed(events: list[Any]) -> dict[int, dict[str, Any]]:
    """The messages that the chunks of a stream make, by choice, with their finish reasons."""
    made: dict[int, dict[str, Any]] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        message = made.setdefault(choice["index"], {"content": "", "tool_calls": []})
        message["content"] += choice["delta"].get("content") or ""
        for part in choice["delta"].get("tool_calls", ()):
            if "id" in part:
                assert part["type"] == "function" and part["index"] == len(message["tool_calls"])
                message["tool_calls"].append({"name": part["function"]["name"], "arguments": ""})
            message["tool_calls"][part["index"]]["arguments"] += part["function"]["arguments"]
        message["reason"] = choice["finish_reason"]
    return made


def _whole(answer: Any) -> dict[int, dict[str, Any]]:
    return {
        choice["index"]: {
            "content": choice["message"]["content"] or "",
            "tool_calls": [call["function"] for call in choice["message"].get("tool_calls", ())],
            "reason": choice["finish_reason"],
        }
        for choice in answer["choices"]
    }


@pytest.mark.parametrize("choice", ["required", "auto", "none"])
def test_streamed_answers_equal_whole_ones(client: FlaskClient, choice: str) -> None:
    for seed in range(6):
        body = {**REQUIRED, "tool_choice": choice, "seed": seed, "n": 2, "max_tokens": 60}
        whole = _whole(_ok(client, CHAT, **body))
        assert _streamed(_events(client, CHAT, **body)) == whole
        for message in whole.values():
            assert bool(message["tool_calls"]) or choice != "required"
            assert not message["tool_calls"] or choice != "none"
            if message["reason"] == "tool_calls":
                [call] = message["tool_calls"]
                arguments = json.loads(call["arguments"])
                assert call["name"] in ("set", "now") and set(arguments) == (
                    {"n", "ok"} if call["name"] == "set" else set()
                )


def test_an_answer_is_sent_back_with_its_result(client: FlaskClient, model: Model) -> None:
    message = _ok(client, CHAT, **REQUIRED, seed=1)["choices"][0]["message"]
    assert message["content"] is None and message["tool_calls"][0]["type"] == "function"
    result = {
        "role": "tool",
        "tool_call_id": message["tool_calls"][0]["id"],
        "content": [{"type": "text", "text": "7"}],
    }
    body: dict[str, Any] = {"messages": [*HELLO, message, result], "max_tokens": 4, "temperature": 0}
    answer = _ok(client, CHAT, **body)
    function = message["tool_calls"][0]["function"]
    call = {**message["tool_calls"][0], "function": {**function, "arguments": json.loads(function["arguments"])}}
    ids = model.chat_prompt([*HELLO, {**message, "tool_calls": [call]}, {**result, "name": function["name"]}])
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["choices"][0]["message"]["content"] == model.generate(ids, max_tokens=4, temperature=0).text


def test_the_python_api_calls_the_same(client: FlaskClient, model: Model) -> None:
    for seed in range(4):
        found = model.chat(HELLO, TOOLS, "required", False, seed=seed, temperature=1.0, max_tokens=60)
        served = _whole(_ok(client, CHAT, **REQUIRED, seed=seed, max_tokens=60))[0]
        calls = [{"name": call.name, "arguments": call.arguments} for call in found.tool_calls]
        assert served == {"content": found.text, "tool_calls": calls, "reason": found.finish_reason}


def test_a_call_that_is_cut_off_says_so(client: FlaskClient) -> None:
    body = {**REQUIRED, "tool_choice": SET, "seed": 1}
    whole = _ok(client, CHAT, **body)
    cut = _whole(_ok(client, CHAT, **body, max_tokens=whole["usage"]["completion_tokens"] - 12))[0]
    [call], [full] = cut["tool_calls"], _whole(whole)[0]["tool_calls"]
    assert cut["reason"] == "length" and not cut["content"]
    assert full["arguments"].startswith(call["arguments"]) and full != call


SET = {"type": "function", "function": {"name": "set"}}


def test_log_probabilities_cover_the_tokens_of_calls(client: FlaskClient) -> None:
    body = {**REQUIRED, "tool_choice": SET, "logprobs": True, "top_logprobs": 1}
    answer = _ok(client, CHAT, **body, seed=2)
    told = answer["choices"][0]["logprobs"]["content"]
    assert len(told) == answer["usage"]["completion_tokens"]
    events = _events(client, CHAT, **body, seed=2)
    parts = [choice["logprobs"]["content"] for event in events for choice in event["choices"]]
    assert [one for part in parts for one in part] == told


def test_a_response_format_that_tools_cannot_have_is_refused(client: FlaskClient) -> None:
    body = {**REQUIRED, "tool_choice": "auto", "response_format": {"type": "regex", "regex": "a"}}
    assert _refused(client, CHAT, body)["param"] == "response_format"


def test_a_schema_that_cannot_be_held_is_refused_before_a_token(client: FlaskClient) -> None:
    parameters = {"type": "object", "properties": {"a": {"not": {"type": "null"}}}}
    error = _refused(client, CHAT, {"messages": HELLO, "tools": [{"type": "function", "function": {
        "name": "odd", "parameters": parameters}}]})  # fmt: skip
    assert error["param"] == "tools" and "tools.odd.parameters.properties.a.not" in error["message"]
