"""Files to documents: a text file is one, a line of a .jsonl file is one.

Files are read in blocks, as strict UTF-8. Invalid UTF-8 is refused with its position; a byte
order mark is dropped wherever it stands. A document comes in parts of bounded
size, so that nothing that is done with it needs more memory where it is long.
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
PART = 1 << 17  # characters; below the bound of kiara_runtime.tokenizer on white space
_BLOCK = 1 << 20
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Document:
    """name: its file, or file:line of a JSON line. parts: its text in order, to be read once, before the next one's."""

    name: str
    parts: Iterator[str]

    def read(self) -> str:
        return "".join(self.parts)


def is_json_lines(file: Path) -> bool:
    return file.suffix.lower() in JSON_LINES


def read_documents(files: Iterable[Path], text_field: str | None = None) -> Iterator[Document]:
    """Every document, file by file. text_field: of a JSON line; None where the caller's user cannot name another."""
    for file in files:
        if is_json_lines(file):
            yield from _json_lines(file, text_field)
        else:
            yield Document(str(file), in_parts(_text(file)))


def in_parts(blocks: Iterable[str], size: int = PART) -> Iterator[str]:
    """The text in parts of at most `size` characters.

    A part ends where tokens end whatever follows, so that the parts give the tokens of the whole; only where a run
    of one kind, such as letters or spaces, is longer than a part is it cut anywhere.
    """
    held = ""
    for block in blocks:
        held, start = held + block, 0
        while len(held) - start > size:
            seam = _last_seam(held, start, start + size)
            yield held[start:seam]
            start = seam
        held = held[start:]
    if held:
        yield held


def _last_seam(text: str, start: int, end: int) -> int:
    for at in range(end, start, -1):
        if _is_seam(text[at - 1], text[at]):
            return at
    return end


def _is_seam(before: str, after: str) -> bool:
    """Whether every token of SPLIT_PATTERN ends between the two: a letter or number is followed by neither there."""
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
    """The bytes of a file, an empty block last."""
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
            raise UserError(name, "not a line of JSON (nested too deep)", "leave the line out") from None
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(name, f"not a line of JSON ({error})", "mend the line or leave it out") from None
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
                    raise UserError(f"{file}:{number}", f"a line of over {MAX_LINE_BYTES >> 20} MiB", "split its text")
                yield number, line
    except OSError as error:
        raise _unreadable(file, error) from None


def _field(name: str, value: Any, field: str | None) -> str:
    wanted = field or "text"
    text = value.get(wanted) if isinstance(value, dict) else None
    if not isinstance(text, str):
        others = [key for key, other in value.items() if isinstance(other, str)] if isinstance(value, dict) else []
        held = f" (it has {', '.join(map(repr, others[:5]))})" if others else ""
        remedy = "name another with --set data.text_field=NAME" if field else "rename it, or give a plain text file"
        raise UserError(name, f"no text in field {wanted!r}{held:.200}", remedy)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        raise UserError(name, f"half a character (a lone surrogate) at {at}", "mend the line or leave it out") from None
    return _checked(text, name)


def _checked(text: str, name: str, begun: int = 0) -> str:
    """Without byte order marks. begun: bytes before `text`. No text has a NUL; UTF-16 and most binaries do."""
    if (at := text.find("\0")) >= 0:
        place = begun + len(text[:at].encode())
        raise UserError(
            name,
            f"a NUL at byte {place}, so binary data or UTF-16",
            "leave it out, or convert it (iconv -f UTF-16LE -t UTF-8)",
        )
    return text.replace(_BYTE_ORDER_MARK, "")


def _no_utf16(file: Path, data: bytes) -> None:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(file, "UTF-16, by its first two bytes", "convert it (iconv -f UTF-16 -t UTF-8)")


def _not_utf8(name: str, at: int, reason: str) -> UserError:
    return UserError(name, f"not UTF-8 at byte {at} ({reason})", "convert it (iconv) or leave it out")


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(file, f"cannot be read ({error.strerror})", "check your rights, or leave it out")
