from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiara.data import documents
from kiara.data.dataset import Dataset
from kiara.data.documents import Reader, in_parts, read_documents
from kiara.data.split import measure
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

PIECES = st.sampled_from(
    ["a", "Straße", "'ll", "'", "é", "सत्या", "中文", "1", "²", "٣", "Ⅳ", " ", "  ", "\n", "\r\n", "\t", "\u2028", ".",
     "==", "_", "🙂"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=40).map("".join)


@given(text=TEXTS, blocks=st.integers(1, 9), size=st.integers(1, 30))
def test_parts_join_to_the_text_and_are_bounded(text: str, blocks: int, size: int) -> None:
    parts = list(in_parts((text[i : i + blocks] for i in range(0, len(text), blocks)), size))
    assert "".join(parts) == text
    assert all(0 < len(part) <= size for part in parts)
    assert parts == list(in_parts([text], size))


# Tokens that a wrong cut would split.
PAIRS = "St| S|'l|'ll|aa| a|a1|1a|1²|11|\n\n| \n|\n |\n\r|\r\n|\t\n|\n\t|  |.\n|==| =|=.|.a|. |a |1 "
TOKENIZER = Tokenizer.from_merges(
    [*(bytes([byte]) for byte in range(256)), *(pair.encode() for pair in PAIRS.split("|"))], {END_OF_TEXT: 999}
)


@given(text=TEXTS)
def test_parts_end_only_at_token_boundaries(text: str) -> None:
    whole = TOKENIZER.encode(text)
    for i in range(1, len(text)):
        if documents._is_seam(text[i - 1], text[i]):
            assert TOKENIZER.encode(text[:i]) + TOKENIZER.encode(text[i:]) == whole


def test_ordinary_text_is_split_at_token_boundaries(corpus: Path, dataset: Dataset) -> None:
    text = (corpus / "inspect.py").read_text("utf-8")
    parts = list(in_parts([text], 500))
    assert len(parts) > 50
    assert [i for part in parts for i in dataset.tokenizer.encode(part)] == dataset.tokenizer.encode(text)


@pytest.mark.parametrize("block", [1, 2, 3, 1000])
def test_text_is_read_in_blocks_without_its_byte_order_mark(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_BLOCK", block)
    file, lines, marked = tmp_path / "a.txt", tmp_path / "a.jsonl", "\ufeffgrüße 🙂\r\n\ufeffzwei\n"
    file.write_bytes(marked.encode())
    lines.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\xef\xbb\xbf{"text": "\\ufefftwo \xef\xbb\xbf"}\n\xef\xbb\xbf\n')
    texts = [document.read() for document in read_documents([file, lines])]
    assert texts == ["grüße 🙂\r\nzwei\n", "one", "two "]


@pytest.mark.parametrize("block", [3, 1000])
@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", "abcé".encode() + b"\xff", "a.txt: is not UTF-8 at byte 5"),
        ("a.txt", "abcé".encode()[:-1], "a.txt: is not UTF-8 at byte 3"),
        ("a.txt", "ab é".encode() + b"\0x", "a.txt: has a NUL at byte 5"),
        ("a.txt", "ab c".encode("utf-16-le"), "a.txt: has a NUL at byte 1"),
        ("a.txt", "ab".encode("utf-16"), "a.txt: is UTF-16, by its first two bytes; convert it (iconv -f UTF-16"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "a.jsonl: is UTF-16"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16-be"), "a.jsonl:1: has a NUL at byte 0"),
        ("a.jsonl", b'\n{"text": "a\\u0000"}', "a.jsonl:2: has a NUL at byte 1"),
        ("a.jsonl", b'\n{"text": "\xff"}', "a.jsonl:2: is not UTF-8 at byte 10"),
        ("a.jsonl", b'{"body": "a", "n": 1}', "a.jsonl:1: has no text in field 'text' (it has 'body'); choose another"),
        ("a.jsonl", b'["a"]', "a.jsonl:1: has no text in field 'text'; choose another"),
    ],
)  # fmt: skip
def test_invalid_text_is_refused_with_its_position(
    name: str, data: bytes, expected: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_BLOCK", block)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        measure(Reader("text").read([tmp_path / name]))
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_without_a_text_field_setting_the_error_suggests_renaming(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "a"}', "utf-8")
    with pytest.raises(UserError, match="rename it, or give a plain text file") as error:
        measure(read_documents([tmp_path / "a.jsonl"]))
    assert "text_field" not in error.value.remedy


def test_an_overlong_json_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "x" * (2 << 20), "utf-8")
    with pytest.raises(UserError, match=r"a.jsonl:2: is longer than 1 MiB"):
        measure(read_documents([tmp_path / "a.jsonl"]))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_is_never_held_in_memory_whole(name: str, tmp_path: Path) -> None:
    line = "a line of ordinary text, as it stands in a file\n" * 200
    text = json.dumps({"text": line}) + "\n" if name.endswith("l") else line
    (tmp_path / name).write_text(text * 1700, "utf-8")
    size = (tmp_path / name).stat().st_size
    tracemalloc.start()
    sizes, _ = measure(read_documents([tmp_path / name]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes.sum() == 1700 * len(line)
    assert peak < size / 2
