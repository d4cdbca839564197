"""Ctrl-C, SIGTERM and a closed terminal end a command cleanly, within a second even inside a long library call.

Python hears a signal only between its own instructions. A thread therefore waits for the raw signal, gives the main
thread a moment to end by itself, and else ends the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

PATIENCE = 0.6  # seconds that a long call gets to come to its end
_STOPS = [signal.SIGTERM, *([signal.SIGHUP] if sys.platform != "win32" else [])]
CODES = {number: 128 + number for number in (signal.SIGINT, *_STOPS)}  # as shells do
LINES = {
    signal.SIGINT: "Interrupted; run the same command again.",
    **{number: f"Stopped by {number.name}; run the same command again." for number in _STOPS},
}

_last_acts: list[Callable[[], None]] = []
_heard: list[set[int]] = []  # of the blocks of `orderly_end` that run


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP. A KeyboardInterrupt, so that the same code cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


@contextmanager
def orderly_end() -> Generator[set[int]]:
    """Turn these signals into KeyboardInterrupt or Terminated for as long as the block runs.

    The block receives the set of those that have come. Does nothing in another thread than the main one. A signal
    that is ignored, as in a shell's background jobs, or that the program handles in its own way, is left so.
    """
    heard: set[int] = set()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hear(number: int, frame: FrameType | None) -> None:
        heard.add(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    _heard.append(heard)
    usual = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(_STOPS, signal.SIG_DFL)}
    before = {number: signal.getsignal(number) for number in usual}
    ours = [number for number, handler in usual.items() if before[number] == handler]
    for number in ours:
        signal.signal(number, hear)
    try:
        with _watched(hear, heard):
            yield heard
    finally:
        _heard.remove(heard)
        for number in ours:
            if signal.getsignal(number) is hear:
                signal.signal(number, before[number])


@contextmanager
def early_interrupts() -> Generator[None]:
    """For the moment in which a command is imported: Ctrl-C ends the process with a line, and no traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: _end(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _watched(hear: object, heard: set[int]) -> Generator[None]:
    """A thread that waits for the raw signals; not on Windows, whose console tells of them in another way."""
    if sys.platform == "win32":
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(read, hear, heard, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.close(write)
        watcher.join()
        os.close(read)


def answered(number: int) -> None:
    """For a command that handles a signal itself: the watcher lets it end in its own time."""
    for heard in _heard:
        heard.add(number)


@contextmanager
def on_sudden_end(act: Callable[[], None]) -> Generator[None]:
    """Call `act` if the process is ended in the middle of a long call in this block, where no `finally` runs."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def leave(code: int) -> None:
    """End the process now that everything is in order: libraries can take seconds to take themselves apart."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _watch(read: int, hear: object, heard: set[int], over: threading.Event) -> None:
    while numbers := os.read(read, 64):
        for number in numbers:
            # A handler that a command has put in the place of ours ends it in its own time.
            if number not in CODES or signal.getsignal(number) is not hear:
                continue
            if not over.wait(PATIENCE) and number not in heard:
                _end(signal.Signals(number))


def _end(number: signal.Signals) -> None:
    for act in reversed(_last_acts):
        with suppress(Exception):
            act()
    with suppress(OSError, ValueError):
        sys.stderr.write(LINES[number] + "\n")
        sys.stderr.flush()
    os._exit(CODES[number])
