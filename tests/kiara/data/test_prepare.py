from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece_models import train

from kiara.config.load import load_config
from kiara.data.dataset import Dataset
from kiara.data.documents import PART, Document, Reader, in_parts, read_documents
from kiara.data.encode import Encoder
from kiara.data.part import Part
from kiara.data.pieces import Pieces
from kiara.data.prepare import as_prepared, dataset_of, prepare
from kiara.data.sequences import Split
from kiara.data.sources import STDLIB, resolve_source
from kiara.data.token_ids import TokenIds
from kiara.data.tokenizer_training import train_tokenizer
from kiara.importing.tokenizers import read_tokenizer
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

TEXT = "".join(f"line {i} of a text about nothing in particular\n" for i in range(400))


def _prepare(tmp_path: Path, source: Path | str, *settings: str) -> Dataset:
    train = f"data.train={json.dumps(str(source))}"
    settings = (train, "tokenizer.vocab_size=320", "model.context_length=16", *settings)
    out = tmp_path / "out"
    prepare(load_config(assignments=settings, environ={}), out)
    return Dataset.open(out)


def _documents(dataset: Dataset, split: Split) -> list[str]:
    """The documents of a split, decoded from its token files."""
    tokens = np.concatenate(split.shards).tolist()
    end = dataset.tokenizer.special_tokens[END_OF_TEXT]
    starts = [i for i, token in enumerate(tokens) if token == end]
    assert starts[0] == 0 and len(starts) == dataset.manifest["splits"][split.name]["documents"]
    return [dataset.tokenizer.decode(tokens[a:b]) for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


def test_token_files_decode_to_the_documents_each_in_one_split(dataset: Dataset, corpus: Path) -> None:
    texts = {document.read() for document in read_documents(resolve_source(str(corpus)))}
    train, val = _documents(dataset, dataset.train), _documents(dataset, dataset.val)
    parts = {text for text in train + val if text not in texts}
    assert len(parts) in (0, 2)  # one document may be cut
    whole = {a + b for a in parts for b in parts} & texts
    assert {*train, *val} - parts | whole == texts and len(train) + len(val) == len(texts) + len(whole)
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


def test_a_single_file_is_split_at_a_line(tmp_path: Path) -> None:
    source = tmp_path / "book.txt"
    source.write_text(TEXT, "utf-8")
    dataset = _prepare(tmp_path, source)
    (train,), (val,) = _documents(dataset, dataset.train), _documents(dataset, dataset.val)
    assert train + val == TEXT
    assert train.endswith("\n")
    assert 0.9 < len(train) / len(TEXT) < 1


def test_json_lines_globs_and_a_separate_validation_source(tmp_path: Path) -> None:
    lines = [{"body": f"{TEXT}{i}"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")
    (tmp_path / "b.txt").write_text("held out\n", "utf-8")
    dataset = _prepare(tmp_path, tmp_path / "*.jsonl", "data.text_field=body", f"data.val={tmp_path / 'b.txt'}")
    assert _documents(dataset, dataset.train) == [line["body"] for line in lines]
    assert _documents(dataset, dataset.val) == ["held out\n"]


def test_little_text_gives_a_smaller_vocabulary_without_gaps(tmp_path: Path) -> None:
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
        ("empty.txt", b"", "has no text, or too little"),
        ("blank.txt", b" \n\t\n", "has no text, or too little"),
        ("latin.txt", b"caf\xe9 au lait", "latin.txt: is not UTF-8 at byte 3"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl:2: is not valid JSON"),
        ("field.jsonl", b'{"body": "a"}\n', "field.jsonl:1: has no text in field 'text'"),
        ("surrogate.jsonl", b'{"text": "a \\ud83d b"}\n', "surrogate.jsonl:1: has a lone surrogate"),
        ("deep.JSONL", b"[" * 100_000, "deep.JSONL:1: is not valid JSON"),
        ("mark.txt", "\ufeff\n\ufeff".encode(), "has no text, or too little"),
        ("wide.txt", "some text".encode("utf-16"), "wide.txt: is UTF-16, by its first two bytes; convert it (iconv"),
        ("wide.txt", "some text".encode("utf-16-le"), "wide.txt: has a NUL at byte 1"),
        ("one.txt", b"x", "too little to hold some out"),
        ("missing.txt", None, "there is no such file or folder"),
        ("none-*.txt", None, "no file matches"),
    ],
)
def test_sources_without_text_are_refused_by_name_and_leave_no_files(
    name: str, data: bytes | None, expected: str, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    result = kiara("prepare", tmp_path / name, "--out", tmp_path / "out" / "data")
    assert result.exit_code == 1
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/*")) and not list(tmp_path.glob("out/.*"))


def test_a_folder_without_text_and_an_unrelated_out_folder_are_refused(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="holds no text"):
        resolve_source(str(tmp_path))
    with pytest.raises(UserError, match="exists and is not a Kiara prepared folder"):
        prepare(load_config(assignments=[f"data.train={corpus}"], environ={}), tmp_path)
    assert (tmp_path / "picture.png").exists()


def test_dataset_of_opens_a_prepared_folder_and_prepares_other_sources(dataset: Dataset, tmp_path: Path) -> None:
    settings = ["tokenizer.vocab_size=320", f"data.prepared_dir={tmp_path}"]
    assert dataset_of(load_config(assignments=[f"data.train={dataset.folder}"], environ={})).folder == dataset.folder
    (tmp_path / "a b.txt").write_text(TEXT, "utf-8")
    made = dataset_of(load_config(assignments=[f"data.train={tmp_path / 'a b.txt'}", *settings], environ={}))
    assert made.folder.parent == tmp_path


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.val=x", "has its own validation split"),
        ("tokenizer.vocab_size=8192", "tokenizer.vocab_size: is 8192, but"),
        ("data.val_fraction=0.3", "data.val_fraction: is 0.3, but"),
        ("data.split_seed=512", "data.split_seed: is 512, but"),
        ("data.text_field=body", "data.text_field: is 'body', but"),
        ("tokenizer.vocab_size=512", None),
        ("data.val_fraction=0.05", None),
    ],
)
def test_settings_that_contradict_a_prepared_folder_are_refused(
    setting: str, expected: str | None, dataset: Dataset, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    config = load_config(assignments=[f"data.train={dataset.folder}", setting], environ={})
    if expected is None:
        assert dataset_of(config).folder == dataset.folder
        return
    with pytest.raises(UserError, match=expected):
        dataset_of(config)
    result = kiara("train", "--set", f"data.train={dataset.folder}", "--set", setting, "--out", tmp_path / "run")
    assert result.exit_code == 1 and expected in result.stderr and not (tmp_path / "run").exists()


def test_a_configuration_takes_the_settings_of_a_prepared_folder(dataset: Dataset) -> None:
    config = load_config(assignments=[f"data.train={dataset.folder}"], environ={})
    assert as_prepared(config).tokenizer.vocab_size == 512
    assert as_prepared(as_prepared(config)) == as_prepared(config)


def test_a_folder_prepared_before_settings_were_recorded_still_opens(dataset: Dataset, tmp_path: Path) -> None:
    old = Path(shutil.copytree(dataset.folder, tmp_path / "old"))
    manifest = json.loads((old / "dataset.json").read_text("utf-8"))
    del manifest["settings"]
    (old / "dataset.json").write_text(json.dumps(manifest), "utf-8")
    config = load_config(assignments=[f"data.train={old}", "data.val_fraction=0.3"], environ={})
    assert dataset_of(config).sha256 == dataset.sha256
    with pytest.raises(UserError, match="8192, but"):
        dataset_of(load_config(assignments=[f"data.train={old}", "tokenizer.vocab_size=8192"], environ={}))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["data.text_field=body"], "data.text_field: 'body' has no effect"),
        (["data.val_fraction=0.3", "data.val={}"], "data.val_fraction: 0.3 has no effect together with data.val"),
        (["data.split_seed=3", "data.val={}"], "data.split_seed: 3 has no effect together with data.val"),
        (["data.val=missing.txt"], "data.val: missing.txt: there is no such file"),
        (["training.max_steps=3"], "pass it to `kiara train`"),
        (["model.norm=layer"], "pass it to `kiara train`"),
        (["data.train=x"], "use SOURCE and --out instead"),
    ],
)
def test_settings_without_effect_are_refused(
    settings: list[str], expected: str, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    options = [part for setting in settings for part in ("--set", setting.format(tmp_path / "a.txt"))]
    result = kiara("prepare", tmp_path / "a.txt", "--out", tmp_path / "out", *options)
    assert result.exit_code and expected in result.stderr and not (tmp_path / "out").exists()


def test_folders_written_by_kiara_are_not_read_as_text(
    dataset: Dataset, run: Path, bundle: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for i in range(3):
        (source / f"{i}.txt").write_text(f"{i} {TEXT}", "utf-8")
    texts = resolve_source(str(source))
    shutil.copytree(run, source / "runs" / "one")
    shutil.copytree(bundle, source / "bundle")
    options = ("--out", source / "prepared", "--set", "tokenizer.vocab_size=320")
    assert "Prepared" in kiara("prepare", source, *options).stderr
    second = kiara("prepare", source, *options)
    assert "Up to date" in second.stderr
    assert f"Skipped what Kiara wrote: {source / 'bundle'}, {source / 'prepared'}" in second.stderr
    assert resolve_source(str(source)) == resolve_source(f"{source}/**/*.*") == texts
    for ours, expected in (
        (source / "prepared", "a Kiara prepared folder, not text"),
        (source / "prepared" / "train-00000.bin", "to the prepared folder"),
        (f"{source}/prepared/*.bin", "only files that Kiara wrote match"),
        (source / "runs" / "one", "a Kiara run, not text"),
    ):
        with pytest.raises(UserError, match=expected):
            resolve_source(str(ours))


def test_a_file_changed_while_being_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT, "utf-8")

    def learn(texts: Iterable[str], *rest: Any) -> Tokenizer:
        file.write_text(TEXT[:-200], "utf-8")
        return train_tokenizer(texts, *rest)

    monkeypatch.setattr("kiara.data.prepare.train_tokenizer", learn)
    with pytest.raises(UserError, match="a file changed while it was read; run the same command again"):
        _prepare(tmp_path, file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_long_document_with_long_runs_keeps_all_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiara.data.encode.BATCH_CHARACTERS", 1 << 17)
    text = TEXT + " " * 300_000 + "=" * 300_000 + "a" * 300_000 + "\n" + TEXT
    (tmp_path / "a.txt").write_text(text, "utf-8")
    dataset = _prepare(tmp_path, tmp_path / "a.txt")
    (train,), (val,) = _documents(dataset, dataset.train), _documents(dataset, dataset.val)
    assert train + val == text


def test_another_source_does_not_replace_a_prepared_folder(tmp_path: Path, kiara: Callable[..., Result]) -> None:
    for name in ("a 😀.txt", "b.txt"):
        (tmp_path / name).write_text(TEXT, "utf-8")
    options = ("--out", tmp_path / "data", "--set", "tokenizer.vocab_size=320")
    assert kiara("prepare", tmp_path / "a 😀.txt", *options).exit_code == 0
    result = kiara("prepare", tmp_path / "b.txt", *options)
    assert result.exit_code == 1 and "a 😀.txt; choose another" in result.stderr


def test_damaged_token_files_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "book.txt"
    source.write_text(TEXT, "utf-8")
    folder = _prepare(tmp_path, source).folder
    shard = folder / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00000.bin: is missing or does not have"):
        Dataset.open(folder)
    (folder / "dataset.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="damaged"):
        Dataset.open(folder)


@given(tokens=st.integers(20, 400), length=st.integers(1, 19), rows=st.integers(1, 5), seed=st.integers(0, 9))
def test_an_epoch_of_batches_shows_every_window_once(tokens: int, length: int, rows: int, seed: int) -> None:
    split = Split("train", [np.arange(tokens, dtype=np.uint16), np.arange(tokens, 2 * tokens, dtype=np.uint16)])
    count = split.windows(length)
    rows_seen = np.concatenate([split.batch(seed, step, rows, length) for step in range(-(-count // rows))])
    assert (np.diff(rows_seen, axis=1) == 1).all()  # windows are whole and cross no shard
    assert len(set(rows_seen[:count, 0].tolist())) == count
    assert split.epoch(-(-count // rows) - 1, rows, length) == 0 < split.epoch(count, 1, length)


def test_a_long_document_has_the_tokens_of_the_whole_where_tokens_cross_lines(corpus: Path, tmp_path: Path) -> None:
    """Documents are read in parts; SentencePiece merges across every place where a part may end."""
    texts = [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))]
    train("llama", texts, tmp_path / "tokenizer.model", 600)
    tokenizer = read_tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.engine == "tiktoken" and not tokenizer.is_local
    text = ("word " * 7 + "\n") * 8000
    assert len(text) > 2 * PART
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    document = Document("one", in_parts([text]))
    ids = TokenIds(1, frozenset({2}))
    size = np.array([len(text)])
    part = Part(Reader(), [], [1], size, size, after=False)
    encoder = Encoder(Pieces(tmp_path / "work", "train"), part, tmp_path / "tokenizer", ids, 1)
    card = encoder._fill(tmp_path / "tokens", [document], lambda size: None)
    found = np.fromfile(tmp_path / "tokens", np.uint16)
    assert found.tolist() == [2, 1, *tokenizer.encode(text)] and card["documents"] == 1
