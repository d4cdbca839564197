"""tiktoken on our ranks against the `tokenizers` library on our tokenizer.json."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Oracle

from kiara.data.dataset import Dataset
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import MAX_WHITE_SPACE, Tokenizer, check_text
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT, SPLIT_PATTERN

HARD = [
    "",
    " ",
    "\n\n  \r\n\t x",
    "a" * 10_000,
    "\u00a0\u2003\u3000\ufeff",
    "١٢٣ 12345678 ½",
    "👩🏽‍🚀🇨🇭🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "e\u0301 Å ﬁ \u0000 \x7f \ufffd",
    "\U00010400\U0001d7d8\U000e0001\U0010ffff",
    f"{END_OF_TEXT} <|reserved_0|>",
    "don't I'LL we'Re 'tis",
    "def f(self,\n        *args):\n\treturn [x**2 for x in args]  # …\n",
]


@pytest.fixture(scope="module")
def pair(dataset: Dataset) -> tuple[Tokenizer, Oracle]:
    oracle = Oracle.from_file(str(dataset.folder / "tokenizer.json"))
    oracle.encode_special_tokens = True  # ours never parses special tokens in text
    return dataset.tokenizer, oracle


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_hard_strings_tokenize_as_in_the_library(text: str, pair: tuple[Tokenizer, Oracle]) -> None:
    ours, oracle = pair
    assert ours.encode(text) == oracle.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text


@given(st.text(st.sampled_from("aabcdefgrstn _.\n(019é") | st.characters(codec="utf-8"), max_size=80))
@settings(max_examples=400, deadline=None)
def test_any_text_tokenizes_as_in_the_library_and_round_trips(pair: tuple[Tokenizer, Oracle], text: str) -> None:
    ours, oracle = pair
    assert ours.encode(text) == oracle.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("letter", ["a", "\n", "1", "^", "日", " \n", " ."])
def test_a_megabyte_of_one_letter_round_trips(letter: str, pair: tuple[Tokenizer, Oracle]) -> None:
    text = letter * (1_000_000 // len(letter.encode()))
    if letter == "\n" or not letter.strip():
        text = text[:199_000]
    assert pair[0].decode(pair[0].encode(text)) == text


def test_endless_white_space_is_refused_without_a_crash(pair: tuple[Tokenizer, Oracle]) -> None:
    assert pair[0].encode(" " * 199_999)
    for text in (" " * 1_000_000, "x" + "\n " * 500_000 + "x"):
        with pytest.raises(UserError, match="white-space characters in a row"):
            pair[0].encode(text)
        with pytest.raises(UserError, match="white-space characters in a row"):
            pair[0].encode_batch(["a", text], threads=2)


def test_the_corpus_tokenizes_as_in_the_library(pair: tuple[Tokenizer, Oracle], corpus: Path) -> None:
    ours, oracle = pair
    for file in corpus.iterdir():
        text = file.read_text("utf-8")
        assert ours.encode(text) == oracle.encode(text, add_special_tokens=False).ids


def test_special_tokens_are_never_parsed_from_text(pair: tuple[Tokenizer, Oracle]) -> None:
    ours, _ = pair
    assert ours.special_tokens[END_OF_TEXT] not in ours.encode(f"a{END_OF_TEXT}b")
    assert ours.decode([ours.special_tokens[END_OF_TEXT], *ours.encode("a")]) == "a"


def test_tiktoken_file_is_the_same_tokenizer(dataset: Dataset, tmp_path: Path) -> None:
    import base64

    lines = (dataset.folder / "tokenizer.tiktoken").read_text("utf-8").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    plain = tiktoken.Encoding("plain", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    text = "".join(HARD)
    assert plain.encode_ordinary(text) == dataset.tokenizer.encode(text)


def test_a_saved_tokenizer_loads_unchanged(dataset: Dataset, tmp_path: Path) -> None:
    dataset.tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.token_bytes, loaded.special_tokens, loaded.definition) == (
        dataset.tokenizer.token_bytes,
        dataset.tokenizer.special_tokens,
        dataset.tokenizer.definition,
    )


def test_any_bytes_decode(pair: tuple[Tokenizer, Oracle]) -> None:
    ids = [random.Random(0).randrange(256) for _ in range(500)]
    assert pair[0].decode(ids) == bytes(ids).decode("utf-8", "replace")
    for bad in ([-1], [pair[0].vocab_size]):
        with pytest.raises(UserError, match="outside the vocabulary"):
            pair[0].decode(bad)


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("model"),
        lambda values: values["model"].update(type="Unigram"),
        lambda values: values["model"].update(byte_fallback=True),
        lambda values: values["model"]["vocab"].update(A=1),
        lambda values: values["model"]["vocab"].update({"日": 9999}),
        lambda values: values["added_tokens"][0].update(id=7),
        lambda values: values["pre_tokenizer"].update(pretokenizers=[]),
    ],
)
def test_unsupported_tokenizers_are_refused(damage: object, dataset: Dataset, tmp_path: Path) -> None:
    dataset.tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text("utf-8"))
    damage(values)  # type: ignore[operator]
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(UserError, match="tokenizer"):
        Tokenizer.load(tmp_path)


def test_long_white_space_runs_are_checked_in_linear_time() -> None:
    """Scanning again from every position would take minutes."""
    text = (" " * (MAX_WHITE_SPACE - 1) + "a") * 20
    assert check_text(text) is text
    with pytest.raises(UserError, match="white-space characters in a row"):
        check_text(text + " " * MAX_WHITE_SPACE)
