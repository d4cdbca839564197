"""Where text comes from: files, folders, globs, JSON lines and the standard library of this Python.

A source resolves to files, a file to documents (a text file is one, a JSON line is one). Everything is
read as strict UTF-8; what is not is refused with its file and byte offset rather than mended silently.
"""

from __future__ import annotations

import glob
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kiara_runtime.errors import UserError
from kiara_runtime.tokenizer import check_text

STDLIB = "stdlib"
JSON_LINES = (".jsonl", ".ndjson")
# Folders are searched for these; a file named directly or by a glob may have any ending.
TEXT_SUFFIXES = frozenset(
    ".txt .md .rst .tex .html .xml .csv .json .jsonl .ndjson .yaml .yml .toml .ini .cfg .py .pyi .ipynb .c .h "
    ".cc .cpp .hpp .rs .go .java .kt .scala .swift .js .jsx .ts .tsx .css .sh .bash .sql .rb .php .pl .lua .r .jl "
    ".hs .ml .ex .exs .erl .clj .lisp .el .vim .cs .fs .dart .zig .nim .proto .cmake .make .log .po".split()
)
SKIPPED_FOLDERS = frozenset(("__pycache__", "node_modules", "site-packages"))
STDLIB_TESTS = frozenset(("test", "tests", "idle_test"))


@dataclass(frozen=True)
class Document:
    """name: its file, or file:line of a JSON line."""

    name: str
    text: str


def resolve_source(source: str) -> list[Path]:
    """The files of a source, sorted; raises UserError if there are none."""
    if not source.strip():
        raise UserError("SOURCE: empty; name a text file, a folder, a glob or `stdlib`")
    if source == STDLIB:
        return _stdlib_files()
    path = Path(source)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [file for file in _walk(path) if file.suffix.lower() in TEXT_SUFFIXES]
        if not files:
            raise UserError(f"{source}: this folder holds no text or source file; name files with a glob instead")
    elif glob.has_magic(source):
        files = sorted(Path(name) for name in glob.glob(source, recursive=True) if os.path.isfile(name))
        if not files:
            raise UserError(f"{source}: no file matches; put the pattern in quotes and check its folder")
    else:
        raise UserError(f"{source}: there is no such file or folder; name a text file, a folder, a glob or `stdlib`")
    return files


def read_documents(files: list[Path], text_field: str) -> Iterator[Document]:
    """Every document that is not blank, file by file."""
    for file in files:
        text = _read_utf8(file)
        found = (
            _json_lines(file, text, text_field) if file.suffix.lower() in JSON_LINES else [Document(str(file), text)]
        )
        for document in found:
            if document.text.strip():
                yield _encodable(document)


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in _walk(root) if file.suffix == ".py"]
    kept = [file for file in files if not STDLIB_TESTS.intersection(file.relative_to(root).parts)]
    if not kept:
        raise UserError(f"stdlib: this Python keeps no sources in {root}; name a text file or folder of your own")
    return kept


def _walk(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):  # does not follow links
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file() and not file.is_symlink())


def _read_utf8(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8 at byte {error.start} ({error.reason}); convert it (iconv) or leave it out"
        ) from None


def _json_lines(file: Path, text: str, field: str) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}:{number}: not a line of JSON ({error})") from None
        if not isinstance(value, dict) or not isinstance(value.get(field), str):
            raise UserError(f"{file}:{number}: no text in field {field!r}; another field is named by data.text_field")
        yield Document(f"{file}:{number}", value[field])


def _encodable(document: Document) -> Document:
    """JSON can spell half of a surrogate pair, which is no text; and the tokenizer has a bound of its own."""
    try:
        document.text.encode()
        check_text(document.text)
    except UnicodeEncodeError as error:
        raise UserError(f"{document.name}: half a character (a lone surrogate) at {error.start}; mend it") from None
    except UserError as error:
        raise UserError(f"{document.name}: {error}") from None
    return document
