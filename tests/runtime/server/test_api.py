"""What the two endpoints answer, against the interface of `kiara_runtime` with the same parameters; and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_api import CHAT, COMPLETIONS, PROMPT, _events, _ok, _refused, _text

from kiara_runtime.model import Model


def test_a_completion_matches_model_generate(client: FlaskClient, model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 7, "presence_penalty": 0.5}
    found, expected = _ok(client, COMPLETIONS, prompt=PROMPT, **options), model.generate(PROMPT, **options)
    [choice] = found["choices"]
    assert choice == {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": expected.finish_reason}
    counts = found["usage"]
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (expected.prompt_tokens, len(expected.tokens))
    assert counts["total_tokens"] == expected.prompt_tokens + len(expected.tokens)
    assert (found["object"], found["model"]) == ("text_completion", "small")


def test_every_prompt_form_and_several_choices(client: FlaskClient, model: Model) -> None:
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


def test_echo_with_logprobs_matches_model_score(client: FlaskClient, model: Model) -> None:
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


def test_the_end_of_text_token_is_among_the_logprobs(client: FlaskClient, model: Model) -> None:
    """Else a client that cuts the generated token off a score would cut off a prompt token."""
    [end] = model.eos_token_ids
    body = {"prompt": PROMPT, "max_tokens": 1, "echo": True, "logprobs": 1, "logit_bias": {str(end): 100}}
    found = _ok(client, COMPLETIONS, **body)
    assert found["choices"][0]["finish_reason"] == "stop" and found["choices"][0]["text"] == PROMPT
    assert found["choices"][0]["logprobs"]["tokens"][-1] == "<|endoftext|>"
    assert len(found["choices"][0]["logprobs"]["tokens"]) == found["usage"]["prompt_tokens"] + 1


STOPS = st.lists(st.text("aeinrt \n().=:", min_size=1, max_size=3), max_size=3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 50), stop=STOPS, n=st.integers(1, 3), logprobs=st.sampled_from([None, 0, 2]))
def test_streamed_chunks_join_to_the_whole_answer(
    client: FlaskClient, seed: int, stop: list[str], n: int, logprobs: int | None
) -> None:
    """A high temperature also produces parts of characters."""
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


def test_chat_uses_the_template(client: FlaskClient, model: Model) -> None:
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


WRONG = [
    ({}, "prompt", "missing_parameter"),
    ({"prompt": "x", "suffix": "y"}, "suffix", None),
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
def test_invalid_requests_are_refused_by_field(client: FlaskClient, body: Any, param: str | None, code: str) -> None:
    error = _refused(client, COMPLETIONS, body)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_only_the_first_mistake_is_reported(client: FlaskClient) -> None:
    error = _refused(client, COMPLETIONS, {"prompt": [-1] * 1000})
    assert error["message"] == "prompt[0]: -1 is invalid; Input should be greater than or equal to 0"
    error = _refused(client, COMPLETIONS, {"prompt": "x", "stop": ["a"] * 17})
    assert "at most 16 items" in error["message"]
    named = {"type": "json_schema", "json_schema": {"schema": {}}}
    error = _refused(client, COMPLETIONS, {"prompt": "x", "response_format": named})
    assert error["message"] == "response_format.json_schema.name: is required but missing; add it"


def test_too_many_logprobs_are_refused(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiara_runtime.server.served.TOLD", 4 * 21)
    asked = {"max_tokens": 1, "echo": True, "logprobs": 20}
    assert _refused(client, COMPLETIONS, {"prompt": [1, 2, 3, 4, 5], **asked})["param"] == "logprobs"
    _ok(client, COMPLETIONS, prompt=[1, 2, 3, 4], **asked)


def test_a_prompt_beyond_the_context_is_refused_with_both_counts(client: FlaskClient, model: Model) -> None:
    error = _refused(client, COMPLETIONS, {"prompt": "x " * 500})
    assert f"{len(model.tokenize('x ' * 500))} tokens" in error["message"] and "context of 96" in error["message"]
    error = _refused(client, CHAT, {"messages": [{"role": "user", "content": "x " * 500}]})
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


def test_an_answer_can_be_sent_back_as_client_packages_store_it(client: FlaskClient) -> None:
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
