"""Reading files that somebody else may have written: of bounded size, and told by name where they cannot be read."""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path
from typing import Any, cast

from kiara_runtime.errors import UserError

MAX_JSON_BYTES = 64 << 20


def read_bounded_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of bounded size; raises UserError with the file's name where it is none."""
    return parse_object(path, read_bounded(path, max_bytes))


def read_bounded(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """The text of a file of bounded size; raises UserError with its name where there is none."""
    if not path.is_file():
        raise UserError(path, "there is no such file", "the folder is not complete")
    if path.stat().st_size > max_bytes:
        raise UserError(path, f"larger than {max_bytes >> 20} MiB, which no such file should be", "name another")
    try:
        return path.read_text("utf-8")
    except ValueError as error:
        raise UserError(path, f"not UTF-8 ({error})", "convert it (iconv)") from None


def parse_object(path: Path, text: str) -> dict[str, Any]:
    """The JSON object that `text`, of the file `path`, is; raises UserError where it is none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"not JSON ({error})", "mend it, or fetch it again") from None
    if not isinstance(values, dict):
        raise UserError(path, "no JSON object", "name another file, or fetch it again")
    return cast("dict[str, Any]", values)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return hashlib.sha256().hexdigest()
        # In one piece, so that other threads run meanwhile; reading piece by piece would wait for Python each time.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return hashlib.sha256(content).hexdigest()
