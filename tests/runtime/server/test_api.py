"""What the two endpoints answer, against the interface of `kiara_runtime` with the same parameters; and refusals."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.model import Model, load
from kiara_runtime.server.guard import MAX_MESSAGE, Guard
from kiara_runtime.server.openapi import _numbers
from kiara_runtime.server.routes import create_app
from kiara_runtime.server.service import Service, Settings

PROMPT = "def main(argv):\n    for"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
BAD = {"type": "object", "properties": {"a": {"not": {}}}}
SPACED = {"type": "object", "properties": {"its age: ": {"multipleOf": 0.1}}}


@pytest.fixture(scope="module")
def model(chat_bundle: Path) -> Iterator[Model]:
    with load(chat_bundle) as model:
        yield model


class _Client(FlaskClient):
    """Closes every response, as a WSGI server does."""

    def open(self, *arguments: Any, **options: Any) -> Any:
        return super().open(*arguments, **{"buffered": True, **options})


def _client(service: Service) -> FlaskClient:
    app = create_app(service)
    app.test_client_class = _Client
    return app.test_client()


def _service(folder: Path, model: Model | None, **options: Any) -> Service:
    service = Service(Bundle.open(folder), None, Settings(**options))
    if model is not None:
        service.begin(model)
    return service


@pytest.fixture(scope="module")
def client(chat_bundle: Path, model: Model) -> FlaskClient:
    return _client(_service(chat_bundle, model))


def _ok(client: FlaskClient, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json


def _events(client: FlaskClient, path: str, **body: Any) -> list[Any]:
    """The chunks of a stream, which must end as one."""
    response = client.post(path, json={**body, "stream": True})
    assert (response.status_code, response.mimetype) == (200, "text/event-stream")
    *events, done, rest = re.sub(r"^:.*\n\n", "", response.text, flags=re.MULTILINE).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def _refused(client: FlaskClient, path: str, body: Any, status: int = 400) -> Any:
    given = {"data": body, "content_type": "application/json"} if isinstance(body, bytes) else {"json": body}
    response = client.post(path, **given)
    assert response.status_code == status, response.text
    assert len(response.data) <= 4096
    error = response.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_completion_is_what_the_interface_generates(client: FlaskClient, model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 7, "presence_penalty": 0.5}
    found, expected = _ok(client, COMPLETIONS, prompt=PROMPT, **options), model.generate(PROMPT, **options)
    [choice] = found["choices"]
    assert choice == {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": expected.finish_reason}
    counts = found["usage"]
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (expected.prompt_tokens, len(expected.tokens))
    assert counts["total_tokens"] == expected.prompt_tokens + len(expected.tokens)
    assert (found["object"], found["model"]) == ("text_completion", "small")


def test_prompts_of_every_form_and_several_choices(client: FlaskClient, model: Model) -> None:
    ids = model.tokenize(PROMPT)
    options: dict[str, Any] = {"max_tokens": 6, "seed": 3, "temperature": 1.0}
    expected = [one.text for some in model.generate_all([ids, "x"], n=9, **options) for one in some]
    for prompts in ([PROMPT, "x"], [ids, model.tokenize("x")]):
        found = _ok(client, COMPLETIONS, prompt=prompts, n=9, **options)
        assert [choice["text"] for choice in found["choices"]] == expected
        assert [choice["index"] for choice in found["choices"]] == list(range(18))
        assert found["usage"]["prompt_tokens"] == len(ids) + 1
    assert _ok(client, COMPLETIONS, prompt=ids, **options)["choices"][0]["text"] == expected[0]
    assert len(_ok(client, COMPLETIONS, prompt="")["choices"]) == 1


def test_echo_with_logprobs_is_the_score(client: FlaskClient, model: Model) -> None:
    ids = model.tokenize(PROMPT)
    found = _ok(client, COMPLETIONS, prompt=ids, max_tokens=0, echo=True, logprobs=3)["choices"][0]
    score = model.score(ids[:1], ids[1:])
    assert found["text"] == PROMPT
    told = found["logprobs"]
    assert told["token_logprobs"] == [None, *(one.logprob for one in score.tokens)]
    assert "".join(told["tokens"]) == PROMPT
    starts = [len(model.detokenize(ids[:i])) for i in range(len(ids))]
    assert told["text_offset"] == starts
    for one, top in zip(score.tokens, told["top_logprobs"][1:], strict=True):
        assert max(top.values()) == one.top[0][1] and 3 <= len(top) <= 4


def test_the_end_of_text_is_among_the_logprobs(client: FlaskClient, model: Model) -> None:
    """Or who cuts the generated token off a score would cut one of the prompt's."""
    [end] = model.eos_token_ids
    body = {"prompt": PROMPT, "max_tokens": 1, "echo": True, "logprobs": 1, "logit_bias": {str(end): 100}}
    found = _ok(client, COMPLETIONS, **body)
    assert found["choices"][0]["finish_reason"] == "stop" and found["choices"][0]["text"] == PROMPT
    assert found["choices"][0]["logprobs"]["tokens"][-1] == "<|endoftext|>"
    assert len(found["choices"][0]["logprobs"]["tokens"]) == found["usage"]["prompt_tokens"] + 1


