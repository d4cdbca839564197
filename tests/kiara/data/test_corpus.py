"""Sources of every format, and which of their documents are used: against plain files, and counted by hand."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.ipc
import pytest
from backports import zstd
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from kiara.config.load import load_config
from kiara.data.dataset import Dataset
from kiara.data.documents import MAX_LINE_BYTES, BadTextError, Reader, read_documents
from kiara.data.duplicates import equal_copies, near_copies
from kiara.data.prepare import _sampled, prepare
from kiara.data.sources import resolve_source
from kiara.data.split import measure
from kiara_runtime.errors import UserError

TEXTS = [f"document {i}: " + " ".join(f"word{i}x{j}" for j in range(40 + i)) + "\n" for i in range(60)]


def _write(folder: Path, name: str, texts: list[str]) -> Path:
    """The texts as records or one text file, by the suffixes of the name."""
    file = folder / name
    table = pyarrow.table({"text": texts, "id": list(range(len(texts)))})
    if ".parquet" in name:
        parquet.write_table(table, file)
        return file
    if ".arrow" in name:
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return file
    data = "".join(texts) if ".txt" in name else "".join(json.dumps({"text": text}) + "\n" for text in texts)
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(file.suffix.lower(), bytes)
    file.write_bytes(pack(data.encode()))
    return file


def _prepared(out: Path, settings: dict[str, object]) -> Dataset:
    settings = {"tokenizer.vocab_size": 320, "model.context_length": 16, **settings}
    prepare(load_config(assignments=[f"{key}={json.dumps(value)}" for key, value in settings.items()], environ={}), out)
    return Dataset.open(out)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow", "A.NDJSON.GZ"])
def test_records_of_every_format_give_the_same_tokens(name: str, tmp_path: Path) -> None:
    plain = _prepared(tmp_path / "plain", {"data.train": str(_write(tmp_path, "a.jsonl", TEXTS))})
    (tmp_path / "folder").mkdir()
    _write(tmp_path / "folder", name, TEXTS)
    other = _prepared(tmp_path / "other", {"data.train": str(tmp_path / "folder")})  # found in a folder, too
    assert other.sha256 == plain.sha256


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_compressed_text_reads_as_the_text(name: str, tmp_path: Path) -> None:
    (document,) = read_documents([_write(tmp_path, name, TEXTS)])
    assert document.read() == "".join(TEXTS)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no" + data[2:-9] + b"x" * 9])
def test_damaged_files_are_refused_by_name(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = _write(tmp_path, name, TEXTS)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=rf"{name}: is damaged or cut short \(.+\); get it again"):
        measure(read_documents([file]))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_without_the_column_is_refused_with_those_it_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no column 'body' \(it has 'text'\); choose another"):
        measure(Reader("body").read([_write(tmp_path, name, TEXTS)]))


def test_a_dataset_that_hugging_faces_library_saved_is_read(tmp_path: Path) -> None:
    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    _write(saved, "data-00000-of-00001.arrow", TEXTS)
    for name in ("state.json", "dataset_info.json"):
        (saved / name).write_text('{"description": ""}', "utf-8")
    plain = _prepared(tmp_path / "plain", {"data.train": str(_write(tmp_path, "a.jsonl", TEXTS))})
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}', "utf-8")
    for folder in (saved, tmp_path / "saved"):
        other = _prepared(tmp_path / f"other-{folder.name}", {"data.train": str(folder)})
        assert other.sha256 == plain.sha256


BAD = {
    "latin.txt": (b"caf\xe9", "caf\ufffd", "not UTF-8"),
    "cut.txt": ("né".encode()[:-1], "n\ufffd", "not UTF-8"),
    "nul.txt": (b"a\0b", "a\ufffdb", "NUL characters"),
    "wide.txt": ("a wide text".encode("utf-16"), None, "UTF-16"),
    "latin.jsonl": (b'{"text": "caf\xe9"}\n', "caf\ufffd", "not UTF-8"),
    "lone.jsonl": (b'{"text": "a\\ud83db"}\n', "a\ufffdb", "lone surrogates"),
    "none.jsonl": (b'{"body": "a"}\n', None, "no text in its field"),
    "broken.jsonl": (b'{"text": \n', None, "not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_is_skipped_or_replaced_and_counted(name: str, tmp_path: Path) -> None:
    data, replaced, reason = BAD[name]
    good = _write(tmp_path, "a.jsonl", TEXTS)
    (tmp_path / name).write_bytes(data)
    files = f"{tmp_path}/*.*"
    with pytest.raises(UserError, match=name):
        _prepared(tmp_path / "out", {"data.train": files})
    alone = _prepared(tmp_path / "alone", {"data.train": str(good)})
    skipped = _prepared(tmp_path / "skipped", {"data.train": files, "data.bad_text": "skip"})
    assert skipped.sha256 == alone.sha256
    assert skipped.manifest["dropped"] == {reason: 1} and skipped.manifest["replaced"] == 0
    mended = _prepared(tmp_path / "mended", {"data.train": files, "data.bad_text": "replace"})
    assert mended.manifest["replaced"] == int(replaced is not None)
    assert mended.manifest["dropped"] == ({} if replaced is not None else {reason: 1})
    if replaced is not None:
        texts = [document.read() for document in Reader("text", replace=True).read(resolve_source(files))]
        assert replaced in texts and set(TEXTS) < set(texts)


def test_an_error_about_text_can_name_where_it_is() -> None:
    error = BadTextError("a.txt", "is not UTF-8", "convert it", "not UTF-8").inside("data.val")
    assert isinstance(error, BadTextError) and str(error) == "data.val: a.txt: is not UTF-8; convert it"


def test_text_that_has_replacement_characters_already_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("what was lost: \ufffd\n" * 200, "utf-8")
    made = _prepared(tmp_path / "out", {"data.train": str(tmp_path / "a.txt"), "data.bad_text": "replace"})
    assert made.manifest["replaced"] == 0


def test_a_line_of_an_overlong_record_is_skipped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiara.data.documents.MAX_LINE_BYTES", 1 << 10)
    lines = [json.dumps({"text": text}) for text in ("one", "x" * 5000, "two")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    sizes, _ = measure(read_documents([tmp_path / "a.jsonl"]), bad := Counter())
    assert sizes.tolist() == [3, 0, 3] and bad == {"too long a line": 1} and MAX_LINE_BYTES > 1 << 10


@given(st.lists(st.integers(0, 4), max_size=30), st.data())
def test_equal_copies_are_all_but_the_first(hashes: list[int], data: st.DataObject) -> None:
    sizes = np.array([data.draw(st.integers(0, 2)) for _ in hashes], dtype=np.int64)
    seen, expected = set[int](), list[bool]()
    for size, value in zip(sizes, hashes, strict=True):
        expected.append(bool(size) and value in seen)
        seen |= {value} if size else set()
    assert equal_copies(sizes, np.array(hashes, dtype=np.uint64)).tolist() == expected


def test_near_copies_are_those_with_most_runs_in_common(tmp_path: Path) -> None:
    long = " ".join(f"w{i}" for i in range(400))
    texts = [long, long.replace("w200 ", "other "), "quite another text " * 3, long[:300], "short", "short"]
    documents = list(read_documents([_write(tmp_path, "a.jsonl", texts)]))
    sizes = np.array([len(text) for text in texts])
    assert near_copies(iter(documents), sizes).tolist() == [False, True, False, False, False, True]


def test_repeated_documents_are_dropped_on_request_and_counted(tmp_path: Path) -> None:
    nearly = [text.replace("document", "Document") for text in TEXTS[30:40]]
    file = _write(tmp_path, "a.jsonl", [*TEXTS, *TEXTS[:20], *nearly])
    kept = {
        how: _prepared(tmp_path / how, {"data.train": str(file), "data.dedupe": how})
        for how in ("none", "exact", "near")
    }
    counts = {how: sum(s["documents"] for s in made.manifest["splits"].values()) for how, made in kept.items()}
    dropped = {how: made.manifest["dropped"].get("a copy of another", 0) for how, made in kept.items()}
    assert dropped["none"] == 0 and dropped["exact"] == 20
    assert 25 <= dropped["near"] <= 30  # an estimate: of 40 runs, these share 38
    assert all(60 <= counts[how] + dropped[how] - 30 <= 62 for how in kept)  # one document may be cut in two
    alone = _prepared(tmp_path / "alone", {"data.train": str(_write(tmp_path, "b.jsonl", [*TEXTS, *nearly]))})
    assert kept["exact"].sha256 == alone.sha256


def test_training_text_that_is_held_out_is_dropped_on_request(tmp_path: Path) -> None:
    train, val = _write(tmp_path, "a.jsonl", TEXTS), _write(tmp_path, "val.jsonl", TEXTS[5:9])
    made = _prepared(tmp_path / "out", {"data.train": str(train), "data.val": str(val), "data.dedupe": "exact"})
    assert made.manifest["dropped"] == {"also in data.val": 4}
    assert made.manifest["splits"]["train"]["documents"] == 56


def test_a_mix_has_the_bytes_of_each_source_by_its_weight(tmp_path: Path) -> None:
    many = [f"{i} {text}" for i in range(6) for text in TEXTS]
    a, b = _write(tmp_path, "a.jsonl", many), _write(tmp_path, "b.parquet", TEXTS)
    made = _prepared(tmp_path / "out", {"data.mix": {str(a): 1, str(b): 2}})
    (of_a, of_b) = made.manifest["sources"]
    assert [of_a["source"], of_b["source"]] == [str(a), str(b)]
    assert of_b["documents"] == len(TEXTS)  # the scarcer one, whole
    assert of_a["bytes"] == pytest.approx(of_b["bytes"] / 2, rel=0.1)
    assert made.manifest["dropped"] == {"beyond the share of its source in data.mix": len(many) - of_a["documents"]}
    again = _prepared(tmp_path / "again", {"data.mix": {str(a): 10, str(b): 20}})
    assert again.sha256 == made.sha256


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data.mix": {"stdlib": 0}}, "data.mix: 0.0 is not a weight"),
        (
            {"data.mix": {"stdlib": 1}, "data.train": "a.txt"},
            "data.train: 'a.txt' has no effect together with data.mix",
        ),
        ({"data.mix": {"missing.txt": 1}}, "missing.txt: there is no such file"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(settings: dict[str, object], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        _prepared(tmp_path / "out", settings)
    assert expected in str(error.value) and not (tmp_path / "out").exists()


def test_text_too_short_for_the_context_is_refused_by_prepare(tmp_path: Path, kiara: Callable[..., Result]) -> None:
    file = _write(tmp_path, "a.txt", TEXTS[:2])
    result = kiara("prepare", file, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "too few for sequences of 512; give more text, or" in result.stderr
    assert not (tmp_path / "out").exists()
    shorter = ("--set", "model.context_length=16")
    assert kiara("prepare", file, "--out", tmp_path / "out", *shorter).exit_code == 0


def test_prepare_without_a_source_needs_a_mix(tmp_path: Path, kiara: Callable[..., Result]) -> None:
    result = kiara("prepare", "--out", tmp_path / "out")
    assert result.exit_code == 1 and result.stderr.startswith("Error: SOURCE: is missing; name text")
    mix = json.dumps({str(_write(tmp_path, "a.jsonl", TEXTS)): 1})
    settings = ("--set", f"data.mix={mix}", "--set", "model.context_length=16", "--set", "tokenizer.vocab_size=320")
    assert kiara("prepare", "--out", tmp_path / "out", *settings).exit_code == 0


def test_the_tokenizer_learns_from_parts_spread_over_all_text(tmp_path: Path) -> None:
    file = _write(tmp_path, "a.jsonl", TEXTS)
    assert [*_sampled(read_documents([file]), 1.5)] == TEXTS
    some = [*_sampled(read_documents([file]), 0.25)]
    assert some == TEXTS[3::4]
