"""How a file holds its documents: as text or records, compressed or not. Nothing here knows what makes text bad.

Compressed files are read as streams, so that a file which grows beyond measure takes time and no memory.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from kiara_runtime.errors import UserError

JSON_LINES, PARQUET, ARROW = (".jsonl", ".ndjson"), (".parquet",), (".arrow",)  # Arrow: `datasets` saves it
COLUMNS = PARQUET + ARROW
COMPRESSED = (".gz", ".zst")
_ROWS = 256  # of a Parquet file that are held at a time


def text_suffix(file: Path) -> str:
    """The suffix that says what a file holds, in lower case: of `a.jsonl.gz` it is `.jsonl`."""
    name = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    return name.suffix.lower()


def has_records(file: Path) -> bool:
    """Whether a file's text lies in a named field of records: JSON lines, Parquet or Arrow."""
    return text_suffix(file) in (*JSON_LINES, *COLUMNS)


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed; raises UserError if it cannot be read, is damaged or cut short."""
    opener, damage = _opener(file)
    try:
        with opener(file) as stream:
            yield stream
    except damage as error:
        raise _damaged(file, error) from None
    except OSError as error:
        raise UserError(file, f"cannot be read ({error.strerror})", "check its permissions, or leave it out") from None


def _opener(file: Path) -> tuple[Callable[[Path], Any], tuple[type[Exception], ...]]:
    """What opens a file, and what that raises where the file is damaged."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return gzip.open, (gzip.BadGzipFile, EOFError, zlib.error)
    if suffix != ".zst":
        return partial(Path.open, mode="rb"), ()
    try:
        from backports import zstd  # that of Python 3.14
    except ModuleNotFoundError:
        raise _extra(file, "backports.zstd") from None
    return zstd.ZstdFile, (zstd.ZstdError, EOFError)


def column_values(file: Path, field: str) -> Iterator[Any]:
    """The values of a column, row by row; raises UserError where the file is damaged or has no such column."""
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ModuleNotFoundError:
        raise _extra(file, "pyarrow") from None
    try:
        if text_suffix(file) in ARROW:
            with pyarrow.memory_map(str(file)) as mapped, ipc.open_stream(mapped) as stream:
                _check_column(file, field, stream.schema)
                for batch in stream:
                    for begin in range(0, len(batch), _ROWS):
                        yield from batch.column(field).slice(begin, _ROWS).to_pylist()
            return
        with parquet.ParquetFile(file) as table:
            _check_column(file, field, table.schema_arrow)
            for batch in table.iter_batches(_ROWS, columns=[field]):
                yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def _check_column(file: Path, field: str, columns: Any) -> None:
    if field in columns.names:
        return
    kept = [column.name for column in columns if str(column.type) in ("string", "large_string")]
    held = f" (it has {', '.join(map(repr, kept[:5]))})" if kept else ""
    raise UserError(file, f"has no column {field!r}{held:.200}", "choose another with --set data.text_field=NAME")


def _damaged(file: Path, error: Exception) -> UserError:
    told = str(error).partition("\n")[0].rstrip(".")
    return UserError(file, f"is damaged or cut short ({told:.200})", "get it again, or leave it out")


def _extra(file: Path, package: str) -> UserError:
    return UserError(file, f"needs the package {package}", "pip install 'kiara-slm[data]'")
