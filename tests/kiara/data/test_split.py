from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import regex
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from kiara.config.load import load_config
from kiara.data.dataset import Dataset
from kiara.data.documents import Document, in_parts
from kiara.data.prepare import prepare
from kiara.data.split import cut_place, divide, held_out, hold_out, measure, trained

SOME = st.text("ab é語\n\r.", min_size=2, max_size=12).filter(str.strip)
REPEATED = st.builds(lambda text, times: text * times, SOME, st.sampled_from([1, 1, 2, 30, 400]))


def _documents(texts: Sequence[str]) -> list[Document]:
    return [Document(str(i), in_parts([text], 1000)) for i, text in enumerate(texts)]


def _divided(texts: Sequence[str], fraction: float, seed: int = 0) -> tuple[list[str], list[str], np.ndarray]:
    sizes, hashes = measure(_documents(texts))
    heads = divide(sizes, hashes, fraction, seed, lambda i: _documents(texts)[i])
    train, val = (side(_documents(texts), sizes, heads) for side in (trained, held_out))
    return [document.read() for document in train], [document.read() for document in val], heads


@given(st.lists(REPEATED, min_size=1, max_size=12), st.lists(st.integers(0, 5)), st.floats(0.01, 0.49), st.integers(0))
def test_the_split_is_within_a_tenth_loses_nothing_and_keeps_equal_texts_together(
    texts: list[str], again: list[int], fraction: float, seed: int
) -> None:
    texts = texts + [texts[i % len(texts)] for i in again]
    train, val, heads = _divided(texts, fraction, seed)
    assert train and val
    sizes = [len(text.encode()) for text in texts]
    off = abs(sum(len(text.encode()) for text in val) - fraction * sum(sizes))
    copies = max(Counter(texts).values())
    assert off <= max(0.1 * fraction * sum(sizes), copies * 4)  # 4: a cut moves by whole characters
    assert len({(text, int(head)) for text, head in zip(texts, heads, strict=True)}) == len(set(texts))
    whole = [text.encode() for text in texts]
    assert "".join(train) == b"".join(w[:head] for w, head in zip(whole, heads, strict=True)).decode()
    assert "".join(val) == b"".join(w[head:] for w, head in zip(whole, heads, strict=True)).decode()
    assert sum(0 < head < size for head, size in zip(heads, sizes, strict=True)) in range(copies + 1)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.floats(0.001, 0.49), st.integers(0, 2**32))
def test_held_out_documents_plus_a_cut_reach_the_target(sizes: list[int], fraction: float, seed: int) -> None:
    array = np.array(sizes)
    chosen, missing = hold_out(array, fraction, seed)
    assert not chosen.all()
    assert abs(array[chosen].sum() + missing - fraction * array.sum()) <= 0.1 * fraction * array.sum() + 1e-6
    assert missing <= array[~chosen].max()
    assert (chosen == hold_out(array, fraction, seed)[0]).all()


def test_many_documents_are_held_out_whole_and_chosen_by_the_seed() -> None:
    texts = [f"document {i} with {i % 7} words " * (1 + i % 5) for i in range(400)]
    train, val, _ = _divided(texts, 0.05)
    assert set(train) | set(val) == set(texts)
    assert set(val) != set(_divided(texts, 0.05, seed=1)[1])


def test_small_documents_are_not_all_held_out_instead_of_a_large_one() -> None:
    texts = ["".join(f"line {i} of a large text\n" for i in range(5000)), *(f"a small one, {i}\n" for i in range(10))]
    train, val, _ = _divided(texts, 0.05)
    assert set(texts[1:]) <= {*train, *val} and len(train) >= 10


