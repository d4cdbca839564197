"""OpenAI's client packages for Python and npm against a server process; the oracle is the model in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai_clients import Client, FailedError, by_node, by_python
from serving import SLOW, Served, served

from kiara_runtime.loading import load
from kiara_runtime.model import Model

PROMPT = "def main(argv):\n    for"
SAMPLING: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 7}
USER = {"role": "user", "content": "class Reader:"}
COMPLETE, CHAT = "completions.create", "chat.completions.create"
# About a hundred seconds of work.
LONG: dict[str, Any] = {"prompt": ["x"] * 16, "n": 16, "max_tokens": 90}
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module", params=["python", "npm"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    if request.param == "python":
        yield by_python
    else:
        with by_node() as call:
            yield call


@pytest.fixture(scope="module")
def model(chat_bundle: Path) -> Iterator[Model]:
    with load(chat_bundle) as model:
        yield model


@pytest.fixture(scope="module")
def server(chat_bundle: Path) -> Iterator[Served]:
    with served(chat_bundle) as server:
        yield server


def _failure(client: Client, server: Served, what: str, *positional: str, **named: Any) -> FailedError:
    with pytest.raises(FailedError) as caught:
        client(server.url, what, *positional, **named)
    return caught.value


def test_models_are_listed_and_retrieved(client: Client, server: Served) -> None:
    [card] = client(server.url, "models.list")["data"]
    assert (card["id"], card["object"], card["owned_by"]) == ("small", "model", "kiara")
    assert client(server.url, "models.retrieve", "small") == card
    error = _failure(client, server, "models.retrieve", "other")
    assert (error.kind, error.status, error.code) == ("NotFoundError", 404, "model_not_found")


def test_completions_accept_every_prompt_form(client: Client, server: Served, model: Model) -> None:
    ids = model.tokenize(PROMPT)
    expected = [one[0] for one in model.generate_all([PROMPT, "x"], **SAMPLING)]
    for prompt in (PROMPT, ids):
        found = client(server.url, COMPLETE, model="small", prompt=prompt, **SAMPLING)
        [choice] = found["choices"]
        assert (choice["text"], choice["finish_reason"]) == (expected[0].text, expected[0].finish_reason)
        assert found["usage"]["prompt_tokens"] == len(ids)
        assert found["usage"]["completion_tokens"] == len(expected[0].tokens)
    for prompts in ([PROMPT, "x"], [ids, model.tokenize("x")]):
        found = client(server.url, COMPLETE, model="small", prompt=prompts, **SAMPLING)
        assert [choice["text"] for choice in found["choices"]] == [one.text for one in expected]


def test_completions_with_n_echo_and_stop(client: Client, server: Served, model: Model) -> None:
    options: dict[str, Any] = {**SAMPLING, "stop": ["e", "\n\n"]}
    [expected] = model.generate_all([PROMPT], n=3, **options)
    assert any(one.finish_reason == "stop" for one in expected)
    found = client(server.url, COMPLETE, model="small", prompt=PROMPT, n=3, echo=True, **options)
    assert [choice["text"] for choice in found["choices"]] == [PROMPT + one.text for one in expected]
    assert [choice["finish_reason"] for choice in found["choices"]] == [one.finish_reason for one in expected]


def test_completions_with_logprobs(client: Client, server: Served, model: Model) -> None:
    ids = model.tokenize(PROMPT)
    scored = model.score(ids[:1], ids[1:]).tokens
    expected = model.generate(PROMPT, logprobs=2, **SAMPLING)
    found = client(server.url, COMPLETE, model="small", prompt=PROMPT, logprobs=2, echo=True, **SAMPLING)
    told = found["choices"][0]["logprobs"]
    assert told["token_logprobs"] == [None, *(one.logprob for one in (*scored, *expected.logprobs))]
    likeliest = [one.top[0][1] for one in (*scored, *expected.logprobs)]
    assert [max(top.values()) for top in told["top_logprobs"][1:]] == likeliest
    assert "".join(told["tokens"]) == PROMPT + expected.text


def test_extra_parameters_reach_the_server(client: Client, server: Served, model: Model) -> None:
    options: dict[str, Any] = {"min_p": 0.1, "top_k": 5, "regex": "[a-z]{9}"}
    expected = model.generate(PROMPT, **SAMPLING, **options)
    extra = {"min_p": 0.1, "top_k": 5, "response_format": {"type": "regex", "regex": "[a-z]{9}"}}
    found = client(server.url, COMPLETE, model="small", prompt=PROMPT, extra=extra, **SAMPLING)
    assert found["choices"][0]["text"] == expected.text


def test_multi_turn_chat(client: Client, server: Served, model: Model) -> None:
    parts = [{"type": "text", "text": part} for part in ("class ", "Reader:")]
    asked = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    turns = [{"role": "system", "content": "Be brief."}, USER]
    for name in ("max_tokens", "max_completion_tokens"):
        expected = model.chat(turns, temperature=0.7, seed=2, max_tokens=9)
        options = {name: 9, "temperature": 0.7, "seed": 2}
        [choice] = client(server.url, CHAT, model="small", messages=asked, **options)["choices"]
        assert choice["message"]["content"] == expected.text != ""
        asked += [choice["message"], USER]
        turns += [{"role": "assistant", "content": expected.text}, USER]


def test_chat_with_logprobs(client: Client, server: Served, model: Model) -> None:
    expected = model.chat([USER], logprobs=3, **SAMPLING)
    options = {**SAMPLING, "logprobs": True, "top_logprobs": 3}
    [choice] = client(server.url, CHAT, model="small", messages=[USER], **options)["choices"]
    told = choice["logprobs"]["content"]
    assert [one["logprob"] for one in told] == [one.logprob for one in expected.logprobs]
    assert [[top["logprob"] for top in one["top_logprobs"]] for one in told] == [
        [logprob for _, logprob in one.top] for one in expected.logprobs
    ]
    assert b"".join(bytes(one["bytes"]) for one in told).decode() == expected.text


def test_chat_with_a_json_schema(client: Client, server: Served, model: Model) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 1, "seed": 5}
    [choice] = client(server.url, CHAT, model="small", messages=[USER], response_format=form, **options)["choices"]
    assert choice["message"]["content"] == model.chat([USER], json_schema=schema, **options).text
    assert isinstance(json.loads(choice["message"]["content"])["ok"], bool)


def test_streamed_chunks_join_to_the_whole_answer(client: Client, server: Served, model: Model) -> None:
    options: dict[str, Any] = {**SAMPLING, "stream": True, "stream_options": {"include_usage": True}}
    said, written = model.chat([USER], **SAMPLING), model.generate(PROMPT, **SAMPLING)
    *chunks, last = client(server.url, COMPLETE, model="small", prompt=PROMPT, **options)
    assert len(chunks) > 3
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == written.text
    assert chunks[-1]["choices"][0]["finish_reason"] == written.finish_reason
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], len(written.tokens))
    *chunks, last = client(server.url, CHAT, model="small", messages=[USER], **options)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == said.text
    assert chunks[-1]["choices"][0]["finish_reason"] == said.finish_reason
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], len(said.tokens))


@pytest.mark.parametrize("what", [COMPLETE, CHAT])
def test_closing_a_stream_cancels_its_request(client: Client, server: Served, what: str) -> None:
    before = server.metric("kiara_disconnects_total")
    many = LONG if what == COMPLETE else {"messages": [USER], "n": 16, "seed": 1}
    extra = ENDLESS if what == COMPLETE else {**ENDLESS, "response_format": {"type": "regex", "regex": "a{60}"}}
    chunks = client(server.url, what, model="small", **many, stream=True, close_after=5, extra=extra)
    assert len(chunks) == 5
    server.wait_for("kiara_disconnects_total", before + 1)
    server.wait_for("kiara_requests_running", 0)
    server.wait_for("kiara_requests_waiting", 0)


def test_a_client_timeout_cancels_the_request(client: Client, server: Served) -> None:
    before = server.metric("kiara_disconnects_total")
    error = _failure(client, server, COMPLETE, model="small", **LONG, extra=ENDLESS, timeout=0.5)
    assert error.kind == "APIConnectionTimeoutError"
    server.wait_for("kiara_disconnects_total", before + 1)
    server.wait_for("kiara_requests_running", 0)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
REFUSED: list[tuple[str, dict[str, Any], str, str | None]] = [
    (COMPLETE, {"prompt": "x " * 500}, "prompt", "context_length_exceeded"),
    (CHAT, {"messages": [{"role": "user", "content": "x " * 500}]}, "messages", "context_length_exceeded"),
    (COMPLETE, {"prompt": "x", "temperature": 3}, "temperature", "invalid_value"),
    (COMPLETE, {"prompt": "x", "suffix": "y"}, "suffix", None),
    (CHAT, {"messages": [USER], "tools": [TOOL] * 129}, "tools", "invalid_value"),
    (COMPLETE, {"prompt": "x" * 3_000_000}, "", "body_too_large"),
]


@pytest.mark.parametrize(("what", "asked", "param", "code"), REFUSED, ids=lambda value: str(value)[:20])
def test_invalid_requests_are_refused_with_param_and_code(
    client: Client, server: Served, what: str, asked: dict[str, Any], param: str, code: str
) -> None:
    error = _failure(client, server, what, model="small", **asked)
    kind, status = ("BadRequestError", 400) if param else ("APIError", 413)
    assert (error.kind.replace("Status", ""), error.status) == (kind, status), error
    assert (error.param or "", error.code) == (param, code)
    if code == "context_length_exceeded":
        assert "context of 96 tokens" in error.message


def test_an_unknown_model_or_endpoint_is_not_found(client: Client, server: Served) -> None:
    for what, subject in ((COMPLETE, {"prompt": "x"}), (CHAT, {"messages": [USER]})):
        error = _failure(client, server, what, model="gpt-5", **subject)
        assert (error.kind, error.param, error.code) == ("NotFoundError", "model", "model_not_found")
    error = _failure(client, server, "moderations.create", model="small", input="x")
    assert (error.kind, error.code) == ("NotFoundError", "not_found")


def test_a_wrong_api_key_is_refused(client: Client, chat_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-long-key\n")
    with served(chat_bundle, "--api-key-file", tmp_path / "keys", ready=False) as server:
        error = _failure(client, server, "models.list", key="another-key")
        assert (error.kind, error.status, error.code) == ("AuthenticationError", 401, "invalid_api_key")
        _wait_until_ready(client, server)
        found = client(server.url, COMPLETE, model="small", prompt="x", max_tokens=1, key="a-long-key")
        assert len(found["choices"]) == 1


def _wait_until_ready(client: Client, server: Served) -> None:
    while True:
        try:
            return client(server.url, "models.list", key="a-long-key")
        except FailedError as error:
            assert (error.kind, error.code) == ("InternalServerError", "model_loading")


def test_a_full_queue_returns_429(client: Client, chat_bundle: Path) -> None:
    with served(chat_bundle, "--slots", 1, "--queue", 0) as server:
        running = server.send({**LONG, **ENDLESS, "stream": True})
        running.recv(100)
        for stream in (False, True):
            error = _failure(client, server, COMPLETE, model="small", prompt="x", stream=stream)
            assert (error.kind, error.status, error.code) == ("RateLimitError", 429, "queue_full")
        running.close()
        server.wait_for("kiara_requests_running", 0)
        assert client(server.url, COMPLETE, model="small", prompt="x")["object"] == "text_completion"


@pytest.mark.parametrize("what", [COMPLETE, CHAT])
def test_a_queued_stream_reads_past_keep_alive_comments(
    client: Client, chat_bundle: Path, model: Model, what: str
) -> None:
    """The stream waits for over a second, so that the package also has to read keep-alive comments."""
    with served(chat_bundle, "--slots", 1, program=SLOW) as server:
        server.send({"prompt": "x", "max_tokens": 50, "stream": True, **ENDLESS}).recv(100)
        options: dict[str, Any] = {"max_tokens": 3, "temperature": 0}
        asked = {"prompt": PROMPT} if what == COMPLETE else {"messages": [USER]}
        chunks = client(server.url, what, model="small", stream=True, **asked, **options)
        choices = [chunk["choices"][0] for chunk in chunks]
        found = "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in choices)
        expected = model.generate(PROMPT, **options) if what == COMPLETE else model.chat([USER], **options)
        assert found == expected.text != ""
        assert server.metric("kiara_queue_seconds_sum") > 1


def test_a_request_past_the_time_limit_is_a_timeout_error(client: Client, chat_bundle: Path) -> None:
    with served(chat_bundle, "--timeout", 1, program=SLOW) as server:
        for stream, kind, status in ((True, "APIError", None), (False, "InternalServerError", 504)):
            error = _failure(client, server, COMPLETE, model="small", **LONG, stream=stream, extra=ENDLESS)
            assert (error.kind, error.status, error.code) == (kind, status, "timeout")
        server.wait_for("kiara_requests_running", 0)


def test_embeddings_are_the_models(client: Client, embedding_bundle: Path) -> None:
    texts = ["import os", "def main(argv):"]
    with load(embedding_bundle) as model, served(embedding_bundle) as server:
        expected = model.embed(texts)
        found = client(server.url, "embeddings.create", model="embedder", input=texts)  # base64 inside, by default
        cut = client(server.url, "embeddings.create", model="embedder", input=texts[0], dimensions=3)
    assert np.allclose([one["embedding"] for one in found["data"]], expected, atol=1e-7)
    assert len(cut["data"][0]["embedding"]) == 3 and found["usage"]["prompt_tokens"] > 0
