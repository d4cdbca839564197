from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from kiara_runtime.aio import AsyncModel
from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.commands.main import main
from kiara_runtime.engine.engine import Engine
from kiara_runtime.engine.runner import Alone
from kiara_runtime.engine.session import Session
from kiara_runtime.errors import UserError
from kiara_runtime.model import Model, load
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

PROMPT = "def main(argv):\n    "


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return load(bundle)


def _scripted(ids: list[int], context_length: int = 64) -> Model:
    """A model that says `ids` one after the other, over a byte tokenizer."""
    tokenizer = Tokenizer.from_merges([bytes([byte]) for byte in range(256)], {END_OF_TEXT: 256})

    def begin() -> Any:
        said = iter(ids)
        return lambda fed: np.eye(257, dtype=np.float32)[[next(said)]]

    return Model(tokenizer, Alone(begin), context_length, 257, frozenset({256}), 256)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3}, {"seed": 4, "top_k": 20, "min_p": 0.05}])
def test_stream_joins_to_generate_and_repeats(model: Model, options: dict[str, Any]) -> None:
    whole = model.generate(PROMPT, max_tokens=50, **options)
    pieces = list(model.stream(PROMPT, max_tokens=50, **options))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens
    assert pieces[-1].finish_reason == whole.finish_reason
    plain = model.generate(PROMPT, max_tokens=50, token_healing=False, **options)
    assert model.generate(model.tokenize(PROMPT), max_tokens=50, **options).tokens == plain.tokens


def test_a_drawn_seed_is_told_and_repeats(model: Model) -> None:
    first = model.generate(PROMPT, max_tokens=20)
    assert model.generate(PROMPT, max_tokens=20, seed=first.seed).tokens == first.tokens


def test_interleaved_streams_do_not_mix(model: Model) -> None:
    streams = [model.stream(PROMPT, max_tokens=20, seed=seed) for seed in (1, 2)]
    found = [[token for piece in pieces for token in piece.tokens] for pieces in zip(*streams, strict=True)]
    expected = [model.generate(PROMPT, max_tokens=20, seed=seed).tokens for seed in (1, 2)]
    assert [list(tokens) for tokens in zip(*found[:-1], strict=True)] == expected


def test_the_context_bounds_prompt_and_continuation(model: Model) -> None:
    full = model.generate([65] * 95, max_tokens=50, ignore_eos=True)
    assert len(full.tokens) == 1 and full.finish_reason == "length"
    with pytest.raises(UserError, match=r"prompt: 96 tokens leave no room in the model's context of 96"):
        model.generate([65] * 96)
    with pytest.raises(UserError, match="prompt: "):
        model.stream("word " * 500)


def test_end_of_text_and_stop_texts_end_it() -> None:
    ended = _scripted([*b"ab", 256, *b"cd"]).generate("x", temperature=0.0)
    assert (ended.text, ended.tokens, ended.finish_reason) == ("ab", [*b"ab"], "stop")
    ignoring = _scripted([*b"ab", 256, *b"cd"]).generate("x", temperature=0.0, ignore_eos=True, max_tokens=5)
    assert (ignoring.text, ignoring.finish_reason) == ("abcd", "length")
    stopped = _scripted([*b"one\n\ntwo"]).generate("x", temperature=0.0, stop="\n\n")
    assert (stopped.text, stopped.tokens, stopped.finish_reason) == ("one", [*b"one\n\n"], "stop")
    cut = _scripted([*"日".encode()]).generate("x", temperature=0.0, max_tokens=2)
    assert (cut.text, cut.finish_reason) == ("\ufffd", "length")


def test_an_empty_prompt_begins_a_document(model: Model) -> None:
    assert model.generate("", temperature=0.0, max_tokens=4).tokens == (
        model.generate([model.bos_token_id], temperature=0.0, max_tokens=4).tokens
    )


@pytest.mark.parametrize("prompt", [[-1], [100000], [1.5], ["a"], None, 7, b"ab", [True]])
def test_prompts_that_are_none_are_refused(prompt: Any, model: Model) -> None:
    with pytest.raises(UserError):
        model.generate(prompt)


def test_unknown_arguments_and_variants_are_refused(bundle: Path, model: Model) -> None:
    with pytest.raises(UserError, match=r"max_token: is no sampling parameter; did you mean max_tokens\?"):
        model.generate(PROMPT, max_token=3)
    with pytest.raises(UserError, match="variant: 'int4' is not in"):
        load(bundle, variant="int4")
    for threads in (0, "2"):
        with pytest.raises(UserError, match="threads: "):
            load(bundle, threads=threads)  # type: ignore[arg-type]
    for path in (None, 5, b"x"):
        with pytest.raises(UserError, match="path: "):
            load(path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"text: .* is no text; give a str"):
        model.tokenize(None)  # type: ignore[arg-type]
    numbers = {"max_tokens": np.int64(2), "temperature": np.float32(0.5), "seed": np.int64(3), "stop": None}
    assert len(model.generate(PROMPT, **numbers).tokens) == 2


