from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kiara.config import load_config
from kiara.data.dataset import Dataset
from kiara.data.engines import make_pieces
from kiara.data.pieces import Pieces
from kiara.data.prepare import prepare
from kiara_runtime.errors import UserError

# Many pieces of little text.
SMALL = {"kiara.data.encode.PIECE_BYTES": 3000, "kiara.data.measuring.GROUP_BYTES": 6000}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Text files, records, and an empty file."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(6):
        lines = [f"file {number} has a line {line} about {number * line}\n" for line in range(90)]
        (folder / f"{number}.txt").write_text("".join(lines), "utf-8")
    records = [json.dumps({"text": f"record {number} " + "with some words " * (number % 40)}) for number in range(60)]
    (folder / "records.jsonl").write_text("\n".join(records), "utf-8")
    (folder / "empty.txt").write_text("", "utf-8")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL.items():
        monkeypatch.setattr(name, size)


def settings(source: Path) -> list[str]:
    return [f"data.train={source}", "tokenizer.vocab_size=320", "model.context_length=16"]


def prepared(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    prepare(load_config(assignments=settings(source), environ={}), out, **options)
    manifest = Dataset.open(out).manifest
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] in ([], [".out.lock"])
    return manifest


def interrupt_after(monkeypatch: pytest.MonkeyPatch, most: int) -> list[Path]:
    """Ctrl-C in the middle of a write, after so many pieces; the list receives the pieces that are written."""
    written: list[Path] = []
    write = Pieces.write

    def counted(self: Pieces, number: int, fill: Any) -> None:
        if len(written) == most:
            fill(self.data(number))
            raise KeyboardInterrupt
        write(self, number, fill)
        written.append(self.data(number))

    monkeypatch.setattr(Pieces, "write", counted)
    return written


@pytest.mark.parametrize("size", [700, 3000, 10**9])
def test_the_result_does_not_depend_on_the_pieces(size: int, source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    whole = prepared(source, tmp_path / "whole" / "out")
    for name in SMALL:
        monkeypatch.setattr(name, size)
    assert prepared(source, tmp_path / "pieces" / "out") == whole


@pytest.mark.parametrize("most", [0, 1, 5, 9, 14])
def test_an_interrupted_command_goes_on_and_writes_the_same(
    most: int, source: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(source, tmp_path / "whole" / "out")
    with monkeypatch.context() as patched:
        first = interrupt_after(patched, most)
        with pytest.raises(KeyboardInterrupt):
            prepared(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    second = interrupt_after(monkeypatch, 10**6)
    assert prepared(source, tmp_path / "out") == whole
    assert len(first) == most and not {*first} & {*second} and len({*first, *second}) > 14


def test_a_killed_command_goes_on(source: Path, tmp_path: Path, small: None) -> None:
    whole = prepared(source, tmp_path / "whole" / "out")
    script = (
        "import os, sys; from pathlib import Path\n"
        "from kiara.config import load_config; from kiara.data import encode, measuring\n"
        "from kiara.data.pieces import Pieces\n"
        "from kiara.data.prepare import prepare\n"
        "encode.PIECE_BYTES, measuring.GROUP_BYTES = 3000, 6000\n"
        "write = Pieces.write\n"
        "def killed(self, number, fill):\n"
        "    if (self.kind, number) == ('train', 4):\n"
        "        fill(self.data(number))\n"
        f"        os.kill(os.getpid(), {signal.SIGKILL})\n"
        "    write(self, number, fill)\n"
        "Pieces.write = killed\n"
        "prepare(load_config(assignments=sys.argv[2:], environ={}), Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "out", *settings(source)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len([*(tmp_path / ".out.pieces").glob("train-*.json")]) == 4
    assert prepared(source, tmp_path / "out") == whole


def test_pieces_that_are_damaged_or_of_other_settings_are_made_again(
    source: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(source, tmp_path / "whole" / "out")
    with monkeypatch.context() as patched:
        written = interrupt_after(patched, 12)
        with pytest.raises(KeyboardInterrupt):
            prepared(source, tmp_path / "out")
    damaged, cut, lost, *_ = written
    damaged.write_bytes(bytes(damaged.stat().st_size))
    cut.write_bytes(cut.read_bytes()[:-1])
    lost.with_suffix(".json").write_text("{", "utf-8")
    with monkeypatch.context() as patched:
        made = interrupt_after(patched, 10**6)
        assert prepared(source, tmp_path / "out") == whole
        assert {damaged, cut, lost} <= {*made}
    (tmp_path / ".other.pieces").mkdir()
    (tmp_path / ".other.pieces" / "fingerprint").write_text("of other text", "utf-8")
    (tmp_path / ".other.pieces" / "train-000000.bin").write_bytes(b"old")
    prepare(load_config(assignments=settings(source), environ={}), tmp_path / "other")
    assert Dataset.open(tmp_path / "other").manifest["splits"] == whole["splits"]


def test_a_foreign_folder_in_the_way_is_kept(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / ".out.pieces" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine", "utf-8")
    with pytest.raises(UserError, match=r"\.out\.pieces: is in the way, and Kiara did not write it; move it away"):
        prepared(source, tmp_path / "out")
    assert mine.read_text("utf-8") == "mine"


def test_refused_text_leaves_no_pieces(source: Path, tmp_path: Path) -> None:
    (source / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin\.txt: is not UTF-8"):
        prepared(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
def test_ray_writes_the_same_bytes_and_tells_errors_in_one_line(source: Path, tmp_path: Path) -> None:
    whole = prepared(source, tmp_path / "whole" / "out")
    script = (
        "from kiara.data import encode, measuring\n"
        "encode.PIECE_BYTES, measuring.GROUP_BYTES = 12000, 12000\n"
        "from kiara.commands.main import main\n"
        "main()\n"
    )

    def command(*options: str) -> subprocess.CompletedProcess[str]:
        arguments = ["prepare", source.name, "--out", "out", "--engine", "ray", *options]
        for setting in settings(source)[1:]:
            arguments += ["--set", setting]
        environ, run = {**os.environ, "RAY_ADDRESS": ""}, [sys.executable, "-c", script, *arguments]
        return subprocess.run(run, cwd=tmp_path, env=environ, text=True, capture_output=True, check=False)

    result = command()
    assert result.returncode == 0, result.stderr
    made = Dataset.open(tmp_path / "out").manifest
    assert made["splits"] == whole["splits"] and "ray" not in result.stderr.lower()
    (source / "latin.txt").write_bytes(b"caf\xe9")
    result = command("--set", "data.val_fraction=0.2")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert "latin.txt: is not UTF-8 at byte 3" in line


def test_every_piece_is_made_once_in_order() -> None:
    class Maker:
        def __init__(self) -> None:
            self.made: list[int] = []

        def __call__(self, number: int, advance: Any) -> None:
            self.made.append(number)
            advance(self.size(number))

        def size(self, number: int) -> int:
            return 10 * number

    seen: list[int] = []
    make_pieces("local", maker := Maker(), [3, 1, 7], seen.append)
    assert maker.made == [3, 1, 7] and seen == [30, 10, 70]
