"""Output folders: written whole or not at all, and never over files that Kiara did not write.

Every command that writes a folder calls `claim`, the only place that decides whether it may, and holds the folder's
lock.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiara_runtime.bundle import MANIFEST as BUNDLE_FILE
from kiara_runtime.bundle import SIGNATURE
from kiara_runtime.errors import UserError
from kiara_runtime.system import FolderLock, on_sudden_end, read_bounded_json

DATASET_FILE, STATE_FILE, CONFIG_FILE = "dataset.json", "trainer_state.json", "config.yaml"
RUN_MARK = "# Written by `kiara train`: the settings of this run.\n"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.tiktoken")
MAX_JSON_BYTES = 16 << 20
_OF_SYSTEMS = frozenset((".DS_Store", "Thumbs.db", "desktop.ini"))  # that file managers leave wherever they look


def _bundle_files(values: dict[str, Any]) -> set[str]:
    return {BUNDLE_FILE, SIGNATURE, *dict(values["files"])} if values["format_version"] and values["sha256"] else set()


def _dataset_files(values: dict[str, Any]) -> set[str]:
    splits = values["splits"]
    shards = {shard["file"] for split in splits.values() for shard in split["shards"]}
    indices = {f"{split}-documents.npy" for split in splits}  # of folders from before these were left out
    return {DATASET_FILE, *TOKENIZER_FILES, *shards, *indices} if values["fingerprint"] else set()


def _checkpoint_files(values: dict[str, Any]) -> set[str]:
    return {STATE_FILE, *dict(values["sha256"])} if isinstance(values["step"], int) else set()


def _imported_files(values: dict[str, Any]) -> set[str]:
    return _checkpoint_files(values) if values["imported"] else set()


# By kind, the file that is its mark, and which files Kiara wrote beside it according to this mark.
_MARKS: dict[str, tuple[str, Callable[[dict[str, Any]], set[str]]]] = {
    "bundle": (BUNDLE_FILE, _bundle_files),
    "prepared folder": (DATASET_FILE, _dataset_files),
    "imported model": (STATE_FILE, _imported_files),
    "checkpoint": (STATE_FILE, _checkpoint_files),
}


def kind_of(folder: Path) -> str | None:
    """What Kiara wrote here: bundle, prepared folder, imported model, checkpoint or run; None if it did not."""
    found = next((kind for kind in _MARKS if _written(folder, kind)), None)
    return "run" if found is None and _is_run(folder) else found


def claim(out: Path, kind: str, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write a folder of this kind at `out` where anything would be lost.

    What stands there is replaced only if it carries our own mark of this kind and holds nothing else; a run is gone
    on with, so other files may lie in it. inputs: files and folders that the command reads.
    """
    place = out.resolve()
    for path in inputs:
        if path.exists() and path.resolve().is_relative_to(place):
            raise UserError(f"--out {out}", f"would replace what it is made from, {path}", "name another")
    if not out.exists():
        if out.is_symlink():
            raise UserError(f"--out {out}", "a link that leads nowhere", "name another, or delete it")
        return
    if not out.is_dir():
        raise UserError(f"--out {out}", "exists and is no folder", "name another or move it away")
    found = kind_of(out)
    if found != kind and any(path.name not in _OF_SYSTEMS for path in out.iterdir()):
        what = f"a {found}, no {kind}" if found else f"no {kind} of Kiara's"
        raise UserError(f"--out {out}", f"exists and is {what}", "name another or move it away")
    foreign = _files(out) - _written(out, kind) if found and kind != "run" else set[str]()
    if foreign:
        raise UserError(
            f"--out {out}", f"holds {min(foreign)}, which Kiara did not write", "move it away or name another"
        )


@contextmanager
def new_folder(out: Path, kind: str, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name, and its place, when the block ends well.

    Raises UserError where `claim` does, and where another process writes `out`.
    """
    claim(out, kind, inputs)
    place = out.resolve()  # a link stays, and what it points to is replaced
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(place)
    except OSError as error:
        raise UserError(f"--out {out}", f"cannot be written ({error.strerror})", "name another place") from None
    with lock:
        clear_leftovers(place)
        claim(out, kind, inputs)  # again, now that nobody else writes it
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}-", suffix=".partial", dir=place.parent))
        try:
            with on_sudden_end(lambda: shutil.rmtree(folder, ignore_errors=True)):
                folder.chmod(0o755)  # mkdtemp's own mode would shut others out of a finished folder
                yield folder
                for path in (*folder.rglob("*"), folder):
                    _sync(path)
            _take_place(folder, place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file whole: a reader sees the old text or the new, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, "utf-8")
    _sync(new)
    new.replace(path)


def clear_leftovers(place: Path) -> None:
    """Mend what a killed process left of the folder `place`, whose lock the caller holds."""
    old = _old(place)
    if old.exists() and not place.exists():
        old.rename(place)  # it was killed between the two renames
    unfinished = re.compile(rf"\.{re.escape(place.name)}-[a-z0-9_]{{8}}\.partial")
    for path in place.parent.iterdir():
        if unfinished.fullmatch(path.name) or path == old:
            shutil.rmtree(path, ignore_errors=True)


def _take_place(folder: Path, out: Path) -> None:
    old = _old(out)
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _written(folder: Path, kind: str) -> set[str]:
    """The files that the mark of this kind says Kiara wrote; none where there is no such mark."""
    if kind not in _MARKS:
        return set()
    name, files = _MARKS[kind]
    try:
        return files(read_bounded_json(folder / name, MAX_JSON_BYTES))
    except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return set()


def _is_run(folder: Path) -> bool:
    """By the first line of its configuration, or by a checkpoint, as runs of before that line have."""
    try:
        with (folder / CONFIG_FILE).open(encoding="utf-8") as file:
            if file.read(len(RUN_MARK)) == RUN_MARK:
                return True
    except (OSError, ValueError):
        pass
    return any(_written(path, "checkpoint") for path in folder.glob("checkpoints/epoch-*"))


def _files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {path.relative_to(folder).as_posix() for path in found if path.name not in _OF_SYSTEMS}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