def test_command_line_streams_what_the_interface_generates(
    bundle: Path, model: Model, kiara_run: Callable[..., Result]
) -> None:
    options = ("-p", PROMPT, "--max-tokens", "25", "--seed", "5", "--top-k", "40", "--stop", "zzz", "--stop", "yyy")
    expected = model.generate(PROMPT, max_tokens=25, seed=5, top_k=40, stop=["zzz", "yyy"])
    assert kiara_run("generate", bundle, *options).stdout == expected.text + "\n"
    assert kiara_run("generate", bundle, *options, "--echo").stdout == PROMPT + expected.text + "\n"
    values = json.loads(kiara_run("generate", bundle, *options, "--json").stdout)
    assert (values["text"], values["tokens"], values["seed"]) == (expected.text, expected.tokens, 5)
    assert values["completion_tokens"] == len(expected.tokens)
    piped = CliRunner().invoke(main, ["generate", str(bundle), *options[2:]], input=PROMPT)
    assert piped.stdout == expected.text + "\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--temperature", "-1"), "temperature: -1.0 cannot be used"),
        (("--temperature", "nan"), "temperature: nan cannot be used"),
        (("--top-p", "2"), "top_p: 2.0 cannot be used"),
        (("--top-k", "-5"), "top_k: -5 cannot be used"),
        (("--min-p", "-0.5"), "min_p: -0.5 cannot be used"),
        (("--max-tokens", "-1"), "max_tokens: -1 cannot be used"),
        (("--repetition-penalty", "0"), "repetition_penalty: 0.0 cannot be used"),
        (("--seed", "-1"), "seed: -1 cannot be used"),
        (("--stop", ""), "stop: "),
        (("-p", "word " * 1000), "leave no room in the model's context of 96"),
        (("--variant", "int3"), "variant: 'int3' is not in"),
    ],
)
def test_bad_options_are_one_line(
    options: tuple[str, ...], expected: str, bundle: Path, kiara_run: Callable[..., Result]
) -> None:
    result = kiara_run("generate", bundle, "-p", "x", *options)
    assert result.exit_code == 1
    assert expected in result.stderr and result.stderr.count("\n") == 1
    assert not result.stdout


