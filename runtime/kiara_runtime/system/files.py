"""Reads untrusted files, of bounded size; errors name the file."""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path
from typing import Any, cast

from kiara_runtime.errors import UserError

MAX_JSON_BYTES = 64 << 20


def read_bounded_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of bounded size; raises UserError with the file's name if it is not one."""
    return parse_object(path, read_bounded(path, max_bytes))


def read_bounded(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Read a text file of bounded size; raises UserError with its name if that fails."""
    if not path.is_file():
        raise UserError(path, "there is no such file", "the folder is not complete")
    if path.stat().st_size > max_bytes:
        raise UserError(path, f"larger than {max_bytes >> 20} MiB, too large for such a file", "name another")
    try:
        return path.read_text("utf-8")
    except ValueError as error:
        raise UserError(path, f"not UTF-8 ({error})", "convert it (iconv)") from None


def parse_object(path: Path, text: str) -> dict[str, Any]:
    """Parse a JSON object from `text`, the content of `path`; raises UserError if it is not one."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"not JSON ({error})", "correct it, or fetch it again") from None
    if not isinstance(values, dict):
        raise UserError(path, "not a JSON object", "name another file, or fetch it again")
    return cast("dict[str, Any]", values)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return hashlib.sha256().hexdigest()
        # In one call, which releases the GIL; reading in pieces would wait for it after each.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return hashlib.sha256(content).hexdigest()
