"""Tool calls with OpenAI's packages for Python and npm: a round trip, streamed calls, typed arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from openai_clients import Client, by_node, by_python
from serving import Served, served

USER: Any = {"role": "user", "content": "x"}
SAMPLING: dict[str, Any] = {"model": "small", "seed": 1, "max_tokens": 60}


class Switch(pydantic.BaseModel):
    on: bool


TOOL: Any = openai.pydantic_function_tool(Switch, name="switch")
ASKED: dict[str, Any] = {
    **SAMPLING,
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "switch"}},
}


@pytest.fixture(scope="module")
def server(tool_bundle: Path) -> Iterator[Served]:
    with served(tool_bundle) as server:
        yield server


@pytest.fixture(scope="module", params=["python", "npm"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    if request.param == "python":
        yield by_python
    else:
        with by_node() as call:
            yield call


def test_a_call_its_result_and_the_answer(client: Client, server: Served) -> None:
    whole = client(server.url, "chat.completions.create", messages=[USER], **ASKED)
    message = whole["choices"][0]["message"]
    [call] = message["tool_calls"]
    assert call["function"]["name"] == "switch" and type(json.loads(call["function"]["arguments"])["on"]) is bool
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    result = {"role": "tool", "tool_call_id": call["id"], "content": "done"}
    answer = client(server.url, "chat.completions.create", messages=[USER, message, result], **SAMPLING)
    assert answer["choices"][0]["message"]["content"]
    chunks = client(server.url, "chat.completions.create", messages=[USER], stream=True, **ASKED)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    parts = [part["function"] for delta in deltas for part in delta.get("tool_calls") or ()]
    assert (
        "".join(part["arguments"] for part in parts) == call["function"]["arguments"] and parts[0]["name"] == "switch"
    )


def test_arguments_parse_into_pydantic_models(server: Served) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        parsed = client.chat.completions.parse(messages=[USER], **ASKED).choices[0].message
        assert parsed.tool_calls and isinstance(parsed.tool_calls[0].function.parsed_arguments, Switch)
        with client.chat.completions.stream(messages=[USER], **ASKED) as stream:
            kinds = {event.type for event in stream}
            streamed = stream.get_final_completion().choices[0].message
        assert streamed.tool_calls and "tool_calls.function.arguments.done" in kinds
        assert streamed.tool_calls[0].function.parsed_arguments == parsed.tool_calls[0].function.parsed_arguments
        result: Any = {"role": "tool", "tool_call_id": parsed.tool_calls[0].id, "content": "done"}
        for message in (parsed, streamed, parsed.model_dump()):
            again = client.chat.completions.create(messages=[USER, message, result], **SAMPLING)
            assert again.choices[0].message.content