def test_a_closed_standard_input_and_a_full_disk_are_one_line(bundle: Path) -> None:
    command = f"{sys.executable} -m kiara_runtime.commands.main"
    for arguments, expected in ((f"generate {bundle} <&-", "no prompt"), ("--help > /dev/full", "No space left")):
        done = subprocess.run(
            f"{command} {arguments}", shell=True, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode != 0
        assert expected in done.stderr and done.stderr.count("\n") == 1


def test_prompts_of_bytes_that_are_no_text_are_refused(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    result = kiara_run("generate", bundle, "-p", "a\udcff", "--echo", "--json")
    assert result.exit_code == 1 and "prompt: not UTF-8" in result.stderr


def test_piped_prompts_that_are_no_text_are_refused(bundle: Path) -> None:
    result = CliRunner().invoke(main, ["generate", str(bundle)], input=b"caf\xe9")
    assert result.exit_code == 1 and "not UTF-8 at byte 3" in result.stderr


def _log_softmax(logits: Any) -> Any:
    ahead = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return ahead - np.log(np.exp(ahead).sum(-1, keepdims=True))


@pytest.mark.parametrize("cut", [1, 2, 30, 59])
def test_score_is_the_log_likelihood_of_one_pass(bundle: Path, model: Model, cut: int) -> None:
    opened = Bundle.open(bundle)
    ids = model.tokenize(PROMPT * 20)[:60]
    logits = Session(opened.graph_of(None), opened.architecture).decoder().append(np.array(ids))
    expected = _log_softmax(logits)[np.arange(cut - 1, 59), ids[cut:]]
    for _ in range(2):  # the second time with a prefix that is known
        score = model.score(ids[:cut], ids[cut:])
        np.testing.assert_allclose([one.logprob for one in score.tokens], expected, rtol=1e-9)
        assert score.logprob == pytest.approx(expected.sum())
        assert score.greedy == bool((logits.argmax(-1)[cut - 1 : 59] == ids[cut:]).all())
    assert [one.token for one in score.tokens] == ids[cut:]


def test_scores_of_texts_of_nothing_and_of_greedy_ones(model: Model) -> None:
    greedy = model.generate(model.tokenize(PROMPT), max_tokens=1, temperature=0.0)
    assert model.score(PROMPT, greedy.tokens).greedy
    assert model.score(PROMPT, "").logprob == 0.0
    assert model.score("a", "b").tokens[0].token == model.tokenize("b")[0]
    with pytest.raises(UserError, match=r"continuation: .* leave no room"):
        model.score(PROMPT, "word " * 500)


def test_logprobs_of_prompt_and_output(model: Model) -> None:
    ids = model.tokenize(PROMPT)
    result = model.generate(ids, max_tokens=6, temperature=0.9, seed=2, logprobs=3, prompt_logprobs=True)
    assert [one.token for one in result.prompt_logprobs] == ids[1:]
    assert [one.token for one in result.logprobs] == result.tokens
    assert all(len(one.top) == 3 and one.logprob <= one.top[0][1] for one in result.logprobs)
    assert result.prompt_logprobs == model.generate(ids, max_tokens=0, logprobs=3, prompt_logprobs=True).prompt_logprobs
    scored = model.score(ids, result.tokens)
    np.testing.assert_allclose([one.logprob for one in result.logprobs], [one.logprob for one in scored.tokens], 0.2)
    assert model.generate(ids, max_tokens=3).logprobs == []


def test_the_end_of_text_has_a_logprob_of_its_own(model: Model) -> None:
    [end] = model.eos_token_ids
    ended = model.generate(model.tokenize(PROMPT), max_tokens=4, logit_bias={end: 100}, logprobs=0)
    assert (ended.tokens, ended.finish_reason) == ([], "stop")
    assert [one.token for one in ended.logprobs] == [end]
    assert ended.logprobs[0].logprob == pytest.approx(model.score(PROMPT, [end]).logprob, abs=1e-3)


def test_several_continuations_differ_and_repeat(model: Model) -> None:
    first, second = (model.generate_all([PROMPT, "x"], n=3, max_tokens=12, seed=4) for _ in range(2))
    assert [[one.tokens for one in some] for some in first] == [[one.tokens for one in some] for some in second]
    assert len({tuple(one.tokens) for one in first[0]}) == 3
    assert first[0][0].tokens == model.generate(PROMPT, max_tokens=12, seed=4).tokens
    with pytest.raises(UserError, match="n: 0 cannot be used"):
        model.generate_all([PROMPT], n=0)


def test_speculation_repeats_the_plain_text_in_fewer_passes(bundle: Path) -> None:
    """On float32 the last bit decides nothing; the text is one that repeats itself."""
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
def test_structured_output_is_valid_or_cut(model: Model, options: dict[str, Any]) -> None:
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


def test_what_is_stopped_by_an_id_ends_before_it(model: Model) -> None:
    scripted = _scripted([*b"abcd"]).generate("x", temperature=0.0, stop_token_ids=[ord("c")])
    assert (scripted.tokens, scripted.finish_reason) == ([*b"ab"], "stop")
    # So hot that all tokens are about as likely: the text varies, whatever the model has learned.
    varied = {"max_tokens": 20, "temperature": 100.0, "seed": 1, "ignore_eos": True}
    whole = model.generate(PROMPT, **varied)
    place = next(i for i in range(3, 20) if whole.tokens[i] not in whole.tokens[:i])
    stopped = model.generate(PROMPT, **varied, stop_token_ids=[whole.tokens[place]])
    assert (stopped.tokens, stopped.finish_reason) == (whole.tokens[:place], "stop")


def test_the_async_twin(bundle: Path, model: Model) -> None:
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


def test_evaluate_agrees_with_the_training_side(
    bundle: Path, run: Path, tmp_path: Path, kiara: Callable[..., Result], kiara_run: Callable[..., Result]
) -> None:
    text = tmp_path / "held-out.py"
    text.write_text(inspect.getsource(inspect), "utf-8")
    ours = json.loads(kiara_run("evaluate", bundle, text, "--variant", "fp32", "--json").stdout)
    theirs = json.loads(kiara("evaluate", run, "--text", text, "--json").stdout)
    for name in ("loss", "perplexity", "accuracy", "bits_per_byte"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.01), name  # theirs leaves the last, short window out
    assert 0 <= ours["tokens"] - theirs["tokens"] < 96
    assert "bits per byte, perplexity" in kiara_run("evaluate", bundle, text).stdout
    for content, expected in (
        (b"", "no text at all"),
        (b"\xef\xbb\xbf", "no text at all"),
        (b"caf\xe9", "not UTF-8 at byte 3"),
        (b"c\0a\0", "it holds a NUL"),
    ):
        text.write_bytes(content)
        assert expected in kiara_run("evaluate", bundle, text).stderr
    assert "No such file" in kiara_run("evaluate", bundle, tmp_path / "none").stderr


def test_bench_measures_beside_the_receipt(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    sizes = ("--prompt-tokens", "20", "--max-tokens", "6", "--batch", "1", "--batch", "2")
    shown = kiara_run("bench", bundle, *sizes).stdout
    for expected in ("prefill of 20 tokens", "of the receipt's", "decode, 2 at once", "peak memory", "first token"):
        assert expected in shown
    values = json.loads(kiara_run("bench", bundle, *sizes, "--json", "--variant", "fp32").stdout)
    assert values["variant"] == "fp32" and values["decode_tokens_per_second"] > 0 and values["batches"]["2"] > 0


def test_command_line_of_sampling_and_cache(
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
def test_more_bad_options_are_one_line(
    options: tuple[str, ...], expected: str, bundle: Path, kiara_run: Callable[..., Result]
) -> None:
    result = kiara_run("generate", bundle, "-p", "x", *options)
    assert result.exit_code != 0 and not result.stdout
    assert expected in result.stderr and result.stderr.count("\n") == 1
