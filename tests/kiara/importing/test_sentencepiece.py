"""Tokenizers read from `tokenizer.model` against the SentencePiece library itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece_models import KINDS, train
from tokenizers import Tokenizer as Library

from kiara.importing.sentencepiece import read_pieces
from kiara.importing.tokenizers import read_tokenizer
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import Tokenizer

Pair = tuple[Tokenizer, SentencePieceProcessor]
HARD = [
    "", " ", "  ", "   x", "x   ", "\n\n\n x\t\t\ty", "<b>bold</b>", "a<b> </b>b", "[image][image]",
    "e\u0301 Å ﬁ ½ \u0000\x7f\ufffd", "日本語 한국어 नमस्ते", "👩🏽\u200d🚀🇨🇭", "\u00a0\u2003\u3000\ufeff",
    "def f(self):\n        return 1", "<s></s><unk>", "\U00010400\U0010ffff", "aaaaaaaaaaa", "abababababa", "'''''",
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("sentencepiece")
    texts = [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))]
    theirs = train(request.param, texts, folder / "tokenizer.model")
    ours = read_tokenizer(folder)
    assert ours.engine == ("tokenizers" if "unigram" in request.param else "tiktoken")
    return ours, theirs


def test_hard_texts_have_the_ids_of_the_original(pair: Pair) -> None:
    ours, theirs = pair
    for text in HARD:
        _check(ours, theirs, text)


@given(
    st.text(
        st.sampled_from("aabcdeirst  \n\t<>/b.(019é日") | st.characters(codec="utf-8", exclude_characters="▁"),
        max_size=60,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_text_has_the_ids_of_the_original(pair: Pair, text: str) -> None:
    ours, theirs = pair
    if _normalises(ours):  # the library normalises whole grapheme clusters, the original characters
        text = "".join(character for character in text if ord(character) < 0x250 or character in "日ﬁ①㍿")
    _check(ours, theirs, text)


def _check(ours: Tokenizer, theirs: SentencePieceProcessor, text: str) -> None:
    """The same ids; of Unigram's segmentations with equal scores the library may take another."""
    found, expected = ours.encode(text), theirs.encode(text)
    if ours.engine == "tiktoken" or found == expected:
        assert found == expected, text
        return
    scores = [sum(map(theirs.get_score, ids)) for ids in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3), text
    assert theirs.decode(found) == theirs.decode(expected)


def _normalises(tokenizer: Tokenizer) -> bool:
    return tokenizer.definition["normalizer"]["normalizers"][0]["type"] == "Precompiled"


def test_texts_come_back(pair: Pair) -> None:
    ours, theirs = pair
    for text in HARD if not _normalises(ours) else ["a b", "<b>"]:
        assert ours.decode(ours.encode(text)) == text
    assert len(ours.token_bytes) == theirs.vocab_size()


def test_a_batch_has_the_ids_of_each(pair: Pair, corpus: Path) -> None:
    ours, _ = pair
    texts = [*HARD, *(path.read_text("utf-8")[:2000] for path in sorted(corpus.glob("d*.py")))]
    assert ours.encode_batch(texts, 2) == [ours.encode(text) for text in texts]


@pytest.mark.parametrize("letter", ["a", " ", "日", "ab"])
def test_a_megabyte_without_an_end_of_word_is_encoded_in_linear_time(letter: str, pair: Pair) -> None:
    """Quadratic time would be hours. Both engines join the most frequent pair from the left."""
    ours, _ = pair
    text = "x" + letter * (100_000 if letter == " " else 1_000_000 // len(letter.encode()))
    assert ours.decode(ours.encode(text)) in (text, "x")  # one of them removes blanks at the end


def test_a_part_of_a_text_has_no_blank_before_it(pair: Pair) -> None:
    """As after the text of a chat template; after a special token there is one if there is one before a text."""
    ours, theirs = pair
    whole, part = ours.encode("word"), ours.encode("word", after="text")
    assert ours.encode("word", after="special") == whole
    bare = b"".join(ours.token_bytes[i] for i in part)
    assert bare == b"word"
    assert (whole == part) == (theirs.decode(whole) == "word" and ours.token_bytes[whole[0]][:1] != b" ")


def test_metaspace_puts_a_blank_at_the_beginning_only(corpus: Path, tmp_path: Path) -> None:
    """`prepend_scheme: first`, as newer Llama files have it, against the `tokenizers` library on whole texts."""
    texts = [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))]
    train("llama", texts, tmp_path / "tokenizer.model")
    definition = read_pieces(tmp_path / "tokenizer.model").definition()
    definition["normalizer"] = None
    definition["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False,
    }  # fmt: skip
    library = Library.from_str(json.dumps(definition))
    for engine in ("tiktoken", "tokenizers"):
        ours = Tokenizer(definition, {"kiara_engine": engine})
        assert ours.engine == engine
        for text in HARD:
            if not text.startswith("<s>"):
                assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids, text
        end = ours.special_tokens["</s>"]
        expected = library.encode("one</s>two", add_special_tokens=False).ids
        assert [*ours.encode("one"), end, *ours.encode("two", after="special")] == expected


def test_merges_may_lead_to_added_tokens(corpus: Path, tmp_path: Path) -> None:
    """Gemma's own tokenizer.json spells runs of blanks with `▁`, which is never found in a text, and merges to them."""
    train("gemma", [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))], tmp_path / "tokenizer.model")
    definition = read_pieces(tmp_path / "tokenizer.model").definition()
    model = definition["model"]
    for token in definition["added_tokens"]:
        if token["content"].strip(" ") == "":
            model["vocab"]["▁" * len(token["content"])] = model["vocab"].pop(token["content"])
            token["content"] = "▁" * len(token["content"])
    model["merges"] = [["▁", "▁"], ["▁▁", "▁"], ["▁", "▁▁"], *model["merges"]]
    ours, library = Tokenizer(definition, {}), Library.from_str(json.dumps(definition))
    assert ours.engine == "tiktoken"
    for text in (*HARD, "a  b   c    d     e", "    ", "x\n  y"):
        if not text.startswith("<s>"):
            assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids, text
            assert ours.decode(ours.encode(text)) == text


def test_a_damaged_model_is_refused(corpus: Path, tmp_path: Path) -> None:
    train("llama", [next(corpus.glob("a*.py")).read_text("utf-8") * 20], tmp_path / "tokenizer.model", 400)
    data = (tmp_path / "tokenizer.model").read_bytes()
    for damaged in (b"", b"GGUF", data[: len(data) // 2], bytes(random.Random(0).randbytes(2000))):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokenizer\.model"):
            read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "prefix"),
    [({}, [1]), ({"add_bos_token": False}, []), ({"bos_token": "</s>"}, [2]), ({"bos_token": "<none>"}, [])],
)
def test_a_text_begins_with_the_bos_token_unless_the_files_say_no(
    config: dict[str, Any], prefix: list[int], corpus: Path, tmp_path: Path
) -> None:
    train("llama", [next(corpus.glob("a*.py")).read_text("utf-8") * 20], tmp_path / "tokenizer.model", 400)
    further = {"added_tokens_decoder": {"400": {"content": "<|more|>", "special": True}}}
    if "<none>" not in config.values():
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**further, **config}), "utf-8")
        tokenizer = read_tokenizer(tmp_path)
        assert tokenizer.prompt_prefix == prefix
        assert tokenizer.special_tokens["<|more|>"] == 400
        return
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UserError, match="bos_token '<none>' is not an added token"):
        read_tokenizer(tmp_path)
