"""What a person sees while a command works: log lines and progress bars, both on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger("kiara")
logger.setLevel(logging.DEBUG)  # the handlers choose; a program that embeds Kiara has none on the console
console = Console(stderr=True, highlight=False)


def log_to_console() -> None:
    """INFO and above to standard error. Bars and lines share one console, so that neither tears the other."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler: logging.Handler = (
        RichHandler(console=console, show_time=False, show_path=False, show_level=False, highlighter=None)
        if console.is_terminal
        else logging.StreamHandler(sys.stderr)
    )
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)


def say_errors_only() -> None:
    """For the processes of a run beside the first, which speaks for all."""
    logger.setLevel(logging.ERROR)
    console.quiet = True


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """DEBUG and above to `path`, with times, for as long as the block runs."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def log_without_bar(message: str, *values: object) -> None:
    """A progress line for where there is no terminal to draw a bar on; the log file has it always."""
    logger.log(logging.DEBUG if console.is_terminal else logging.INFO, message, *values)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar; the block receives `advance(amount, note="")`. Shows only on a terminal and leaves no trace."""
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
