"""The Responses API with OpenAI's package for Python: typed text, streams, a tool round trip, stored conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from serving import Served, served

SAMPLING: Any = {"model": "small", "temperature": 0, "max_output_tokens": 60}


class Verdict(pydantic.BaseModel):
    ok: bool


TOOL: Any = openai.pydantic_function_tool(Verdict, name="judge")["function"]
CALL: Any = {"tools": [{"type": "function", **TOOL}], "tool_choice": "required", "parallel_tool_calls": False}


@pytest.fixture(scope="module")
def server(tool_bundle: Path) -> Iterator[Served]:
    with served(tool_bundle) as server:
        yield server


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_text_whole_streamed_and_typed(client: openai.OpenAI) -> None:
    whole = client.responses.create(input="x", instructions="y", **SAMPLING)
    events = client.responses.create(input="x", instructions="y", stream=True, **SAMPLING)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    parsed = client.responses.parse(input="x", text_format=Verdict, **SAMPLING)
    with client.responses.stream(input="x", text_format=Verdict, **SAMPLING) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert isinstance(parsed.output_parsed, Verdict) and final.output_parsed == parsed.output_parsed
    assert text == parsed.output_text


def test_a_call_its_result_and_the_answer(client: openai.OpenAI) -> None:
    first = client.responses.create(input="x", **CALL, **SAMPLING)
    [call] = [item for item in first.output if item.type == "function_call"]
    assert call.name == "judge" and set(json.loads(call.arguments)) == {"ok"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    stored = client.responses.create(input=[result], previous_response_id=first.id, **SAMPLING)
    sent: Any = [{"role": "user", "content": "x"}, *first.output, result]
    assert client.responses.create(input=sent, **SAMPLING).output_text == stored.output_text
    assert client.responses.retrieve(stored.id).output_text == stored.output_text
    client.responses.delete(stored.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(input="x", previous_response_id=stored.id, **SAMPLING)
