"""What requests may contain, and how they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_api import CHAT, COMPLETIONS, PROMPT, _client, _events, _ok, _refused, _service, _text

from kiara_runtime.loading import load
from kiara_runtime.model import Model
from kiara_runtime.server.guard import MAX_MESSAGE, Guard


def test_parameters_with_neutral_values_are_accepted(client: FlaskClient) -> None:
    """As sent by packages that fill in every field of OpenAI's API."""
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    nothing: dict[str, Any] = {"store": False, "metadata": None, "service_tier": "auto"}
    expected = _text(_ok(client, COMPLETIONS, prompt=PROMPT, **options))
    assert _text(_ok(client, COMPLETIONS, prompt=PROMPT, best_of=1, suffix=None, **nothing, **options)) == expected
    hello = [{"role": "user", "content": "x"}]
    tools = {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": None, "modalities": ["text"]}
    expected = _text(_ok(client, CHAT, messages=hello, **options))
    assert _text(_ok(client, CHAT, messages=hello, **tools, **nothing, **options)) == expected


def test_negative_seeds_and_speaker_names_are_accepted(client: FlaskClient, model: Model) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 8, "temperature": 2.0}
    texts = [_text(_ok(client, COMPLETIONS, **asked, seed=seed)) for seed in (-1, -2, -1)]
    assert texts[0] == texts[2] != texts[1]
    named = [{"role": "user", "content": "x", "name": "ann"}]
    found = _ok(client, CHAT, messages=named, max_tokens=1)["usage"]["prompt_tokens"]
    assert found == len(model.chat_prompt(named))


def test_any_model_answers_other_names(bundle: Path, model: Model) -> None:
    asked: dict[str, Any] = {"prompt": "x", "max_tokens": 2, "temperature": 0}
    client = _client(_service(bundle, model, any_model=True))
    found = [_ok(client, COMPLETIONS, model=name, **asked) for name in ("gpt-4o", "small")]
    assert _text(found[0]) == _text(found[1]) and found[0]["model"] == found[1]["model"] == "small"
    assert client.get("/v1/models/gpt-4o").json["id"] == "small"


def test_invalid_chat_requests_are_refused(client: FlaskClient, bundle: Path) -> None:
    hello = [{"role": "user", "content": "x"}]
    for body, param in (
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({"messages": [{"role": "assistant"}]}, "messages"),
        ({"messages": hello, "tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools"),
        ({"messages": hello, "tools": [{"type": "web_search"}]}, "tools"),
        ({"messages": hello, "tool_choice": "required"}, "tool_choice"),
        ({"messages": hello, "functions": [{"name": "f"}]}, "functions"),
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
def test_text_offsets_are_right_for_invalid_utf8(client: FlaskClient, ids: list[int]) -> None:
    """The model's first 256 ids are bytes. An offset is where the text of the token begins, never after its end."""
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
def test_invalid_bodies_never_cause_a_server_error(client: FlaskClient, path: str, body: Any) -> None:
    response = client.post(path, data=json.dumps(body), content_type="application/json")
    assert response.status_code < 500, response.text


def test_a_wrong_model_route_method_type_or_size_is_refused(client: FlaskClient) -> None:
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


def test_the_tokenizer_and_model_endpoints(client: FlaskClient, model: Model) -> None:
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


def test_api_keys_hosts_and_origins_are_checked(chat_bundle: Path, model: Model) -> None:
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


def test_the_page_and_files_of_the_bundle_are_served(client: FlaskClient, chat_bundle: Path) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/client.js", "text/javascript"),
        ("/elements.js", "text/javascript"),
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


def test_metrics_count_requests_and_the_log_contains_no_text(
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
    assert values["kiara_time_to_first_token_seconds_count"] == "25.0"  # 6 x 2 x 2 + 1 sequences; 4 more have no token
    assert values["kiara_queue_seconds_count"] == "29.0"
    assert (values["kiara_requests_running"], values["kiara_requests_waiting"]) == ("0.0", "0.0")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]  # without /metrics
    assert len(lines) == 11 and lines[0]["user"] == "me" and {"id", "route", "status", "seconds"} <= set(lines[0])
    assert not any("secret" in json.dumps(line) for line in lines)
    assert [line["error"] for line in lines if line["status"] == 400] == ["invalid_value"] * 3
