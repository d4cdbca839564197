"""Runs calls on threads with a large stack, started once: Python's stack size setting is for the whole process.

llguidance recurses for each rule that refers to another and for each parenthesis, and a stack overflow ends the
process. The worst grammars found take 1 KiB of stack per character. Only the part in use becomes resident memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from kiara_runtime.errors import UserError

STACK = 256 << 20  # bytes, several times what the largest accepted grammar needs
THREADS = 2
Result = TypeVar("Result")

_lock = threading.Lock()
_calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
_process: list[int] = []  # id of the process that started the threads: a forked child has none of them


def call_with_large_stack(act: Callable[[], Result]) -> Result:
    """Call `act` on a thread with a stack of STACK bytes and return its result."""
    with _lock:
        if _process != [os.getpid()]:
            _start()
    found: Future[Any] = Future()
    _calls.put((found, act))
    return found.result()


def _start() -> None:
    before = threading.stack_size(STACK)
    try:
        for _ in range(THREADS):
            threading.Thread(target=_serve, daemon=True, name="kiara-grammar").start()
    except (RuntimeError, MemoryError):  # no thread or no address space is left
        problem = f"there is no memory for a stack of {STACK >> 20} MiB"
        raise UserError("grammar", problem, "close other programs, or leave the grammar out") from None
    finally:
        threading.stack_size(before)
    _process[:] = [os.getpid()]


def _serve() -> None:
    while True:
        found, act = _calls.get()
        try:
            found.set_result(act())
        except BaseException as error:
            found.set_exception(error)
        finally:
            del found, act  # breaks a reference cycle: an error holds this frame, which would hold the error
