from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import kiara_runtime.session
from kiara_runtime.cli import main
from kiara_runtime.errors import UserError
from kiara_runtime.generate import Model, load
from kiara_runtime.tokenizer import Tokenizer
from kiara_runtime.tokenizer_json import END_OF_TEXT

PROMPT = "def main(argv):\n    "


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return load(bundle)


def _scripted(ids: list[int], context_length: int = 64) -> Model:
    """A model that says `ids` one after the other, over a byte tokenizer."""
    tokenizer = Tokenizer.from_merges([bytes([byte]) for byte in range(256)], {END_OF_TEXT: 256})

    def begin() -> Any:
        said = iter(ids)
        return lambda fed: np.eye(257, dtype=np.float32)[next(said)]

    return Model(tokenizer, begin, context_length, frozenset({256}), 256)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3}, {"seed": 4, "top_k": 20, "min_p": 0.05}])
def test_stream_joins_to_generate_and_repeats(model: Model, options: dict[str, Any]) -> None:
    whole = model.generate(PROMPT, max_tokens=50, **options)
    pieces = list(model.stream(PROMPT, max_tokens=50, **options))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens
    assert pieces[-1].finish_reason == whole.finish_reason
    assert model.generate(model.tokenize(PROMPT), max_tokens=50, **options).tokens == whole.tokens


def test_a_drawn_seed_is_told_and_repeats(model: Model) -> None:
    first = model.generate(PROMPT, max_tokens=20)
    assert model.generate(PROMPT, max_tokens=20, seed=first.seed).tokens == first.tokens


def test_threads_share_a_model_without_changing_its_output(model: Model) -> None:
    expected = [model.generate(PROMPT, max_tokens=30, seed=seed).tokens for seed in range(6)]
    found: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        found[seed] = model.generate(PROMPT, max_tokens=30, seed=seed).tokens

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(6)] == expected


def test_interleaved_streams_do_not_mix(model: Model) -> None:
    streams = [model.stream(PROMPT, max_tokens=20, seed=seed) for seed in (1, 2)]
    found = [[token for piece in pieces for token in piece.tokens] for pieces in zip(*streams, strict=True)]
    expected = [model.generate(PROMPT, max_tokens=20, seed=seed).tokens for seed in (1, 2)]
    assert [list(tokens) for tokens in zip(*found[:-1], strict=True)] == expected


def test_long_prompts_go_in_chunks_with_the_same_result(
    bundle: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp32 = load(bundle, variant="fp32")
    prompt = (model.tokenize(PROMPT) * 20)[:80]
    expected = fp32.begin()(prompt)
    monkeypatch.setattr(kiara_runtime.session, "CHUNK", 16)
    np.testing.assert_allclose(fp32.begin()(prompt), expected, atol=1e-4)


def test_the_context_bounds_prompt_and_continuation(model: Model) -> None:
    full = model.generate([65] * 95, max_tokens=50, ignore_eos=True)
    assert len(full.tokens) == 1 and full.finish_reason == "length"
    with pytest.raises(UserError, match=r"prompt: 96 tokens leave no room in the context of 96"):
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
    with pytest.raises(TypeError, match="max_token"):
        model.generate(PROMPT, max_token=3)
    with pytest.raises(UserError, match="variant: 'int4' is not in"):
        load(bundle, variant="int4")
    for threads in (0, "2"):
        with pytest.raises(UserError, match="threads: "):
            load(bundle, threads=threads)  # type: ignore[arg-type]
    for path in (None, 5, b"x"):
        with pytest.raises(UserError, match="path: "):
            load(path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="text: give a str"):
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
        (("--temperature", "-1"), "temperature: -1.0 will not do"),
        (("--temperature", "nan"), "temperature: nan will not do"),
        (("--top-p", "2"), "top_p: 2.0 will not do"),
        (("--top-k", "-5"), "top_k: -5 will not do"),
        (("--min-p", "-0.5"), "min_p: -0.5 will not do"),
        (("--max-tokens", "0"), "max_tokens: 0 will not do"),
        (("--repetition-penalty", "0"), "repetition_penalty: 0.0 will not do"),
        (("--seed", "-1"), "seed: -1 will not do"),
        (("--stop", ""), "stop: "),
        (("-p", "word " * 1000), "leave no room in the context of 96"),
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
    command = f"{sys.executable} -m kiara_runtime.cli"
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
