"""Ctrl-C, SIGTERM and a closed terminal end a command cleanly, within a second even inside a long library call.

Python handles a signal only between its own instructions. So a thread waits for the raw signal, gives the main thread
a moment to end by itself, and otherwise ends the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

PATIENCE = 0.6  # seconds that a long call gets to finish
_STOPS = [signal.SIGTERM, *([signal.SIGHUP] if sys.platform != "win32" else [])]
CODES = {number: 128 + number for number in (signal.SIGINT, *_STOPS)}  # as in shells
LINES = {
    signal.SIGINT: "Interrupted; run the same command again.",
    **{number: f"Stopped by {number.name}; run the same command again." for number in _STOPS},
}

_last_acts: list[Callable[[], None]] = []
_heard: list[set[int]] = []  # one for each running block of `handle_signals`


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP. A KeyboardInterrupt, so that the same code cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


@contextmanager
def handle_signals() -> Generator[set[int]]:
    """Turn these signals into KeyboardInterrupt or Terminated while the block runs.

    Yields the set of signals received so far. Does nothing outside the main thread. Signals that are ignored, as in a
    shell's background jobs, or that the program handles itself, are left alone.
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
    """While a command is imported, let Ctrl-C end the process with a line and no traceback."""
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
    """Run a thread that waits for the raw signals; not on Windows, whose console reports them differently."""
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
    """Tell the watcher that the command handles this signal itself and must not be ended."""
    for heard in _heard:
        heard.add(number)


@contextmanager
def on_forced_exit(act: Callable[[], None]) -> Generator[None]:
    """Call `act` if the process is ended during a long call in this block, where no `finally` runs."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def leave(code: int) -> None:
    """Flush the output and end the process at once: libraries can take seconds to shut down."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _watch(read: int, hear: object, heard: set[int], over: threading.Event) -> None:
    while numbers := os.read(read, 64):
        for number in numbers:
            # If a command has replaced our handler, its own decides when to end.
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
