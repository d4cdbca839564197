from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from kiara.config import load_config
from kiara.data import Dataset, Split
from kiara.documents import read_documents
from kiara.prepare import dataset_of, prepare
from kiara.sources import STDLIB, resolve_source
from kiara.split import hold_out
from kiara_runtime.errors import UserError
from kiara_runtime.tokenizer_json import END_OF_TEXT

TEXT = "".join(f"line {i} of a text about nothing in particular\n" for i in range(400))


def _prepare(tmp_path: Path, source: Path | str, *settings: str) -> Dataset:
    settings = (f"data.train={json.dumps(str(source))}", "tokenizer.vocab_size=320", *settings)
    out = tmp_path / "out"
    prepare(load_config(assignments=settings, environ={}), out)
    return Dataset.open(out)


def _documents(dataset: Dataset, split: Split) -> list[str]:
    """The documents of a split, decoded from its token files through its index."""
    tokens = np.concatenate(split.shards).tolist()
    starts = np.load(dataset.folder / f"{split.name}-documents.npy").tolist()
    end = dataset.tokenizer.special_tokens[END_OF_TEXT]
    assert [i for i, token in enumerate(tokens) if token == end] == starts
    return [dataset.tokenizer.decode(tokens[a:b]) for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


def test_tokens_decode_to_the_documents_and_every_one_is_in_one_split(dataset: Dataset, corpus: Path) -> None:
    expected = sorted(document.read() for document in read_documents(resolve_source(str(corpus)), "text"))
    train, val = _documents(dataset, dataset.train), _documents(dataset, dataset.val)
    assert sorted(train + val) == expected
    assert val and len(train) > len(val)
    assert dataset.tokenizer.vocab_size == 512


def test_second_run_does_no_work_until_an_input_changes(tmp_path: Path, corpus: Path) -> None:
    config = load_config(assignments=[f"data.train={corpus}", "tokenizer.vocab_size=320"], environ={})
    out = tmp_path / "out"
    assert prepare(config, out)
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert not prepare(config, out)
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
    assert prepare(load_config(assignments=[f"data.train={corpus}", "tokenizer.vocab_size=384"], environ={}), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_single_file_is_cut_at_a_line(tmp_path: Path) -> None:
    source = tmp_path / "book.txt"
    source.write_text(TEXT, "utf-8")
    dataset = _prepare(tmp_path, source)
    (train,), (val,) = _documents(dataset, dataset.train), _documents(dataset, dataset.val)
    assert train + val == TEXT
    assert train.endswith("\n")
    assert 0.9 < len(train) / len(TEXT) < 1


def test_json_lines_globs_and_a_validation_source_of_its_own(tmp_path: Path) -> None:
    lines = [{"body": f"{TEXT}{i}"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")
    (tmp_path / "b.txt").write_text("held out\n", "utf-8")
    dataset = _prepare(tmp_path, tmp_path / "*.jsonl", "data.text_field=body", f"data.val={tmp_path / 'b.txt'}")
    assert _documents(dataset, dataset.train) == [line["body"] for line in lines]
    assert _documents(dataset, dataset.val) == ["held out\n"]


def test_little_text_gives_a_smaller_vocabulary_of_real_ids(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("abab\n" * 20, "utf-8")
    tokenizer = _prepare(tmp_path, source, "tokenizer.vocab_size=4096").tokenizer
    assert tokenizer.vocab_size == 320
    assert sorted(tokenizer.special_tokens.values())[-1] == 319


def test_the_standard_library_is_found_without_its_tests() -> None:
    files = resolve_source(STDLIB)
    assert sum(file.stat().st_size for file in files) > 5e6
    assert not [file for file in files if "tests" in file.parts or "site-packages" in file.parts]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("empty.txt", b"", "no text at all"),
        ("blank.txt", b" \n\t\n", "no text at all"),
        ("latin.txt", b"caf\xe9 au lait", "latin.txt: not UTF-8 at byte 3"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl:2: not a line of JSON"),
        ("field.jsonl", b'{"body": "a"}\n', "field.jsonl:1: no text in field 'text'"),
        ("surrogate.jsonl", b'{"text": "a \\ud83d b"}\n', "surrogate.jsonl:1: half a character"),
        ("deep.JSONL", b"[" * 100_000, "deep.JSONL:1: not a line of JSON"),
        ("spaces.txt", b"x" + b" " * 300_000, "spaces.txt: text: over 200000 white-space characters"),
        ("missing.txt", None, "there is no such file or folder"),
        ("none-*.txt", None, "no file matches"),
    ],
)
def test_sources_without_text_are_refused_by_name_and_leave_nothing(
    name: str, data: bytes | None, expected: str, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    result = kiara("prepare", tmp_path / name, "--out", tmp_path / "out" / "data")
    assert result.exit_code == 1
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/*")) and not list(tmp_path.glob("out/.*"))


def test_a_folder_without_text_and_a_foreign_out_are_refused(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="holds no text"):
        resolve_source(str(tmp_path))
    with pytest.raises(UserError, match="exists and is no prepared folder"):
        prepare(load_config(assignments=[f"data.train={corpus}"], environ={}), tmp_path)
    assert (tmp_path / "picture.png").exists()


def test_data_of_opens_what_is_prepared_and_prepares_what_is_not(dataset: Dataset, tmp_path: Path) -> None:
    settings = ["tokenizer.vocab_size=320", f"data.prepared_dir={tmp_path}"]
    assert dataset_of(load_config(assignments=[f"data.train={dataset.folder}"], environ={})).folder == dataset.folder
    (tmp_path / "a b.txt").write_text(TEXT, "utf-8")
    made = dataset_of(load_config(assignments=[f"data.train={tmp_path / 'a b.txt'}", *settings], environ={}))
    assert made.folder.parent == tmp_path
    with pytest.raises(UserError, match="brings its own validation split"):
        dataset_of(load_config(assignments=[f"data.train={dataset.folder}", "data.val=x"], environ={}))


def test_another_source_does_not_replace_what_is_prepared(tmp_path: Path, kiara: Callable[..., Result]) -> None:
    for name in ("a 😀.txt", "b.txt"):
        (tmp_path / name).write_text(TEXT, "utf-8")
    options = ("--out", tmp_path / "data", "--set", "tokenizer.vocab_size=320")
    assert kiara("prepare", tmp_path / "a 😀.txt", *options).exit_code == 0
    result = kiara("prepare", tmp_path / "b.txt", *options)
    assert result.exit_code == 1 and "a 😀.txt; name another" in result.stderr


def test_damaged_token_files_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "book.txt"
    source.write_text(TEXT, "utf-8")
    folder = _prepare(tmp_path, source).folder
    shard = folder / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00000.bin: missing or not of"):
        Dataset.open(folder)
    (folder / "dataset.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="damaged"):
        Dataset.open(folder)


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=2, max_size=60),
    fraction=st.floats(0.01, 0.49),
    seed=st.integers(0, 2**32),
)
def test_hold_out_takes_some_but_not_all(sizes: list[int], fraction: float, seed: int) -> None:
    array = np.array(sizes)
    chosen = hold_out(array, fraction, seed)
    assert chosen.any() and not chosen.all()
    assert (chosen == hold_out(array, fraction, seed)).all()
    if min(sizes) <= fraction * sum(sizes):
        assert array[chosen].sum() <= 2 * fraction * sum(sizes)


@given(tokens=st.integers(20, 400), length=st.integers(1, 19), rows=st.integers(1, 5), seed=st.integers(0, 9))
def test_an_epoch_of_batches_shows_every_window_once(tokens: int, length: int, rows: int, seed: int) -> None:
    split = Split("train", [np.arange(tokens, dtype=np.uint16), np.arange(tokens, 2 * tokens, dtype=np.uint16)])
    count = split.windows(length)
    rows_seen = np.concatenate([split.batch(seed, step, rows, length) for step in range(-(-count // rows))])
    assert (np.diff(rows_seen, axis=1) == 1).all()  # windows are whole and cross no shard
    assert len(set(rows_seen[:count, 0].tolist())) == count
    assert split.epoch(-(-count // rows) - 1, rows, length) == 0 < split.epoch(count, 1, length)
