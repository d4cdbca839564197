"""Anthropic's /v1/messages: the same answers as the Python API, whole and streamed, with tools and prefilled."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from server_api import _client, _ok, _service

from kiara_runtime.model import Model
from kiara_runtime.server.guard import Guard

MESSAGES = "/v1/messages"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
TOOLS = [
    {"name": "set", "input_schema": SCHEMA},
    {"name": "now", "description": "The time", "input_schema": {"type": "object"}},
]
REASONS = {"length": "max_tokens", "stop": "end_turn"}
SAMPLING: dict[str, Any] = {"max_tokens": 60, "temperature": 0}


@pytest.fixture(scope="module")
def chat_bundle(tool_bundle: Path) -> Path:
    """What `model` and `client` are made of here."""
    return tool_bundle


def _events(client: FlaskClient, **body: Any) -> list[dict[str, Any]]:
    response = client.post(MESSAGES, json={**body, "stream": True})
    assert (response.status_code, response.mimetype) == (200, "text/event-stream")
    events: list[dict[str, Any]] = []
    for event in filter(None, re.sub(r"^:.*\n\n", "", response.text, flags=re.MULTILINE).split("\n\n")):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def _streamed(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events make, as Anthropic's clients put it together."""
    message, inputs = dict(events[0]["message"]), dict[int, str]()
    assert message["content"] == [] and events[-1] == {"type": "message_stop"}
    opened: set[int] = set()
    for event in events[1:-1]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"]) and not opened
                opened.add(event["index"])
                message["content"].append(dict(event["content_block"]))
            case "content_block_delta":
                block = message["content"][event["index"]]
                if event["delta"]["type"] == "text_delta":
                    block["text"] += event["delta"]["text"]
                else:
                    inputs[event["index"]] = inputs.get(event["index"], "") + event["delta"]["partial_json"]
            case "content_block_stop":
                opened.remove(event["index"])
            case _:
                message |= {**event["delta"], "usage": event["usage"]}
    for index, text in inputs.items():
        message["content"][index]["input"] = json.loads(text)
    assert not opened
    return message


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs from one request to the next."""
    content = [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
    return {**message, "content": content, "id": None, "usage": message["usage"]["output_tokens"]}


@pytest.mark.parametrize("choice", [None, {"type": "any"}, {"type": "tool", "name": "set"}, {"type": "none"}])
def test_streamed_messages_equal_whole_ones(client: FlaskClient, choice: Any) -> None:
    tools = {"tools": TOOLS, "tool_choice": {**choice, "disable_parallel_tool_use": True}} if choice else {}
    whole = _ok(client, MESSAGES, messages=HELLO, **SAMPLING, **tools)
    assert _plain(_streamed(_events(client, messages=HELLO, **SAMPLING, **tools))) == _plain(whole)
    if choice and choice["type"] != "none":
        [block] = whole["content"]
        assert (whole["stop_reason"], block["type"]) == ("tool_use", "tool_use")
        assert choice["type"] == "any" or (block["name"] == "set" and type(block["input"]["ok"]) is bool)


def test_answers_are_those_of_the_python_api(client: FlaskClient, model: Model) -> None:
    system = {"role": "system", "content": "ab"}
    expected = model.chat([system, *HELLO], max_tokens=9, temperature=0.0)
    blocks = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    turn = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    found = _ok(client, MESSAGES, messages=[turn], system=blocks, max_tokens=9, temperature=0)
    assert (
        found["content"] == [{"type": "text", "text": expected.text}]
        and found["stop_reason"] == REASONS[expected.finish_reason]
    )
    usage = found["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == expected.prompt_tokens
    counted = _ok(client, f"{MESSAGES}/count_tokens", messages=[turn], system=blocks)
    assert counted == {"input_tokens": expected.prompt_tokens}


def test_a_stop_sequence_is_named(client: FlaskClient) -> None:
    text = _ok(client, MESSAGES, messages=HELLO, **SAMPLING)["content"][0]["text"]
    stop = text[len(text) // 2 :][:2]
    found = _ok(client, MESSAGES, messages=HELLO, **SAMPLING, stop_sequences=[stop, "never said"])
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", stop)
    assert found["content"] == [{"type": "text", "text": text[: text.find(stop)]}]


def test_a_result_goes_back(client: FlaskClient, model: Model) -> None:
    asked = {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "set"}}
    message = _ok(client, MESSAGES, messages=HELLO, **SAMPLING, **asked)
    call = message["content"][0]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "7", "is_error": True}
    turns = [*HELLO, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    calls = [{"id": call["id"], "function": {"name": "set", "arguments": call["input"]}}]
    called = {"role": "assistant", "content": "", "tool_calls": calls}
    expected = model.chat([*HELLO, called, {"role": "tool", "content": "error: 7", "tool_call_id": call["id"]}],
                          max_tokens=8, temperature=0.0)  # fmt: skip
    found = _ok(client, MESSAGES, messages=turns, max_tokens=8, temperature=0)
    assert found["content"] == [{"type": "text", "text": expected.text}]


def test_a_last_message_of_the_assistant_is_continued(client: FlaskClient, model: Model) -> None:
    turns = [*HELLO, {"role": "assistant", "content": "def main("}]
    prompt = [*model.chat_prompt(HELLO), *model.tokenizer.encode("def main(", "text")]
    expected = model.generate(prompt, max_tokens=8, temperature=0.0).text
    found = _ok(client, MESSAGES, messages=turns, max_tokens=8, temperature=0)
    assert found["content"][0]["text"] == expected
    options = {"continue_final_message": True, "add_generation_prompt": False, "max_tokens": 8, "temperature": 0}
    same = _ok(client, "/v1/chat/completions", messages=turns, **options)
    assert same["choices"][0]["message"]["content"] == expected


def test_an_empty_block_of_text_is_a_message(client: FlaskClient) -> None:
    blocks = [{"role": "user", "content": [{"type": "text", "text": ""}]}]
    found = _ok(client, f"{MESSAGES}/count_tokens", messages=blocks)
    assert found == _ok(client, f"{MESSAGES}/count_tokens", messages=[{"role": "user", "content": ""}])


def test_an_answer_that_is_begun_can_end_in_a_call(client: FlaskClient) -> None:
    turns = [*HELLO, {"role": "assistant", "content": "I set it."}]
    asked = {"tools": TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    (block,) = _ok(client, MESSAGES, messages=turns, **SAMPLING, **asked)["content"]
    assert block["type"] == "tool_use"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"messages": HELLO}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": 5, "thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.type"),
        ({"messages": [{"role": "system", "content": "x"}], "max_tokens": 5}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 5},
            "messages[0].content[0].type",
        ),
        ({"messages": HELLO, "max_tokens": 5, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"messages": HELLO, "max_tokens": 5, "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"messages": HELLO, "max_tokens": 5, "tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"messages": HELLO, "max_tokens": 5, "odd": 1}, "odd"),
        ({"messages": [{"role": "user", "content": "x " * 500}], "max_tokens": 5}, "messages"),
    ],
)
def test_errors_have_anthropics_form(client: FlaskClient, body: Any, where: str) -> None:
    response = client.post(MESSAGES, json=body)
    error = response.json
    assert (response.status_code, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
    assert error["error"]["message"].startswith(f"{where}: ")


def test_keys_and_models_are_checked(tool_bundle: Path, model: Model) -> None:
    client = _client(_service(tool_bundle, model, guard=Guard(keys=frozenset({"secret-key"}))))
    body = {"messages": HELLO, "max_tokens": 1}
    assert client.post(MESSAGES, json=body).json["error"]["type"] == "authentication_error"
    assert client.post(MESSAGES, json=body, headers={"X-Api-Key": "secret-key"}).status_code == 200
    other = client.post(MESSAGES, json={**body, "model": "other"}, headers={"X-Api-Key": "secret-key"})
    assert (other.status_code, other.json["error"]["type"]) == (404, "not_found_error")