@pytest.mark.parametrize(
    ("text", "aim", "slack", "expected"),
    [
        ("aaaa bbbb\ncccc dddd", 12, 3, 10),
        ("aaaa bbbb\ncccc dddd", 13, 2, 15),
        ("aaaa\r\nbbbb", 5, 2, 6),
        ("aaaa\rbbbb", 4, 2, 5),
        ("aaaabbbb", 3, 1, 3),
        ("語語語語", 7, 1, 6),
        ("👩‍👩‍👧" * 4, 20, 1, 18),
        ("e\u0301" * 4, 7, 1, 6),
        ("a", 0.5, 1, None),
        ("👩‍👩‍👧", 9, 1, None),
    ],
)
def test_a_cut_falls_at_a_line_a_word_or_a_character(text: str, aim: float, slack: float, expected: int | None) -> None:
    size = len(text.encode())
    for part in (1000, 1):
        assert cut_place(Document("", in_parts([text], part)), size, aim, slack) == expected


@given(st.text("a \n\r語\u0301👩‍🇩🇪", min_size=2, max_size=300).filter(str.strip), st.floats(0.01, 0.49))
def test_no_cut_splits_a_grapheme(text: str, fraction: float) -> None:
    (train, *_), val, _ = _divided([text], fraction)
    if val and train:
        assert regex.findall(r"\X", train) + regex.findall(r"\X", val[0]) == regex.findall(r"\X", text)


def _lines(count: int) -> str:
    return "".join(f"line {i} of a preface\n" for i in range(count))


@pytest.mark.parametrize(
    "texts",
    [
        [_lines(1000) + "word " * 50_000],
        ["A title\n" + "x" * 300_000],
        ["a title\n" + "語" * 50_000 + "x" * 10_000],
        [_lines(1000) + " " * 200_000 + "the end"],
        [_lines(400), _lines(401)],
        [_lines(300 + i) for i in range(5)],
        [_lines(20_000), *(f"small {i}\n" for i in range(9))],
        [_lines(50)] * 40,
        [f"document {i % 40}: {_lines(10 + i % 40)}" for i in range(600)],
    ],
    ids="last-line one-line uneven-bytes spaces two five one-large all-equal equal-ones".split(),
)
def test_prepared_folders_hold_out_the_requested_fraction(
    texts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_bytes(text.encode())
    settings = [f"data.train={json.dumps(str(tmp_path / '*.txt'))}", "tokenizer.vocab_size=320"]
    settings.append("model.context_length=16")
    with caplog.at_level(logging.WARNING):
        prepare(load_config(assignments=settings, environ={}), tmp_path / "out")
    splits = Dataset.open(tmp_path / "out").manifest["splits"]
    size = sum(len(text.encode()) for text in texts)
    assert splits["train"]["bytes"] + splits["val"]["bytes"] == size
    assert 0.045 <= splits["val"]["bytes"] / size <= 0.055
    assert "held out" not in caplog.text


def test_a_validation_fraction_that_cannot_be_met_is_reported(tmp_path: Path, kiara: Callable[..., Result]) -> None:
    """Characters of many code points are not cut, and there are four of them."""
    characters = ["e" + "".join(chr(0x300 + (i * j) % 97) for j in range(50)) for i in (1, 5, 11, 23)]
    lines = [json.dumps({"text": characters[0] + characters[1]}), json.dumps({"text": characters[2] + characters[3]})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    options = ("--set", "tokenizer.vocab_size=320", "--set", "model.context_length=16")
    result = kiara("prepare", tmp_path / "a.jsonl", "--out", tmp_path / "out", *options)
    assert result.exit_code == 0
    assert "25 % of the text is held out, not the 5 % of data.val_fraction" in result.stderr


def test_validation_documents_also_in_the_training_text_are_reported(
    tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    for name, numbers in (("train", range(20)), ("val", range(17, 30))):
        lines = [json.dumps({"text": f"the text of document {i}"}) for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    options = ("--set", f"data.val={tmp_path / 'val.jsonl'}", "--set", "tokenizer.vocab_size=320")
    options += ("--set", "model.context_length=16")
    result = kiara("prepare", tmp_path / "train.jsonl", "--out", tmp_path / "out", *options)
    assert result.exit_code == 0
    assert "3 of the 13 documents of data.val are also in data.train" in result.stderr