STOPS = st.lists(st.text("aeinrt \n().=:", min_size=1, max_size=3), max_size=3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 50), stop=STOPS, n=st.integers(1, 3), logprobs=st.sampled_from([None, 0, 2]))
def test_a_stream_joined_is_the_whole_answer(
    client: FlaskClient, seed: int, stop: list[str], n: int, logprobs: int | None
) -> None:
    """High temperature makes pieces of characters, too."""
    asked: dict[str, Any] = {"prompt": "é = 'né", "temperature": 2.0, "max_tokens": 20, "echo": True}
    asked |= {"seed": seed, "stop": stop, "n": n, "logprobs": logprobs}
    whole = _ok(client, COMPLETIONS, **asked)
    *chunks, last = _events(client, COMPLETIONS, **asked, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], whole["usage"]["total_tokens"])
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    for expected in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == expected["index"]]
        assert "".join(one["text"] for one in mine) == expected["text"]
        assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + [expected["finish_reason"]]
        if logprobs is not None:
            for name, values in expected["logprobs"].items():
                assert [value for one in mine for value in one["logprobs"][name]] == values


def test_chat_goes_through_the_template(client: FlaskClient, model: Model) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "def <|endoftext|>"}]
    parts = [
        messages[0],
        {"role": "user", "content": [{"type": "text", "text": text} for text in ("def <|endo", "ftext|>")]},
    ]
    prompt = model.tokenize("system: Be brief.\nuser: def <|endoftext|>\nassistant: ")
    expected = model.generate(prompt, max_tokens=9, temperature=0.0, logprobs=2)
    for given_messages, name in ((messages, "max_tokens"), (parts, "max_completion_tokens")):
        asked = {"messages": given_messages, name: 9, "temperature": 0, "logprobs": True, "top_logprobs": 2}
        found = _ok(client, CHAT, **asked)
        [choice] = found["choices"]
        assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
        assert [one["logprob"] for one in choice["logprobs"]["content"]] == [one.logprob for one in expected.logprobs]
        assert b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"]).decode() == expected.text
        first, *chunks = _events(client, CHAT, **asked)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected.text
        assert chunks[-1]["choices"][0]["finish_reason"] == expected.finish_reason
        assert "usage" not in chunks[-1]


def test_a_conversation_may_run_to_the_end_of_the_context(client: FlaskClient, model: Model) -> None:
    found = _ok(client, CHAT, messages=[{"role": "user", "content": "x"}], ignore_eos=True)
    assert found["usage"]["total_tokens"] == model.context_length
    assert len(_ok(client, COMPLETIONS, prompt="x", ignore_eos=True)["choices"][0]["text"]) > 0


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_structured_output(client: FlaskClient, path: str) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    subject: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x"}
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    text = _text(_ok(client, path, **subject, max_tokens=60, response_format=named))
    assert list(json.loads(text)) == ["ok"]
    [letters] = [_text(_ok(client, path, **subject, response_format={"type": "regex", "regex": "(ab){3}"}))]
    assert letters == "ababab"
    wide = _ok(client, path, **subject, response_format={"type": "json_object"}, max_tokens=40)
    assert _text(wide).startswith("{")
    assert _text(_ok(client, path, **subject, response_format={"type": "grammar", "grammar": 'start: "q"'})) == "q"
    assert _text(_ok(client, path, **subject, response_format={"type": "text"}, max_tokens=2)) != ""


