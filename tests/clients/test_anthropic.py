"""Anthropic's package for Python with its defaults: an answer, a stream, a round trip with a tool, counts, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from serving import Served, served

from kiara_runtime.loading import load
from kiara_runtime.model import Model

USER: Any = {"role": "user", "content": "x"}
SCHEMA: Any = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
GREEDY = {"temperature": 0}  # newer versions of the package do not know it
ASKED: Any = {
    "model": "small", "max_tokens": 60, "extra_body": GREEDY, "messages": [USER],
    "tools": [{"name": "switch", "description": "A light", "input_schema": SCHEMA}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tool_bundle: Path) -> Iterator[Model]:
    with load(tool_bundle) as model:
        yield model


@pytest.fixture(scope="module")
def server(tool_bundle: Path) -> Iterator[Served]:
    with served(tool_bundle) as server:
        yield server


@pytest.fixture
def client(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_an_answer_and_its_stream(client: anthropic.Anthropic, model: Model) -> None:
    asked: Any = {"model": "small", "max_tokens": 12, "extra_body": GREEDY, "messages": [USER]}
    expected = model.chat([USER], max_tokens=12, temperature=0.0)
    message = client.messages.create(**asked)
    assert [block.text for block in message.content if block.type == "text"] == [expected.text]
    assert message.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[expected.finish_reason]
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == expected.text
        final = stream.get_final_message()
    assert final.content[0].type == "text" and final.content[0].text == expected.text
    assert final.stop_reason == message.stop_reason
    assert final.usage.output_tokens == message.usage.output_tokens == len(expected.tokens)
    count = client.messages.count_tokens(model="small", messages=[USER]).input_tokens
    assert count == expected.prompt_tokens


def test_a_tool_its_result_and_the_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ASKED)
    [call] = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "switch" and set(call.input) == {"on"} and message.stop_reason == "tool_use"
    with client.messages.stream(**ASKED) as stream:
        [streamed] = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert streamed.input == call.input
    result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "done"}]}
    turns: Any = [USER, {"role": "assistant", "content": message.content}, result]
    answer = client.messages.create(model="small", max_tokens=8, messages=turns)
    assert answer.content[0].type == "text"


def test_errors_are_those_of_the_package(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="small", max_tokens=0, messages=[USER])
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        client.messages.create(model="other", max_tokens=5, messages=[USER])
