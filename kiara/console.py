"""Log lines and progress bars of a running command, both on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kiara_runtime.system import log_level

logger = logging.getLogger("kiara")
logger.setLevel(logging.DEBUG)  # handlers filter by level; a program that embeds Kiara gets no console handler
console = Console(stderr=True, highlight=False)


def log_to_console() -> None:
    """Log to standard error, from KIARA_LOG_LEVEL (info) up. Bars and lines share one console, so they do not mix."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler: logging.Handler = (
        RichHandler(console=console, show_time=False, show_path=False, show_level=False, highlighter=None)
        if console.is_terminal
        else logging.StreamHandler(sys.stderr)
    )
    handler.setLevel(log_level())
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)


def say_errors_only() -> None:
    """For the processes of a run beside the first, which speaks for all."""
    logger.setLevel(logging.ERROR)
    console.quiet = True


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Log DEBUG and above to `path`, with timestamps, while the block runs."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def log_without_bar(message: str, *values: object) -> None:
    """Log a progress line where no bar can be drawn: to the console without a terminal, always to the log file."""
    logger.log(logging.DEBUG if console.is_terminal else logging.INFO, message, *values)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal until the block ends. The block receives `advance(amount, note="")`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(amount: int, note: str = "") -> None:
            bar.advance(task, amount)
            if note:
                bar.update(task, note=note)

        yield advance