def _text(found: Any) -> str:
    choice = found["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


WRONG = [
    ({}, "prompt", "missing_parameter"),
    ({"prompt": "x", "suffix": "y"}, "suffix", "unsupported_parameter"),
    ({"prompt": "x", "best_of": True}, "best_of", "unsupported_parameter"),
    ({"prompt": "x", "sufix": "y"}, "sufix", "unknown_parameter"),
    ({"prompt": "x", "max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"prompt": "x", "max_tokens": "5"}, "max_tokens", "invalid_value"),
    ({"prompt": "x", "max_tokens": True}, "max_tokens", "invalid_value"),
    ({"prompt": "x", "temperature": 2.5}, "temperature", "invalid_value"),
    ({"prompt": "x", "top_p": 0}, "top_p", "invalid_value"),
    ({"prompt": "x", "n": 17}, "n", "invalid_value"),
    ({"prompt": "x", "seed": 1 << 63}, "seed", "invalid_value"),
    ({"prompt": "x", "stop": [""]}, "stop", "invalid_value"),
    ({"prompt": "x", "stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
    ({"prompt": "x", "logit_bias": {"512": 1}}, "logit_bias", None),
    ({"prompt": "x", "stream_options": {"x": 1}}, "stream_options", "unknown_parameter"),
    ({"prompt": "x", "response_format": {"type": "xml"}}, "response_format", "invalid_value"),
    ({"prompt": "x", "response_format": {"type": "regex", "regex": "("}}, "response_format", None),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt", "invalid_value"),
    ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
    ({"prompt": [600]}, "prompt", None),
    ({"prompt": 5}, "prompt", "invalid_value"),
    ({"prompt": "x " * 500}, "prompt", "context_length_exceeded"),
    ({"prompt": " " * 200_001}, "prompt", None),
    ({"prompt": ["x"] * 17, "n": 16}, "n", None),
    ({"prompt": [[1] * 90] * 250, "echo": True, "logprobs": 20, "n": 2}, "n", None),
    ({"prompt": ["x"] * 257}, "prompt", "invalid_value"),
    ({"prompt": [{}] * 500_000}, "prompt", "invalid_value"),
    ({"prompt": [-1] * 500_000}, "prompt", "invalid_value"),
    ([], "body", "invalid_value"),
    (b"{", None, "invalid_json"),
    (b"\xff", None, "invalid_json"),
    (b'{"prompt": "x", "temperature": NaN}', "temperature", "invalid_value"),
    (b'{"prompt": "\\ud800"}', None, "invalid_json"),
    (b"[" * 5000, None, "invalid_json"),
]


@pytest.mark.parametrize(("body", "param", "code"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_used_is_refused_by_name(client: FlaskClient, body: Any, param: str | None, code: str) -> None:
    error = _refused(client, COMPLETIONS, body)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_one_mistake_is_told_and_not_each_of_thousands(client: FlaskClient) -> None:
    error = _refused(client, COMPLETIONS, {"prompt": [-1] * 1000})
    assert error["message"] == "prompt[0]: -1 cannot be used; Input should be greater than or equal to 0"
    error = _refused(client, COMPLETIONS, {"prompt": "x", "stop": ["a"] * 17})
    assert "at most 16 items" in error["message"]
    named = {"type": "json_schema", "json_schema": {"schema": {}}}
    error = _refused(client, COMPLETIONS, {"prompt": "x", "response_format": named})
    assert error["message"] == "response_format.json_schema.name: missing, but required; give it"


def test_more_logprobs_than_memory_should_hold_are_refused(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiara_runtime.server.service.TOLD", 4 * 21)
    asked = {"max_tokens": 1, "echo": True, "logprobs": 20}
    assert _refused(client, COMPLETIONS, {"prompt": [1, 2, 3, 4, 5], **asked})["param"] == "logprobs"
    _ok(client, COMPLETIONS, prompt=[1, 2, 3, 4], **asked)


def test_a_prompt_beyond_the_context_is_told_with_both_counts(client: FlaskClient, model: Model) -> None:
    error = _refused(client, COMPLETIONS, {"prompt": "x " * 500})
    assert f"{len(model.tokenize('x ' * 500))} tokens" in error["message"] and "context of 96" in error["message"]
    error = _refused(client, CHAT, {"messages": [{"role": "user", "content": "x " * 500}]})
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


def test_an_answer_can_be_sent_back_as_the_client_packages_hold_it(client: FlaskClient) -> None:
    hello = {"role": "user", "content": "x"}
    answer = {"role": "assistant", "content": "y"}
    nothing = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls"))
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    expected = _text(_ok(client, CHAT, messages=[hello, answer, hello], **options))
    held = {**answer, **nothing, "parsed": {"a": [1]}}
    assert _text(_ok(client, CHAT, messages=[hello, held, hello], **options)) == expected
    for name in nothing:
        error = _refused(client, CHAT, {"messages": [hello, {**answer, name: [1]}]})
        assert error["param"] == "messages"


def test_what_asks_for_nothing_is_accepted(client: FlaskClient) -> None:
    """As packages that send every field of OpenAI's do."""
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    nothing: dict[str, Any] = {"store": False, "metadata": None, "service_tier": "auto"}
    expected = _text(_ok(client, COMPLETIONS, prompt=PROMPT, **options))
    assert _text(_ok(client, COMPLETIONS, prompt=PROMPT, best_of=1, suffix=None, **nothing, **options)) == expected
    hello = [{"role": "user", "content": "x"}]
    tools = {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": None, "modalities": ["text"]}
    expected = _text(_ok(client, CHAT, messages=hello, **options))
    assert _text(_ok(client, CHAT, messages=hello, **tools, **nothing, **options)) == expected


def test_seeds_below_0_and_names_of_speakers(client: FlaskClient, model: Model) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 8, "temperature": 2.0}
    texts = [_text(_ok(client, COMPLETIONS, **asked, seed=seed)) for seed in (-1, -2, -1)]
    assert texts[0] == texts[2] != texts[1]
    named = [{"role": "user", "content": "x", "name": "ann"}]
    found = _ok(client, CHAT, messages=named, max_tokens=1)["usage"]["prompt_tokens"]
    assert found == len(model.chat_prompt(named))


def test_chat_refusals(client: FlaskClient, bundle: Path) -> None:
    hello = [{"role": "user", "content": "x"}]
    for body, param in (
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({"messages": hello, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": hello, "modalities": ["text", "audio"]}, "modalities"),
        ({"messages": hello, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": hello, "logprobs": 2}, "logprobs"),
    ):
        assert _refused(client, CHAT, body)["param"] == param
    plain = _client(_service(bundle, load(bundle)))
    assert "no chat template" in _refused(plain, CHAT, {"messages": hello})["message"]
    assert CHAT not in plain.get("/openapi.json").json["paths"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    "prompt messages max_tokens temperature top_p n seed stop stream logit_bias logprobs top_logprobs echo model "
    "response_format stream_options user top_k banned_tokens stop_token_ids presence_penalty".split()
)


@given(st.binary(max_size=6).map(list))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_places_are_right_in_texts_that_are_no_utf8(client: FlaskClient, ids: list[int]) -> None:
    """The model's first 256 ids are bytes. A place is where the text of the token begins: never behind its end."""
    found = _ok(client, COMPLETIONS, prompt=[120, *ids], max_tokens=0, echo=True, logprobs=0)["choices"][0]
    places, text = found["logprobs"]["text_offset"], found["text"]
    assert text == bytes([120, *ids]).decode("utf-8", "replace")
    for i, byte in enumerate(ids, start=1):
        if byte < 0x80:
            assert text[places[i]] == chr(byte)
        ends = bytes([120, *ids[: i - 1]]).decode("utf-8", "replace")
        assert len(ends) - 1 <= places[i] <= len(ends)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([COMPLETIONS, CHAT, "/tokenize", "/detokenize"]), body=st.dictionaries(FIELDS, JSON))
def test_nonsense_is_never_the_servers_fault(client: FlaskClient, path: str, body: Any) -> None:
    response = client.post(path, data=json.dumps(body), content_type="application/json")
    assert response.status_code < 500, response.text


def test_a_wrong_model_route_method_type_or_size(client: FlaskClient) -> None:
    assert _refused(client, COMPLETIONS, {"prompt": "x", "model": "gpt-4"}, 404)["code"] == "model_not_found"
    assert _refused(client, "/v1/nothing", {}, 404)["code"] == "not_found"
    assert _refused(client, "/health", {}, 405)["code"] == "method_not_allowed"
    assert client.get(COMPLETIONS).headers["Allow"] == "POST"
    assert _refused(client, "/v1//completions", {"prompt": "x"}, 404)["code"] == "not_found"
    big = {"prompt": "x" * (2 << 20)}
    assert _refused(client, COMPLETIONS, big, 413)["type"] == "invalid_request_error"
    zipped = {"Content-Encoding": "gzip"}
    assert client.post(COMPLETIONS, json={"prompt": "x"}, headers=zipped).status_code == 415
    response = client.post(COMPLETIONS, data=json.dumps({"prompt": "x"}), content_type="text/plain")
    assert response.status_code == 415 and "application/json" in response.json["error"]["message"]
    long = _refused(client, COMPLETIONS, {"prompt": "x", "y" * 3000: 1})
    assert len(long["message"]) <= MAX_MESSAGE


def test_tokens_and_models(client: FlaskClient, model: Model) -> None:
    ids = model.tokenize("naïve <|endoftext|>")
    found = _ok(client, "/tokenize", prompt="naïve <|endoftext|>", return_token_strs=True)
    assert (found["tokens"], found["count"], found["max_model_len"]) == (ids, len(ids), 96)
    assert len(found["token_strs"]) == len(ids) and any(text.startswith("bytes:\\x") for text in found["token_strs"])
    assert _ok(client, "/detokenize", tokens=ids)["prompt"] == "naïve <|endoftext|>"
    assert _refused(client, "/tokenize", {"prompt": " " * 200_001})["param"] == "prompt"
    assert _refused(client, "/detokenize", {"tokens": [512]})["message"].startswith("tokens: token id 512 is outside")
    listed = client.get("/v1/models").json["data"]
    assert [one["id"] for one in listed] == ["small"] and listed[0]["context_length"] == 96 and listed[0]["chat"]
    assert client.get("/v1/models/small").json == listed[0]
    assert client.get("/v1/models/other").status_code == 404
    info = client.get("/tokenizer_info").json
    assert (info["eos_token"], info["vocab_size"]) == ("<|endoftext|>", 512) and "assistant" in info["chat_template"]


def test_keys_hosts_and_origins(chat_bundle: Path, model: Model) -> None:
    guard = Guard(
        frozenset({"key-one-1", "key-two-2", "key=three=3"}),
        frozenset({"llm.lan", "my_llm"}),
        frozenset({"https://good.example"}),
    )
    client = _client(_service(chat_bundle, model, guard=guard))
    rules = [rule.rule for rule in client.application.url_map.iter_rules()]
    routes = [rule.replace("<path:name>", "small").replace("<name>", "receipt.json") for rule in rules]
    assert len(routes) > 12
    for route in routes:
        answer = client.get(route)
        assert answer.status_code == (200 if route == "/health" else 401), route
        wanted = "" if route == "/health" else "Basic" if route == "/" else "Bearer"
        assert answer.headers.get("WWW-Authenticate", "").split(" ")[0] == wanted, route
    for header in ("Bearer key-two-2", "bearer key=three=3", "Basic OmtleS1vbmUtMQ=="):
        assert client.get("/v1/models", headers={"Authorization": header}).status_code == 200
    for header in ("Bearer key-two-3", "Bearer ", "key-two-2", "Basic x"):
        assert client.get("/v1/models", headers={"Authorization": header}).status_code == 401
    document = client.get("/openapi.json", headers={"Authorization": "Bearer key-two-2"}).json
    assert document["security"] and document["paths"]["/health"]["get"]["security"] == []
    for host, status in (
        ("localhost:80", 200), ("127.0.0.1:", 200), ("[::1]:8000", 200), ("LLM.lan:1", 200), ("192.168.1.9", 200),
        ("my_llm:8000", 200), ("evil.example", 403), ("localhost.evil.example", 403), ("", 403),
        ("127.0.0.1.evil.example", 403),
    ):  # fmt: skip
        assert client.get("/health", headers={"Host": host}).status_code == status, host
    asked = {"Origin": "https://good.example", "Access-Control-Request-Headers": "authorization"}
    answer = client.options(COMPLETIONS, headers=asked)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (204, "https://good.example")
    assert client.options(COMPLETIONS, headers={**asked, "Host": "evil.example"}).status_code == 403
    assert client.options(COMPLETIONS, headers={"Origin": "https://bad.example"}).status_code == 401
    foreign = client.get("/health", headers={"Origin": "https://bad.example"})
    assert "Access-Control-Allow-Origin" not in foreign.headers


def test_pages_and_the_bundles_own_files(client: FlaskClient, chat_bundle: Path) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/snippets.js", "text/javascript"),
        ("/style.css", "text/css"),
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.mimetype) == (200, kind)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert client.get("/bundle/receipt.json").json == json.loads((chat_bundle / "receipt.json").read_text("utf-8"))
    assert client.get("/bundle/README.md").data == (chat_bundle / "README.md").read_bytes()
    for name in ("kiara.json", "onnx", "..%2fkiara.json", "../kiara.json"):
        assert client.get(f"/bundle/{name}").status_code == 404


def test_counters_are_what_was_asked_and_the_log_tells_no_text(
    chat_bundle: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    service = _service(chat_bundle, model)
    client = _client(service)
    sums = [0, 0]
    for index in range(7):
        found = _ok(client, COMPLETIONS, prompt=["secret words", PROMPT], max_tokens=index, n=2, user="me")["usage"]
        sums = [sums[0] + found["prompt_tokens"], sums[1] + found["completion_tokens"]]
    for _ in range(3):
        _refused(client, COMPLETIONS, {"prompt": "secret", "n": 0})
    _events(client, CHAT, messages=[{"role": "user", "content": "secret"}], max_tokens=5, ignore_eos=True)
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['kiara_requests_total{route="/v1/completions",status="200"}'] == "7.0"
    assert values['kiara_requests_total{route="/v1/completions",status="400"}'] == "3.0"
    assert values['kiara_requests_total{route="/v1/chat/completions",status="200"}'] == "1.0"
    chat_prompt = len(model.chat_prompt([{"role": "user", "content": "secret"}]))
    assert float(values["kiara_prompt_tokens_total"]) == sums[0] + chat_prompt
    assert float(values["kiara_generation_tokens_total"]) == sums[1] + 5
    assert values["kiara_time_to_first_token_seconds_count"] == "25.0"  # sequences: 6 x 2 x 2 + 1; 4 have no token
    assert values["kiara_queue_seconds_count"] == "29.0"
    assert (values["kiara_requests_running"], values["kiara_requests_waiting"]) == ("0.0", "0.0")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 12 and lines[0]["user"] == "me" and {"id", "route", "status", "seconds"} <= set(lines[0])
    assert not any("secret" in json.dumps(line) for line in lines)
    assert [line["error"] for line in lines if line["status"] == 400] == ["invalid_value"] * 3


class _Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_log_that_nobody_reads_any_more_breaks_no_answer(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", _Gone())
    assert client.get("/health").status_code == 200


def test_before_the_model_is_loaded(chat_bundle: Path, model: Model) -> None:
    service = _service(chat_bundle, None)
    client = _client(service)
    assert client.get("/health").status_code == 200
    assert (client.get("/ready").status_code, client.get("/ready").json) == (503, {"status": "loading"})
    response = client.post(COMPLETIONS, json={"prompt": "x"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert client.get("/bundle/receipt.json").status_code == 503
    service.begin(model)
    assert client.get("/ready").status_code == 200
    service.stop()
    assert client.get("/ready").json == {"status": "draining"}
    assert _refused(client, COMPLETIONS, {"prompt": "x"}, 503)["code"] == "shutting_down"


def test_a_deadline_and_a_defect(
    chat_bundle: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late = _client(_service(chat_bundle, model, timeout=0.0))
    assert _refused(late, COMPLETIONS, {"prompt": "x", "max_tokens": 50, "ignore_eos": True}, 504)["code"] == "timeout"
    events = late.post(COMPLETIONS, json={"prompt": "x", "stream": True}).text
    assert json.loads(events.removeprefix("data: "))["error"]["code"] == "timeout"
    assert model.runner.load() == (0, 0)

    def broken(*_: Any) -> None:
        raise RuntimeError("/secret/path")

    service = _service(chat_bundle, model)
    monkeypatch.setattr(service, "complete", broken)
    client = _client(service)
    error = _refused(client, COMPLETIONS, {"prompt": "x"}, 500)
    assert "secret" not in error["message"] and error["type"] == "server_error"
    assert "/secret/path" in capsys.readouterr().err
    assert service.admission.wait_until_empty(0)
    monkeypatch.undo()
    monkeypatch.setattr("kiara_runtime.server.jobs.Work.events", broken)
    events = client.post(COMPLETIONS, json={"prompt": "x", "stream": True}).text
    assert json.loads(events.removeprefix("data: "))["error"]["type"] == "server_error" and "secret" not in events
    assert "/secret/path" in capsys.readouterr().err


@given(st.integers(0, 200_000), st.integers(0, 400_000))
def test_a_pattern_bounds_a_number(largest: int, number: int) -> None:
    assert bool(re.search(_numbers(largest), str(number))) == (number <= largest)
    assert not re.search(_numbers(largest), f"0{number}")


def test_what_there_is_not_is_named_beside_what_there_is(client: FlaskClient) -> None:
    missing = client.post("/v1/complete", json={})
    assert missing.status_code == 404 and missing.json["error"]["message"].startswith("/v1/complete: there is no such")
    assert "POST /v1/completions" in missing.json["error"]["message"]
    wrong = client.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json["error"]["message"] == "GET /v1/completions: not this method; use POST"


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        (CHAT, {"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content: "),
        (CHAT, {"messages": [USER, {"role": "user", "content": [{"type": "text"}]}]}, "messages[1].content[0].text: "),
        (CHAT, {"messages": [USER, USER, {"role": "robot", "content": "x"}]}, "messages[2].role: "),
        (CHAT, {"messages": [USER, {"role": "user", "content": "x", "images": []}]}, "messages[1].images: "),
        (COMPLETIONS, {"prompt": ["x", "y", 5]}, "prompt[2]: "),
        (COMPLETIONS, {"prompt": [[1], [2, -1]]}, "prompt[1][1]: "),
        (COMPLETIONS, {"prompt": "x", "stop": ["a", ""]}, "stop[1]: "),
        (COMPLETIONS, {"prompt": "x", "logit_bias": {"5": 1, "6": "much"}}, "logit_bias.6: "),
        (COMPLETIONS, {"prompt": "x", "banned_tokens": [1, 2, -3]}, "banned_tokens[2]: "),
        (
            COMPLETIONS,
            {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": BAD}}},
            "response_format.json_schema.schema.properties.a.not: ",
        ),
        (
            COMPLETIONS,
            {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SPACED}}},
            'response_format.json_schema.schema.properties["its age: "].multipleOf: ',
        ),
    ],
)
def test_an_item_that_is_wrong_is_named_with_its_index(
    path: str, body: dict[str, Any], where: str, client: FlaskClient
) -> None:
    error = _refused(client, path, body)
    assert error["message"].startswith(where), error["message"]
    assert error["param"] == re.split(r"[.\[:]", where)[0]


def test_hints_that_change_nothing_are_taken(client: FlaskClient) -> None:
    plain = {"max_tokens": 5, "temperature": 0, "seed": 1}
    hints = {
        "user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "top_k": -1,
    }  # fmt: skip
    for path, asked in ((COMPLETIONS, {"prompt": "x"}), (CHAT, {"messages": [USER]})):
        found, expected = _ok(client, path, **asked, **plain, **hints), _ok(client, path, **asked, **plain)
        assert found["choices"] == expected["choices"]
    data = b"\xef\xbb\xbf" + json.dumps({"prompt": "x", **plain}).encode()
    assert client.post(COMPLETIONS, data=data, content_type="application/json").status_code == 200


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_text_that_was_held_back_comes_before_the_reason(path: str, client: FlaskClient) -> None:
    """Every text may begin this stop text, so all that is said is held back until the end."""
    asked = {"prompt": "x"} if path == COMPLETIONS else {"messages": [USER]}
    whole = _ok(client, path, **asked, max_tokens=4, temperature=0, ignore_eos=True)["choices"][0]
    text = whole["text"] if path == COMPLETIONS else whole["message"]["content"]
    chunks = _events(client, path, **asked, max_tokens=4, temperature=0, ignore_eos=True, stop=[text + "never"])
    told = [chunk["choices"][0] for chunk in chunks]
    texts = [one["text"] if path == COMPLETIONS else one["delta"].get("content", "") for one in told]
    assert "".join(texts) == text and texts[-1] == "" and told[-1]["finish_reason"] == "length"
    assert [one["finish_reason"] for one in told[:-1]] == [None] * (len(told) - 1)
    assert path == COMPLETIONS or told[-1]["delta"] == {}
