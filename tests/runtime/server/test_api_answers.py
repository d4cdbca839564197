"""Answers before the model is loaded, on errors, to unusual requests, and with held-back or healed text."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from server_api import CHAT, COMPLETIONS, _client, _events, _ok, _refused, _service

from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.model import Model
from kiara_runtime.server.openapi import _numbers
from kiara_runtime.server.served import ServedModel
from kiara_runtime.server.service import Service, Settings

USER = {"role": "user", "content": "hi"}


BAD = {"type": "object", "properties": {"a": {"not": {}}}}


SPACED = {"type": "object", "properties": {"its age: ": {"multipleOf": 0.1}}}


class _ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_closed_log_pipe_breaks_no_answer(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _ClosedPipe())
    assert client.get("/health").status_code == 200


def test_readiness_while_the_model_is_loaded_and_while_it_drains(chat_bundle: Path, model: Model) -> None:
    go_on = threading.Event()

    def load(bundle: Bundle) -> Model:
        go_on.wait(30)
        return model

    service = Service([Bundle.open(chat_bundle)], None, Settings(), load)
    client = _client(service)
    assert client.get("/health").status_code == 200
    assert (client.get("/ready").status_code, client.get("/ready").json) == (503, {"status": "loading"})
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(_client(service).post, COMPLETIONS, json={"prompt": "x", "max_tokens": 2})
        assert client.get("/v1/models").json["data"][0]["loaded"] is False  # type: ignore[index]
        assert client.get("/bundle/receipt.json").status_code == 200
        go_on.set()
        assert answer.result().status_code == 200  # it has waited for the model
    assert client.get("/ready").status_code == 200
    service.stop()
    assert client.get("/ready").json == {"status": "draining"}
    assert _refused(client, COMPLETIONS, {"prompt": "x"}, 503)["code"] == "shutting_down"


def test_timeouts_and_internal_errors_are_reported_without_details(
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
    monkeypatch.setattr(ServedModel, "complete", broken)
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
def test_the_number_pattern_matches_up_to_its_bound(largest: int, number: int) -> None:
    assert bool(re.search(_numbers(largest), str(number))) == (number <= largest)
    assert not re.search(_numbers(largest), f"0{number}")


def test_an_unknown_route_or_method_is_answered_with_those_that_exist(client: FlaskClient) -> None:
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
def test_an_invalid_item_is_named_with_its_index(
    path: str, body: dict[str, Any], where: str, client: FlaskClient
) -> None:
    error = _refused(client, path, body)
    assert error["message"].startswith(where), error["message"]
    assert error["param"] == re.split(r"[.\[:]", where)[0]


def test_hints_without_effect_are_accepted(client: FlaskClient) -> None:
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
def test_held_back_text_comes_before_the_finish_reason(path: str, client: FlaskClient) -> None:
    """The whole text is a prefix of the stop sequence, so it is held back until the end."""
    asked = {"prompt": "x"} if path == COMPLETIONS else {"messages": [USER]}
    whole = _ok(client, path, **asked, max_tokens=4, temperature=0, ignore_eos=True)["choices"][0]
    text = whole["text"] if path == COMPLETIONS else whole["message"]["content"]
    chunks = _events(client, path, **asked, max_tokens=4, temperature=0, ignore_eos=True, stop=[text + "never"])
    told = [chunk["choices"][0] for chunk in chunks]
    texts = [one["text"] if path == COMPLETIONS else one["delta"].get("content", "") for one in told]
    assert "".join(texts) == text and texts[-1] == "" and told[-1]["finish_reason"] == "length"
    assert [one["finish_reason"] for one in told[:-1]] == [None] * (len(told) - 1)
    assert path == COMPLETIONS or told[-1]["delta"] == {}


def test_text_offsets_after_a_healed_prompt_match_the_text(client: FlaskClient, model: Model) -> None:
    healed = 0
    starts = "def mai|import o|    retur|class Reade|self.|x = [1, |for i i|a|if not s|th|else:|print(".split("|")
    for prompt in starts:
        body = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "logprobs": 0, "ignore_eos": True}
        found = _ok(client, COMPLETIONS, **body)
        choice = found["choices"][0]
        told, text = choice["logprobs"], choice["text"]
        healed += found["usage"]["prompt_tokens"] < len(model.encode_prompt(prompt))
        assert told["text_offset"][0] == 0
        for token, place in list(zip(told["tokens"], told["text_offset"], strict=True))[1:]:
            assert token.startswith("bytes:") or text[place:].startswith(token)
    assert healed
