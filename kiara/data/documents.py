"""Read files as documents: each text file is one, and each record of a JSON lines or Parquet file.

Files are read in blocks, as strict UTF-8, without byte order marks. A document comes in parts of bounded size, so that
memory use does not grow with its length. What is wrong with a document's text is raised while its parts are read, as
BadTextError, which leaves the other documents readable.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kiara.data.bad_text import BadTextError
from kiara.data.conversations import conversation_text, preference_text
from kiara.data.formats import COLUMNS, column_values, has_records, opened, text_suffix
from kiara_runtime.errors import UserError

MAX_LINE_BYTES = 1 << 27
PART = 1 << 17  # characters; below the tokenizer's limit for a run of white space
_BLOCK = 1 << 20
_BYTE_ORDER_MARK, _REPLACEMENT = "\ufeff", "\ufffd"


@dataclass(frozen=True)
class Document:
    """name: its file, or file:record. parts: its text, to be read once, before the next document."""

    name: str
    parts: Iterator[str]

    def read(self) -> str:
        return "".join(self.parts)


@dataclass(frozen=True)
class Reader:
    """How files are read. text_field: field of a record; None means `text`, without a setting to change it.

    format: of records, as data.format says; a document's text is then a conversation or two as JSON. replace: put
    U+FFFD in the place of what is not UTF-8, of NULs and of lone surrogates. replaced: how many documents had some, by
    name.
    """

    text_field: str | None = None
    format: Literal["text", "chat", "preference"] = "text"
    replace: bool = False
    replaced: set[str] = field(default_factory=set[str])

    def read(self, files: Iterable[Path]) -> Iterator[Document]:
        """All documents, file by file."""
        for file in files:
            if has_records(file):
                yield from self._records(file)
            elif self.format != "text":
                raise UserError(file, "holds no conversations", "give JSON lines")
            else:
                yield Document(str(file), in_parts(self._text(file)))

    def _records(self, file: Path) -> Iterator[Document]:
        if text_suffix(file) in COLUMNS:
            if self.format == "preference":
                raise UserError(file, "cannot be read as preferences", "give JSON lines")
            column = "messages" if self.format == "chat" else self.text_field or "text"
            for number, value in enumerate(column_values(file, column), start=1):
                name = f"{file}:{number}"
                chat = self.format == "chat"
                found = conversation_text(name, {column: value}) if chat else self._value(name, value, {})
                yield Document(name, in_parts(found))
            return
        for number, line in _lines(file):
            if line.strip().strip(codecs.BOM_UTF8):
                yield Document(f"{file}:{number}", in_parts(self._json_line(f"{file}:{number}", line, number == 1)))

    def _text(self, file: Path) -> Iterator[str]:
        name = str(file)
        decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
        for data in _blocks(file):
            state = decoder.getstate()
            begun = read - len(state[0])
            read += len(data)
            if not begun:
                _no_utf16(name, data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                if not self.replace:
                    raise _not_utf8(name, begun + error.start, error.reason) from None
                self.replaced.add(name)
                lenient = codecs.getincrementaldecoder("utf-8")("replace")
                lenient.setstate(state)
                text = lenient.decode(data, final=not data)
                decoder.setstate(lenient.getstate())
            yield self._checked(text, name, begun)

    def _json_line(self, name: str, line: bytes, first: bool) -> Iterator[str]:
        if first:
            _no_utf16(name.rpartition(":")[0], line)
        held = self.record(name, line)
        if held is None:
            return
        if self.format != "text":
            read = conversation_text if self.format == "chat" else preference_text
            yield from read(name, held)
            return
        yield from self._value(name, held.get(self.text_field or "text"), held)

    def record(self, name: str, line: bytes) -> dict[str, Any] | None:
        """The object of a line, empty if it holds another value; None for a blank line."""
        if len(line) > MAX_LINE_BYTES:
            raise BadTextError(name, f"is longer than {MAX_LINE_BYTES >> 20} MiB", "split the line", "too long a line")
        try:
            text = self._checked(self._decoded(name, line), name)
            record = json.loads(text) if text.strip() else {}
        except RecursionError:
            raise BadTextError(name, "is not valid JSON (nested too deep)", "remove the line", "not JSON") from None
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise BadTextError(name, f"is not valid JSON ({error})", "fix or remove the line", "not JSON") from None
        if not text.strip():
            return None
        return record if isinstance(record, dict) else {}

    def _decoded(self, name: str, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            if not self.replace:
                raise _not_utf8(name, error.start, error.reason) from None
            self.replaced.add(name)
            return line.decode(errors="replace")

    def _value(self, name: str, text: object, record: dict[str, Any]) -> Iterator[str]:
        if not isinstance(text, str):
            others = [key for key, value in record.items() if isinstance(value, str)]
            held = f" (it has {', '.join(map(repr, others[:5]))})" if others else ""
            remedy = "choose another with --set data.text_field=NAME"
            if "messages" in record or {"prompt", "completion"} <= record.keys():
                remedy = "for conversations add --set data.format=chat"
            elif {"chosen", "rejected"} <= record.keys():
                remedy = "for preferences add --set data.format=preference"
            elif not self.text_field:
                remedy = "rename it, or give a plain text file"
            wanted = self.text_field or "text"
            raise BadTextError(name, f"has no text in field {wanted!r}{held:.200}", remedy, "no text in its field")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if not self.replace:
                problem = f"has a lone surrogate at character {error.start}"
                raise BadTextError(name, problem, "fix or remove the line", "lone surrogates") from None
            self.replaced.add(name)
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield self._checked(text, name)

    def _checked(self, text: str, name: str, begun: int = 0) -> str:
        """The text without byte order marks; refuses a NUL, a sign of UTF-16 or binary data. begun: bytes before it."""
        if self.replace and "\0" in text:
            self.replaced.add(name)
            text = text.replace("\0", _REPLACEMENT)
        if (at := text.find("\0")) >= 0:
            raise BadTextError(
                name,
                f"has a NUL at byte {begun + len(text[:at].encode())}, so it is binary data or UTF-16",
                "leave it out, or convert it (iconv -f UTF-16LE -t UTF-8)",
                "NUL characters",
            )
        return text.replace(_BYTE_ORDER_MARK, "")


def read_documents(files: Iterable[Path]) -> Iterator[Document]:
    """All documents of files whose records have their text in the field `text`."""
    return Reader().read(files)


def read_records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON lines file, with their names; raises UserError for a line that is none."""
    reader = Reader()
    for number, line in _lines(file):
        name, filled = f"{file}:{number}", line.strip().strip(codecs.BOM_UTF8)
        if filled and (record := reader.record(name, line)) is not None:
            yield name, record


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


def _blocks(file: Path) -> Iterator[bytes]:
    """The bytes of a file in blocks, the last one empty."""
    with opened(file) as stream:
        yield from iter(partial(stream.read, _BLOCK), b"")
    yield b""


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines. One longer than MAX_LINE_BYTES is cut one byte after that, and its rest is skipped."""
    with opened(file) as stream:
        for number, line in enumerate(iter(partial(stream.readline, MAX_LINE_BYTES + 1), b""), start=1):
            yield number, line
            while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES + 1)


def _no_utf16(name: str, data: bytes) -> None:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        remedy = "convert it (iconv -f UTF-16 -t UTF-8)"
        raise BadTextError(name, "is UTF-16, by its first two bytes", remedy, "UTF-16")


def _not_utf8(name: str, at: int, reason: str) -> BadTextError:
    return BadTextError(
        name, f"is not UTF-8 at byte {at} ({reason})", "convert it (iconv) or leave it out", "not UTF-8"
    )
