"""Output folders: written completely or not at all, and never over files that Kiara did not write.

Every command that writes a folder calls `claim`, which alone decides whether it may, and holds the folder's lock.
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
from kiara_runtime.system import FolderLock, on_forced_exit, read_bounded_json

DATASET_FILE, STATE_FILE, CONFIG_FILE = "dataset.json", "trainer_state.json", "config.yaml"
RUN_MARK = "# Written by `kiara train`: the settings of this run.\n"
GENERATION_FILE = "generation_config.json"  # which token ids begin and end a text
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.tiktoken")
MAX_JSON_BYTES = 16 << 20
_LICENCE = re.compile(r"(?i)(licen[sc]e|notice|copying|use_policy|gemma_terms)([-_.][\w.-]*)?")
_SYSTEM_FILES = frozenset((".DS_Store", "Thumbs.db", "desktop.ini"))  # left behind by file managers


def _bundle_files(values: dict[str, Any]) -> set[str]:
    return {BUNDLE_FILE, SIGNATURE, *dict(values["files"])} if values["format_version"] and values["sha256"] else set()


def _dataset_files(values: dict[str, Any]) -> set[str]:
    splits = values["splits"]
    shards = {shard["file"] for split in splits.values() for shard in split["shards"]}
    shards |= {part["file"] for split in splits.values() for part in split.get("chat", {}).values()}
    indices = {f"{split}-documents.npy" for split in splits}  # written by older versions
    return {DATASET_FILE, GENERATION_FILE, *TOKENIZER_FILES, *shards, *indices} if values["fingerprint"] else set()


def _checkpoint_files(values: dict[str, Any]) -> set[str]:
    return {STATE_FILE, *dict(values["sha256"])} if isinstance(values["step"], int) else set()


def _imported_files(values: dict[str, Any]) -> set[str]:
    return _checkpoint_files(values) if values["imported"] else set()


# For each kind of folder: its marker file, and which files Kiara wrote according to the marker's contents.
_MARKS: dict[str, tuple[str, Callable[[dict[str, Any]], set[str]]]] = {
    "bundle": (BUNDLE_FILE, _bundle_files),
    "prepared folder": (DATASET_FILE, _dataset_files),
    "imported model": (STATE_FILE, _imported_files),
    "checkpoint": (STATE_FILE, _checkpoint_files),
}


def is_licence(name: str) -> bool:
    """Whether this is the name of a licence's file, which goes along with weights."""
    return _LICENCE.fullmatch(name) is not None


def licences(folder: Path) -> list[Path]:
    """The licence files of a model's folder, if they are of a usual size."""
    found = [path for path in sorted(folder.iterdir()) if is_licence(path.name) and path.is_file()]
    return [path for path in found if path.stat().st_size <= MAX_JSON_BYTES]


def copy_licences(source: Path, folder: Path) -> None:
    for path in licences(source):
        shutil.copyfile(path, folder / path.name)


def kind_of(folder: Path) -> str | None:
    """Kind of a folder Kiara wrote: bundle, prepared folder, imported model, checkpoint or run; None if foreign."""
    found = next((kind for kind in _MARKS if _written(folder, kind)), None)
    return "run" if found is None and _is_run(folder) else found


def claim(out: Path, kind: str, inputs: Iterable[Path] = ()) -> None:
    """Raise UserError if writing a folder of this kind at `out` would lose anything.

    An existing folder is replaced only if its marker file shows that Kiara wrote this kind, and if it holds no other
    files. A run is continued, not replaced, so it may hold other files. inputs: files and folders that the command
    reads.
    """
    place = out.resolve()
    for path in inputs:
        if path.exists() and path.resolve().is_relative_to(place):
            raise UserError(f"--out {out}", f"would replace its own input, {path}", "choose another folder")
    if not out.exists():
        if out.is_symlink():
            raise UserError(f"--out {out}", "is a broken symbolic link", "choose another folder, or delete it")
        return
    if not out.is_dir():
        raise UserError(f"--out {out}", "exists and is not a folder", "choose another or move it away")
    found = kind_of(out)
    if found != kind and any(path.name not in _SYSTEM_FILES for path in out.iterdir()):
        what = f"a Kiara {found} (expected: {kind})" if found else f"not a Kiara {kind}"
        raise UserError(f"--out {out}", f"exists and is {what}", "choose another folder or move it away")
    foreign = _files(out) - _written(out, kind) if found and kind != "run" else set[str]()
    if foreign:
        raise UserError(
            f"--out {out}", f"holds {min(foreign)}, which Kiara did not write", "move it away or choose another folder"
        )


@contextmanager
def new_folder(out: Path, kind: str, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Create a temporary folder beside `out`, and move it to `out` if the block succeeds.

    Raises UserError as `claim` does, and if another process is writing `out`.
    """
    claim(out, kind, inputs)
    place = out.resolve()  # a symbolic link stays, its target is replaced
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(place)
    except OSError as error:
        raise UserError(f"--out {out}", f"cannot be written ({error.strerror})", "choose another folder") from None
    with lock:
        clear_leftovers(place)
        claim(out, kind, inputs)  # again, now that the lock keeps other processes out
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}-", suffix=".partial", dir=place.parent))
        try:
            with on_forced_exit(lambda: shutil.rmtree(folder, ignore_errors=True)):
                folder.chmod(0o755)  # mkdtemp makes it 0700, unreadable for other users
                yield folder
                for path in (*folder.rglob("*"), folder):
                    _sync(path)
            _move_into_place(folder, place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, "utf-8")
    _sync(new)
    new.replace(path)


def clear_leftovers(place: Path) -> None:
    """Clean up after a process that was killed while writing the folder `place`. The caller holds its lock."""
    old = _old(place)
    if old.exists() and not place.exists():
        old.rename(place)  # killed between the two renames
    unfinished = re.compile(rf"\.{re.escape(place.name)}-[a-z0-9_]{{8}}\.partial")
    for path in place.parent.iterdir():
        if unfinished.fullmatch(path.name) or path == old:
            shutil.rmtree(path, ignore_errors=True)


def _move_into_place(folder: Path, out: Path) -> None:
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
    """Files that Kiara wrote, according to the marker file of this kind; empty without one."""
    if kind not in _MARKS:
        return set()
    name, files = _MARKS[kind]
    try:
        return files(read_bounded_json(folder / name, MAX_JSON_BYTES))
    except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return set()


def _is_run(folder: Path) -> bool:
    """Whether the configuration begins with RUN_MARK or, in runs of older versions, there is a checkpoint."""
    try:
        with (folder / CONFIG_FILE).open(encoding="utf-8") as file:
            if file.read(len(RUN_MARK)) == RUN_MARK:
                return True
    except (OSError, ValueError):
        pass
    return any(_written(path, "checkpoint") for path in folder.glob("checkpoints/epoch-*"))


def _files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {path.relative_to(folder).as_posix() for path in found if path.name not in _SYSTEM_FILES}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
