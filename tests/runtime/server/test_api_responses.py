"""OpenAI's /v1/responses: whole and streamed, with tools, schemas and stored conversations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from server_api import _ok, _refused

from kiara_runtime.model import Model
from kiara_runtime.server.responses.store import Store

RESPONSES = "/v1/responses"
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "name": "set", "parameters": SCHEMA}, {"type": "function", "name": "now"}]
SET = {"type": "function", "name": "set"}
SAMPLING: dict[str, Any] = {"max_output_tokens": 60, "temperature": 0}


@pytest.fixture(scope="module")
def chat_bundle(tool_bundle: Path) -> Path:
    """What `model` and `client` are made of here."""
    return tool_bundle


def _events(client: FlaskClient, **body: Any) -> list[dict[str, Any]]:
    response = client.post(RESPONSES, json={**body, "stream": True})
    assert (response.status_code, response.mimetype) == (200, "text/event-stream")
    events: list[dict[str, Any]] = []
    for event in filter(None, re.sub(r"^:.*\n\n", "", response.text, flags=re.MULTILINE).split("\n\n")):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}" and events[-1]["sequence_number"] == len(events) - 1
    return events


def _plain(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs from one request to the next."""
    output = [
        {name: value for name, value in item.items() if name not in ("id", "call_id")} for item in response["output"]
    ]
    usage = {**response["usage"], "input_tokens_details": None}
    return {**response, "output": output, "usage": usage, "id": None, "created_at": None}


def _texts(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))


@pytest.mark.parametrize("choice", [None, "required", SET, "none"])
def test_streamed_responses_equal_whole_ones(client: FlaskClient, choice: Any) -> None:
    tools = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False} if choice else {}
    whole = _ok(client, RESPONSES, input="x", **SAMPLING, **tools)
    first, second, *events, last = _events(client, input="x", **SAMPLING, **tools)
    assert (first["type"], second["type"]) == ("response.created", "response.in_progress")
    assert last["type"] == f"response.{whole['status']}" and _plain(last["response"]) == _plain(whole)
    for index, item in enumerate(last["response"]["output"]):
        about = [event for event in events if event["output_index"] == index]
        assert about[0]["type"] == "response.output_item.added" and about[-1]["type"] == "response.output_item.done"
        assert about[-1]["item"] == item
        deltas = "".join(event["delta"] for event in about if "delta" in event)
        assert deltas == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    if choice in ("required", SET):
        [call] = whole["output"]
        assert (call["type"], call["status"], whole["status"]) == ("function_call", "completed", "completed")
        assert json.loads(call["arguments"]) == {} or call["name"] == "set"


def test_answers_are_those_of_the_python_api(client: FlaskClient, model: Model) -> None:
    messages = [{"role": "system", "content": "a\n\nb"}, {"role": "user", "content": "x"}]
    expected = model.chat(messages, max_tokens=9, temperature=0.0)
    items = [
        {"role": "developer", "content": "b"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
    ]
    options = {"instructions": "a", "max_output_tokens": 9, "temperature": 0, "metadata": {"k": "v"}}
    found = _ok(client, RESPONSES, input=items, **options)
    assert _texts(found) == expected.text and found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (found["status"], found["metadata"]) == ("incomplete", {"k": "v"})
    assert found["usage"]["input_tokens"] == expected.prompt_tokens


def test_a_conversation_goes_on_from_a_stored_response(client: FlaskClient, model: Model) -> None:
    asked = {"tools": TOOLS, "tool_choice": SET, **SAMPLING}
    first = _ok(client, RESPONSES, input="x", **asked)
    call = first["output"][0]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}
    second = _ok(
        client, RESPONSES, input=[result], previous_response_id=first["id"], max_output_tokens=6, temperature=0
    )
    calls = [{"id": call["call_id"], "function": {"name": "set", "arguments": call["arguments"]}}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": call["call_id"], "content": "7"},
    ]
    assert _texts(second) == model.chat(messages, max_tokens=6, temperature=0.0).text
    same = _ok(
        client, RESPONSES, input=[{"role": "user", "content": "x"}, call, result], max_output_tokens=6, temperature=0
    )
    assert _texts(same) == _texts(second)
    assert client.get(f"{RESPONSES}/{second['id']}").json == second
    assert client.delete(f"{RESPONSES}/{second['id']}").json["deleted"] is True
    assert client.get(f"{RESPONSES}/{second['id']}").status_code == 404
    error = _refused(client, RESPONSES, {"input": "x", "previous_response_id": second["id"]}, 404)
    assert error["code"] == "previous_response_not_found"


def test_what_is_not_to_be_stored_is_not(client: FlaskClient) -> None:
    found = _ok(client, RESPONSES, input="x", store=False, max_output_tokens=2)
    assert client.get(f"{RESPONSES}/{found['id']}").status_code == 404


def test_text_follows_a_schema(client: FlaskClient) -> None:
    format = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    found = _ok(client, RESPONSES, input="x", text={"format": format}, max_output_tokens=40)
    assert type(json.loads(_texts(found))["ok"]) is bool


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "odd": 1}, "odd"),
        ({"input": "x " * 500}, "input"),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}},
            "text.format.schema.not",
        ),
    ],
)
def test_invalid_requests_are_refused_by_field(client: FlaskClient, body: Any, where: str) -> None:
    error = _refused(client, RESPONSES, body)
    assert error["message"].startswith(where) and error["param"] == re.split(r"[.\[]", where)[0]


def test_the_store_keeps_the_last_responses_within_its_bounds(client: FlaskClient) -> None:
    from kiara_runtime.server.responses.objects import ResponseObject

    response = ResponseObject.model_validate_json(json.dumps(_ok(client, RESPONSES, input="x", max_output_tokens=1)))
    store = Store(most=2, characters=6000)
    for name in "abc":
        store.add(response.model_copy(update={"id": name}), [])
    assert [store.get(name).response.id for name in "bc"] == ["b", "c"]
    with pytest.raises(Exception, match="not stored"):
        store.get("a")
    store.add(response.model_copy(update={"id": "d"}), [{"role": "user", "content": "x" * 4000}])
    with pytest.raises(Exception, match="not stored"):
        store.get("b")
    assert store.get("d")
