"""Standard output and error of the commands, which must not fail for a limited encoding or a closed pipe."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any


def replace_unencodable() -> None:
    """Let both streams write a question mark for what their encoding lacks, such as Latin-1 or a Windows pipe's."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def tell(line: str) -> None:
    """Print a line on standard error. If the reader has gone, the line is lost and no error is raised."""
    import click  # programs that embed the runtime do not load it

    with contextlib.suppress(OSError, ValueError):
        click.echo(line, err=True)


def json_text(values: Any) -> str:
    """JSON for standard output, escaped to ASCII unless the encoding is UTF-8."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(values, ensure_ascii=not utf8, allow_nan=False)


def discard_stdout() -> None:
    """Silently discard what is still buffered, after the reader of standard output has gone."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
