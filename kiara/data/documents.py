"""Read files as documents: each text file is one, each line of a .jsonl file is one.

Files are read in blocks, as strict UTF-8. Invalid UTF-8 raises UserError with its position; byte order marks are
dropped. A document comes in parts of bounded size, so that memory use does not grow with its length.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiara_runtime.errors import UserError

JSON_LINES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 1 << 27
PART = 1 << 17  # characters; below the tokenizer's limit for a run of white space
_BLOCK = 1 << 20
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Document:
    """name: its file, or file:line for JSON lines. parts: its text, to be read once, before the next document."""

    name: str
    parts: Iterator[str]

    def read(self) -> str:
        return "".join(self.parts)


def is_json_lines(file: Path) -> bool:
    return file.suffix.lower() in JSON_LINES


def read_documents(files: Iterable[Path], text_field: str | None = None) -> Iterator[Document]:
    """All documents, file by file. text_field: field of a JSON line; None means `text`, without a way to change it."""
    for file in files:
        if is_json_lines(file):
            yield from _json_lines(file, text_field)
        else:
            yield Document(str(file), in_parts(_text(file)))


def in_parts(blocks: Iterable[str], size: int = PART) -> Iterator[str]:
    """Split text into parts of at most `size` characters.

    Parts end where a token must end, so that they give the same tokens as the whole text. Only a run of one kind, such
    as letters or spaces, that is longer than a part is cut in the middle.
    """
    held = ""
    for block in blocks:
        held, start = held + block, 0
        while len(held) - start > size:
            end = _last_seam(held, start, start + size)
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _last_seam(text: str, start: int, end: int) -> int:
    """The last position at which text[start:end] can be cut; `end` if there is none."""
    for at in range(end, start, -1):
        if _is_seam(text[at - 1], text[at]):
            return at
    return end


def _is_seam(before: str, after: str) -> bool:
    """Whether SPLIT_PATTERN always ends a token between these two characters."""
    if before.isalpha():
        return not after.isalpha()
    if before.isdecimal():
        return not after.isnumeric()
    return before == "\n" and not after.isspace()


def _text(file: Path) -> Iterator[str]:
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    for data in _blocks(file):
        begun = read - len(decoder.getstate()[0])
        read += len(data)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_utf8(str(file), begun + error.start, error.reason) from None
        yield _checked(text, str(file), begun)


def _blocks(file: Path) -> Iterator[bytes]:
    """The bytes of a file in blocks, the last one empty."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_BLOCK)
            _no_utf16(file, data)
            while data:
                yield data
                data = opened.read(_BLOCK)
            yield b""
    except OSError as error:
        raise _unreadable(file, error) from None


def _json_lines(file: Path, field: str | None) -> Iterator[Document]:
    for number, line in _lines(file):
        name = f"{file}:{number}"
        try:
            text = _checked(line.decode(), name)
            value = json.loads(text) if text.strip() else None
        except UnicodeDecodeError as error:
            raise _not_utf8(name, error.start, error.reason) from None
        except RecursionError:
            raise UserError(name, "is not valid JSON (nested too deep)", "remove the line") from None
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(name, f"is not valid JSON ({error})", "fix or remove the line") from None
        if text.strip():
            yield Document(name, in_parts([_field(name, value, field)]))


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with file.open("rb") as opened:
            while line := opened.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    _no_utf16(file, line)
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(f"{file}:{number}", f"is longer than {MAX_LINE_BYTES >> 20} MiB", "split the line")
                yield number, line
    except OSError as error:
        raise _unreadable(file, error) from None


def _field(name: str, value: Any, field: str | None) -> str:
    wanted = field or "text"
    text = value.get(wanted) if isinstance(value, dict) else None
    if not isinstance(text, str):
        others = [key for key, other in value.items() if isinstance(other, str)] if isinstance(value, dict) else []
        held = f" (it has {', '.join(map(repr, others[:5]))})" if others else ""
        remedy = "choose another with --set data.text_field=NAME" if field else "rename it, or give a plain text file"
        raise UserError(name, f"has no text in field {wanted!r}{held:.200}", remedy)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        raise UserError(name, f"has a lone surrogate at character {at}", "fix or remove the line") from None
    return _checked(text, name)


def _checked(text: str, name: str, begun: int = 0) -> str:
    """The text without byte order marks; refuses a NUL, a sign of UTF-16 or binary data. begun: bytes before `text`."""
    if (at := text.find("\0")) >= 0:
        place = begun + len(text[:at].encode())
        raise UserError(
            name,
            f"has a NUL at byte {place}, so it is binary data or UTF-16",
            "leave it out, or convert it (iconv -f UTF-16LE -t UTF-8)",
        )
    return text.replace(_BYTE_ORDER_MARK, "")


def _no_utf16(file: Path, data: bytes) -> None:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(file, "is UTF-16, by its first two bytes", "convert it (iconv -f UTF-16 -t UTF-8)")


def _not_utf8(name: str, at: int, reason: str) -> UserError:
    return UserError(name, f"is not UTF-8 at byte {at} ({reason})", "convert it (iconv) or leave it out")


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(file, f"cannot be read ({error.strerror})", "check its permissions, or leave it out")
