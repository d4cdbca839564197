"""Where text comes from: files, folders, globs and the standard library of this Python.

What Kiara itself wrote (token files, runs, checkpoints, bundles) is not text; folders and globs skip it.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from pathlib import Path

from kiara.console import logger
from kiara.data.dataset import MANIFEST
from kiara.data.formats import ARROW, text_suffix
from kiara.files import kind_of
from kiara_runtime.errors import UserError

STDLIB = "stdlib"
# Folders are searched for these; a file named directly or by a glob may have any suffix.
TEXT_SUFFIXES = frozenset(
    ".txt .md .rst .tex .html .xml .csv .json .jsonl .ndjson .parquet .arrow .yaml .yml .toml .ini .cfg .py "
    ".pyi .ipynb .c .h .cc .cpp .hpp .rs .go .java .kt .scala .swift .js .jsx .ts .tsx .css .sh .bash .sql .rb "
    ".php .pl .lua .r .jl .hs .ml .ex .exs .erl .clj .lisp .el .vim .cs .fs .dart .zig .nim .proto .cmake "
    ".make .log .po".split()
)
DESCRIPTIONS = frozenset(("state.json", "dataset_info.json", "dataset_dict.json"))  # of saved datasets
SKIPPED_FOLDERS = frozenset(("__pycache__", "node_modules", "site-packages"))
STDLIB_TESTS = frozenset(("test", "tests", "idle_test"))


def resolve_source(source: str) -> list[Path]:
    """The files of a source, sorted; raises UserError if there are none."""
    if not source.strip():
        raise UserError("source", "is empty", "name a text file, a folder, a glob or `stdlib`")
    if source == STDLIB:
        return _stdlib_files()
    path = Path(source)
    if path.is_file():
        return [_not_tokens(path)]
    if path.is_dir():
        return _folder_files(source, path)
    if glob.has_magic(source):
        return _glob_files(source)
    raise UserError(source, "there is no such file or folder", "name a text file, a folder, a glob or `stdlib`")


def _not_tokens(file: Path) -> Path:
    if (file.parent / MANIFEST).is_file():
        raise UserError(file, f"belongs to the prepared folder {file.parent}", "name the text, or train on it")
    return file


def _folder_files(source: str, root: Path) -> list[Path]:
    if kind := kind_of(root):
        raise UserError(source, f"is a Kiara {kind}, not text", "name a folder of text")
    skipped: list[Path] = []
    files = _without_descriptions([file for file in _walk(root, skipped) if text_suffix(file) in TEXT_SUFFIXES])
    if not files:
        raise UserError(source, "the folder holds no text or source file", "name files with a glob instead")
    return _report_skipped(files, skipped)


def _without_descriptions(files: list[Path]) -> list[Path]:
    """The files without those that describe a dataset saved by Hugging Face's library."""
    splits = {file.parent for file in files if text_suffix(file) in ARROW}
    saved = {*splits, *(folder.parent for folder in splits)}
    return [file for file in files if file.parent not in saved or file.name not in DESCRIPTIONS]


def _glob_files(source: str) -> list[Path]:
    found = sorted(Path(name) for name in glob.glob(source, recursive=True) if os.path.isfile(name))
    ours: dict[Path, bool] = {}
    files = [file for file in found if not any(_is_ours(folder, ours) for folder in file.parents)]
    if not files:
        what = "only files that Kiara wrote match" if found else "no file matches"
        raise UserError(source, what, "put the pattern in quotes and check its folder")
    return _report_skipped(files, [folder for folder, is_ours in ours.items() if is_ours])


def _is_ours(folder: Path, known: dict[Path, bool]) -> bool:
    if folder not in known:
        known[folder] = kind_of(folder) is not None
    return known[folder]


def _report_skipped(files: list[Path], skipped: list[Path]) -> list[Path]:
    if skipped:
        some = ", ".join(map(str, sorted(skipped)[:3])) + (" ..." if len(skipped) > 3 else "")
        logger.info("Skipped what Kiara wrote: %s.", some)
    return files


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in _walk(root, []) if file.suffix == ".py"]
    kept = [file for file in files if not STDLIB_TESTS.intersection(file.relative_to(root).parts)]
    if not kept:
        raise UserError("stdlib", f"this Python has no sources in {root}", "name a text file or folder")
    return kept


def _walk(root: Path, skipped: list[Path]) -> list[Path]:
    """The files below `root`, sorted; folders that Kiara wrote are added to `skipped` instead."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):  # does not follow links
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        ours = [name for name in subfolders if kind_of(Path(folder, name))]
        skipped += [Path(folder, name) for name in ours]
        subfolders[:] = [name for name in subfolders if name not in ours]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file() and not file.is_symlink())
