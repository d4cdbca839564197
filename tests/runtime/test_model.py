from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from model_prompts import PROMPT, _scripted

from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.commands.main import main
from kiara_runtime.engine.session import Session
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load
from kiara_runtime.model import Model


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3}, {"seed": 4, "top_k": 20, "min_p": 0.05}])
def test_streamed_pieces_join_to_generate(model: Model, options: dict[str, Any]) -> None:
    whole = model.generate(PROMPT, max_tokens=50, **options)
    pieces = list(model.stream(PROMPT, max_tokens=50, **options))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens
    assert pieces[-1].finish_reason == whole.finish_reason
    plain = model.generate(PROMPT, max_tokens=50, token_healing=False, **options)
    assert model.generate(model.tokenize(PROMPT), max_tokens=50, **options).tokens == plain.tokens


def test_a_drawn_seed_is_returned_and_repeats_its_tokens(model: Model) -> None:
    first = model.generate(PROMPT, max_tokens=20)
    assert model.generate(PROMPT, max_tokens=20, seed=first.seed).tokens == first.tokens


def test_interleaved_streams_do_not_mix(model: Model) -> None:
    streams = [model.stream(PROMPT, max_tokens=20, seed=seed) for seed in (1, 2)]
    found = [[token for piece in pieces for token in piece.tokens] for pieces in zip(*streams, strict=True)]
    expected = [model.generate(PROMPT, max_tokens=20, seed=seed).tokens for seed in (1, 2)]
    assert [list(tokens) for tokens in zip(*found[:-1], strict=True)] == expected


def test_the_context_limits_prompt_and_continuation(model: Model) -> None:
    full = model.generate([65] * 95, max_tokens=50, ignore_eos=True)
    assert len(full.tokens) == 1 and full.finish_reason == "length"
    with pytest.raises(UserError, match=r"prompt: 96 tokens leave no room in the model's context of 96"):
        model.generate([65] * 96)
    with pytest.raises(UserError, match="prompt: "):
        model.stream("word " * 500)


def test_end_of_text_and_stop_sequences_end_generation() -> None:
    ended = _scripted([*b"ab", 256, *b"cd"]).generate("x", temperature=0.0)
    assert (ended.text, ended.tokens, ended.finish_reason) == ("ab", [*b"ab"], "stop")
    ignoring = _scripted([*b"ab", 256, *b"cd"]).generate("x", temperature=0.0, ignore_eos=True, max_tokens=5)
    assert (ignoring.text, ignoring.finish_reason) == ("abcd", "length")
    stopped = _scripted([*b"one\n\ntwo"]).generate("x", temperature=0.0, stop="\n\n")
    assert (stopped.text, stopped.tokens, stopped.finish_reason) == ("one", [*b"one\n\n"], "stop")
    cut = _scripted([*"日".encode()]).generate("x", temperature=0.0, max_tokens=2)
    assert (cut.text, cut.finish_reason) == ("\ufffd", "length")


def test_an_empty_prompt_starts_with_the_bos_token(model: Model) -> None:
    assert model.generate("", temperature=0.0, max_tokens=4).tokens == (
        model.generate([model.bos_token_id], temperature=0.0, max_tokens=4).tokens
    )


@pytest.mark.parametrize("prompt", [[-1], [100000], [1.5], ["a"], None, 7, b"ab", [True]])
def test_invalid_prompts_are_refused(prompt: Any, model: Model) -> None:
    with pytest.raises(UserError):
        model.generate(prompt)


def test_unknown_arguments_and_variants_are_refused(bundle: Path, model: Model) -> None:
    with pytest.raises(UserError, match=r"max_token: is not a sampling parameter; did you mean max_tokens\?"):
        model.generate(PROMPT, max_token=3)
    with pytest.raises(UserError, match="variant: 'int4' is not in"):
        load(bundle, variant="int4")
    for threads in (0, "2"):
        with pytest.raises(UserError, match="threads: "):
            load(bundle, threads=threads)  # type: ignore[arg-type]
    for path in (None, 5, b"x"):
        with pytest.raises(UserError, match="path: "):
            load(path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"text: .* is not text; give a str"):
        model.tokenize(None)  # type: ignore[arg-type]
    numbers = {"max_tokens": np.int64(2), "temperature": np.float32(0.5), "seed": np.int64(3), "stop": None}
    assert len(model.generate(PROMPT, **numbers).tokens) == 2


def test_the_command_line_prints_what_generate_returns(
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
def test_invalid_options_give_a_one_line_error(
    options: tuple[str, ...], expected: str, bundle: Path, kiara_run: Callable[..., Result]
) -> None:
    result = kiara_run("generate", bundle, "-p", "x", *options)
    assert result.exit_code == 1
    assert expected in result.stderr and result.stderr.count("\n") == 1
    assert not result.stdout


def test_a_closed_stdin_and_a_full_disk_give_a_one_line_error(bundle: Path) -> None:
    command = f"{sys.executable} -m kiara_runtime.commands.main"
    for arguments, expected in ((f"generate {bundle} <&-", "no prompt"), ("--help > /dev/full", "No space left")):
        done = subprocess.run(
            f"{command} {arguments}", shell=True, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode != 0
        assert expected in done.stderr and done.stderr.count("\n") == 1


def test_prompts_with_invalid_utf8_are_refused(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    result = kiara_run("generate", bundle, "-p", "a\udcff", "--echo", "--json")
    assert result.exit_code == 1 and "prompt: not UTF-8" in result.stderr


def test_piped_prompts_with_invalid_utf8_are_refused(bundle: Path) -> None:
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
    for _ in range(2):  # the second time with a cached prefix
        score = model.score(ids[:cut], ids[cut:])
        np.testing.assert_allclose([one.logprob for one in score.tokens], expected, rtol=1e-9)
        assert score.logprob == pytest.approx(expected.sum())
        assert score.greedy == bool((logits.argmax(-1)[cut - 1 : 59] == ids[cut:]).all())
    assert [one.token for one in score.tokens] == ids[cut:]


def test_scores_of_empty_and_greedy_continuations(model: Model) -> None:
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
