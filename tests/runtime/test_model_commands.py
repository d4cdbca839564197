"""More of a model's methods, its asyncio version, and the commands that use it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from model_prompts import PROMPT, _scripted

from kiara_runtime.aio import AsyncModel
from kiara_runtime.engine.engine import Engine
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load
from kiara_runtime.model import Model


def test_the_end_of_text_token_has_a_logprob(model: Model) -> None:
    [end] = model.eos_token_ids
    ended = model.generate(model.tokenize(PROMPT), max_tokens=4, logit_bias={end: 100}, logprobs=0)
    assert (ended.tokens, ended.finish_reason) == ([], "stop")
    assert [one.token for one in ended.logprobs] == [end]
    assert ended.logprobs[0].logprob == pytest.approx(model.score(PROMPT, [end]).logprob, abs=1e-3)


def test_several_continuations_differ_and_are_repeatable(model: Model) -> None:
    first, second = (model.generate_all([PROMPT, "x"], n=3, max_tokens=12, seed=4) for _ in range(2))
    assert [[one.tokens for one in some] for some in first] == [[one.tokens for one in some] for some in second]
    assert len({tuple(one.tokens) for one in first[0]}) == 3
    assert first[0][0].tokens == model.generate(PROMPT, max_tokens=12, seed=4).tokens
    with pytest.raises(UserError, match="n: 0 cannot be used"):
        model.generate_all([PROMPT], n=0)


def test_speculative_decoding_gives_the_same_tokens(bundle: Path) -> None:
    """In float32 rounding changes no token. The prompt repeats itself."""
    model = load(bundle, "fp32")
    prompt = model.tokenize("for name in argv:\n" * 4)[:40]
    for options in ({"temperature": 0.0}, {"temperature": 0.3, "seed": 1, "repetition_penalty": 0.3}):
        plain = model.generate(prompt, max_tokens=50, ignore_eos=True, **options)
        ahead = model.generate(prompt, max_tokens=50, ignore_eos=True, speculate=True, **options)
        assert ahead.tokens == plain.tokens and plain.drafted_tokens == 0
    assert 0 < ahead.accepted_tokens <= ahead.drafted_tokens
    again = model.generate(prompt, max_tokens=50, ignore_eos=True, speculate=True, **options)
    assert (again.tokens, again.drafted_tokens) == (ahead.tokens, ahead.drafted_tokens)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.5, "seed": 1}, {"logprobs": 1}])
def test_structured_output_is_valid_or_truncated(model: Model, options: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["ab", "c"]}, "ok": {"type": "boolean"}}}
    schema |= {"required": ["name", "ok"], "additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    result = model.generate("{", max_tokens=60, json_schema=schema, **options)
    assert result.finish_reason == "stop" and json.loads(result.text)["name"] in ("ab", "c")
    assert model.generate("x", regex="(ab){3}", **options).text == "ababab"
    assert len(result.logprobs) == (len(result.tokens) if "logprobs" in options else 0)
    cut = model.generate("x", max_tokens=2, grammar='start: "a very long text that must be cut"', **options)
    assert (cut.finish_reason, len(cut.tokens)) == ("length", 2)
    with pytest.raises(UserError, match="regex: "):
        model.generate("x", regex="(")
    with pytest.raises(UserError, match="logit_bias: "):
        model.generate("x", logit_bias={100000: 1.0})


def test_a_stop_token_id_ends_the_text_before_it(model: Model) -> None:
    scripted = _scripted([*b"abcd"]).generate("x", temperature=0.0, stop_token_ids=[ord("c")])
    assert (scripted.tokens, scripted.finish_reason) == ([*b"ab"], "stop")
    # At this temperature all tokens are about equally likely: the text varies, regardless of the model.
    varied = {"max_tokens": 20, "temperature": 100.0, "seed": 1, "ignore_eos": True}
    whole = model.generate(PROMPT, **varied)
    place = next(i for i in range(3, 20) if whole.tokens[i] not in whole.tokens[:i])
    stopped = model.generate(PROMPT, **varied, stop_token_ids=[whole.tokens[place]])
    assert (stopped.tokens, stopped.finish_reason) == (whole.tokens[:place], "stop")


def test_the_async_model_matches_the_model(bundle: Path, model: Model) -> None:
    twin = AsyncModel(load(bundle))

    async def streamed(seed: int) -> list[int]:
        return [token async for piece in twin.stream(PROMPT, max_tokens=12, seed=seed) for token in piece.tokens]

    async def all_of_it() -> Any:
        some = await asyncio.gather(*(streamed(seed) for seed in range(6)), twin.generate(PROMPT, max_tokens=5, seed=0))
        task = asyncio.create_task(twin.generate(PROMPT, max_tokens=90, ignore_eos=True))
        await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return *some, await twin.score(PROMPT, "x")

    *found, whole, score = asyncio.run(all_of_it())
    assert found == [model.generate(PROMPT, max_tokens=12, seed=seed).tokens for seed in range(6)]
    assert whole.tokens == found[0][:5] and score == model.score(PROMPT, "x")
    assert isinstance(twin.model.runner, Engine) and twin.model.runner.load() == (0, 0)


def test_kiara_run_evaluate_agrees_with_kiara_evaluate(
    bundle: Path, run: Path, tmp_path: Path, kiara: Callable[..., Result], kiara_run: Callable[..., Result]
) -> None:
    text = tmp_path / "held-out.py"
    text.write_text(inspect.getsource(inspect), "utf-8")
    ours = json.loads(kiara_run("evaluate", bundle, text, "--variant", "fp32", "--json").stdout)
    theirs = json.loads(kiara("evaluate", run, "--text", text, "--json").stdout)
    for name in ("loss", "perplexity", "accuracy", "bits_per_byte"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.01), name
    assert 0 <= ours["tokens"] - theirs["tokens"] < 96
    assert "bits per byte, perplexity" in kiara_run("evaluate", bundle, text).stdout
    for content, expected in (
        (b"", "no text at all"),
        (b"\xef\xbb\xbf", "no text at all"),
        (b"caf\xe9", "not UTF-8 at byte 3"),
        (b"c\0a\0", "it contains NUL"),
    ):
        text.write_bytes(content)
        assert expected in kiara_run("evaluate", bundle, text).stderr
    assert "No such file" in kiara_run("evaluate", bundle, tmp_path / "none").stderr


def test_bench_compares_with_the_receipt(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    sizes = ("--prompt-tokens", "20", "--max-tokens", "6", "--batch", "1", "--batch", "2")
    shown = kiara_run("bench", bundle, *sizes).stdout
    for expected in ("prefill of 20 tokens", "of the receipt's", "decode, 2 at once", "peak memory", "first token"):
        assert expected in shown
    values = json.loads(kiara_run("bench", bundle, *sizes, "--json", "--variant", "fp32").stdout)
    assert values["variant"] == "fp32" and values["decode_tokens_per_second"] > 0 and values["batches"]["2"] > 0


def test_command_line_options_for_sampling_and_prompt_cache(
    bundle: Path, model: Model, tmp_path: Path, kiara_run: Callable[..., Result]
) -> None:
    banned = model.generate(PROMPT, max_tokens=1, temperature=0.0).tokens[0]
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"], "type": "string"}')
    base = ("generate", bundle, "-p", PROMPT, "--max-tokens", "8", "--seed", "1")
    options = ("--temperature", "0", "--logit-bias", f"{banned}=-100", "--json", "--logprobs", "1", "--prompt-logprobs")
    found = json.loads(kiara_run(*base, *options).stdout)
    assert banned != found["tokens"][0] and len(found["logprobs"]) == 8 and found["prompt_logprobs"]
    for _ in range(2):
        kiara_run(*base, "--prompt-cache", tmp_path / "cache", "-p", PROMPT * 5)
    stored = json.loads(kiara_run(*base, "--prompt-cache", tmp_path / "cache", "-p", PROMPT * 5, "--json").stdout)
    assert stored["cached_tokens"] > 30
    assert kiara_run(*base, "--json-schema", f"@{schema}").stdout in ('"yes"\n', '"no"\n')
    several = kiara_run(*base, "-n", "2", "--json").stdout.splitlines()
    assert [json.loads(line)["completion_tokens"] for line in several] == [8, 8]
    assert "[8 tokens, length]" in kiara_run(*base, "-n", "2").stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--device", "cuda"), "device: "),
        (("--logit-bias", "x"), "ID=BIAS"),
        (("--json-schema", "@/none"), "/none: No such file"),
        (("--json-schema", "{"), "json_schema: "),
        (("--regex", "a", "--grammar", "b"), "regex"),
        (("--presence-penalty", "3"), "presence_penalty: 3.0 cannot be used"),
        (("--banned-tokens", "99999"), "banned_tokens: "),
        (("-n", "0"), "n: 0 cannot be used"),
    ],
)
def test_more_invalid_options_give_a_one_line_error(
    options: tuple[str, ...], expected: str, bundle: Path, kiara_run: Callable[..., Result]
) -> None:
    result = kiara_run("generate", bundle, "-p", "x", *options)
    assert result.exit_code != 0 and not result.stdout
    assert expected in result.stderr and result.stderr.count("\n") == 1
