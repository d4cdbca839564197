"""What only the Python package `openai` offers: answers parsed into pydantic models, and asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest
from serving import Served, served, with_chat

from kiara_runtime.loading import load
from kiara_runtime.model import Model

USER: Any = {"role": "user", "content": "class Reader:"}
SAMPLING: dict[str, Any] = {"max_tokens": 30, "temperature": 1.0, "seed": 3}


class Verdict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", json_schema_extra={"x-guidance": {"whitespace_flexible": False}})
    ok: bool
    size: Literal["small", "large"]


@pytest.fixture(scope="module")
def model(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(with_chat(bundle, tmp_path_factory.mktemp("chat") / "talker")) as model:
        yield model


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(with_chat(bundle, tmp_path_factory.mktemp("chat") / "talker")) as server:
        yield server


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def _expected(model: Model) -> str:
    return model.chat([USER], json_schema=Verdict.model_json_schema(), **SAMPLING).text


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the package causes them with what `parse` returns
def test_answers_parse_into_pydantic_models_and_can_be_sent_back(client: openai.OpenAI, model: Model) -> None:
    asked: dict[str, Any] = {"model": "small", "messages": [USER], "response_format": Verdict}
    parsed = client.chat.completions.parse(**asked, **SAMPLING).choices[0].message
    assert parsed.content == _expected(model)
    assert parsed.parsed == Verdict.model_validate_json(_expected(model))
    with client.chat.completions.stream(**asked, **SAMPLING) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion().choices[0].message
    assert streamed.parsed == parsed.parsed and "content.delta" in kinds
    plain = client.chat.completions.create(model="small", messages=[USER], **SAMPLING).choices[0].message
    for message in (parsed, streamed, parsed.model_dump(), plain, plain.model_dump()):
        turns: Any = [USER, message, USER]
        found = client.chat.completions.create(model="small", messages=turns, max_tokens=5, temperature=0)
        said = plain.content if message in (plain, plain.model_dump()) else parsed.content
        history = [USER, {"role": "assistant", "content": said or ""}, USER]
        assert found.choices[0].message.content == model.chat(history, max_tokens=5, temperature=0.0).text


def test_concurrent_async_requests_and_a_cancelled_one(server: Served, model: Model) -> None:
    async def ask() -> list[str]:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def text(seed: int) -> str:
                found = await client.completions.create(model="small", prompt="x", max_tokens=8, seed=seed)
                return found.choices[0].text

            endless = asyncio.create_task(
                client.completions.create(
                    model="small", prompt=["x"] * 16, n=16, max_tokens=90, extra_body={"ignore_eos": True}
                )
            )
            texts = await asyncio.gather(*(text(seed) for seed in range(20)))
            endless.cancel()
            with pytest.raises(asyncio.CancelledError):
                await endless
            return texts

    expected = [model.generate("x", max_tokens=8, temperature=1.0, seed=seed).text for seed in range(20)]
    assert asyncio.run(ask()) == expected
    server.wait_for("kiara_disconnects_total", 1)
    server.wait_for("kiara_requests_running", 0)
