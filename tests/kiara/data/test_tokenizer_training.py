"""Tokenizer training against the library that it uses, and its limits for long runs without a break."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiara.data import tokenizer_training as tokenizer
from kiara.data.documents import in_parts
from kiara.data.tokenizer_training import LONGEST_PIECE, train_tokenizer
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer_json import SPLIT_PATTERN, byte_characters


def _merges_of_the_library(texts: list[str], vocab_size: int) -> list[bytes]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    learner = Tokenizer(models.BPE())
    split, spell = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"), pre_tokenizers.ByteLevel
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, spell(add_prefix_space=False, use_regex=False)])
    learner.train_from_iterator(texts, trainer)
    to_byte = {character: byte for byte, character in enumerate(byte_characters())}
    names = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    return [bytes(to_byte[character] for character in name) for name, _ in names][256:]


def test_ordinary_text_gives_the_merges_of_the_library(corpus: Path) -> None:
    texts = [file.read_text("utf-8") for file in sorted(corpus.iterdir())]
    parts = [part for text in texts for part in in_parts([text], 5000)]
    ours = train_tokenizer(parts, 1024)
    expected = _merges_of_the_library(texts, 1023)
    assert ours.token_bytes[256 : 256 + len(expected)] == expected


@pytest.mark.parametrize("run", ["a" * 5000, "=" * 5000, " " * 5000 + "x", "\n" * 5000, "中" * 2000, "ab" * 2500])
def test_token_length_is_bounded_by_the_training_piece_length(run: str) -> None:
    """A longer token needs a longer piece, and training on a piece takes time quadratic in its length."""
    learned = train_tokenizer(["ordinary words\n", run] * 3, 512)
    longest = max(learned.token_bytes, key=len)
    assert 32 < len(longest.decode()) <= 2 * LONGEST_PIECE  # twice: white space and the line breaks after it
    assert learned.decode(learned.encode(run)) == run


def test_distinct_text_for_tokenizer_training_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "LEARN_DIFFERENT_BYTES", 10_000)
    same = ["the same words"] * 1000
    different = [10 * "".join("abcdefghij"[int(digit)] for digit in str(i)) for i in range(1000, 2000)]
    assert list(tokenizer._enough(same)) == same
    assert list(tokenizer._enough(different)) == different[:250]
    monkeypatch.setattr(tokenizer, "LEARN_LONG_BYTES", 1000)
    long = [f"words {2 * text} words" for text in different]
    assert list(tokenizer._enough(long)) == long[:13] + ["words \n words"] * 987
    monkeypatch.setattr(tokenizer, "LEARN_BYTES", 140)
    assert len(list(tokenizer._enough(same))) == 10


def _started_processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def recorded(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", recorded)
    return started


def test_an_interrupt_ends_the_training_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started = _started_processes(monkeypatch)

    def texts() -> Iterator[str]:
        yield "some text " * 10_000
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(texts(), 512)
    assert started[0].returncode is not None


def test_a_killed_training_process_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    started = _started_processes(monkeypatch)

    def texts() -> Iterator[str]:
        yield "some text"
        started[0].kill()

    with pytest.raises(UserError, match=r"training process was killed \(-9\)"):
        train_tokenizer(texts(), 512)


def test_the_training_process_ends_when_its_input_closes() -> None:
    with tokenizer._learner() as (write, read):
        write.write(b'{"pattern": "x", "vocab_size": 300}\n"text"\n')
        write.close()
        assert read.read() == b""
