"""Standard output and error of the commands: a limited encoding or a closed pipe must not end them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any


def show_anything() -> None:
    """Let both streams put a question mark for what their encoding lacks: a Windows pipe's, or that of Latin-1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def tell(line: str) -> None:
    """A line for a person, on standard error. Where nobody reads it, it is lost and nothing else."""
    import click  # programs that embed the runtime do without it

    with contextlib.suppress(OSError, ValueError):
        click.echo(line, err=True)


def json_text(values: Any) -> str:
    """JSON for standard output, which says the same in every encoding."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(values, ensure_ascii=not utf8, allow_nan=False)


def forget_reader() -> None:
    """After the reader of standard output has gone: what is still buffered goes nowhere, without a word."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
