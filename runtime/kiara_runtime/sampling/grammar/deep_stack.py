"""Calls on threads with a large stack, made once: Python's stack size is one for the whole process.

llguidance calls itself for each rule that leads to another and each parenthesis, and a stack that is full ends the
process. The worst grammars found take 1 KiB of it for a character. Only what is used of it becomes memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from kiara_runtime.errors import UserError

STACK = 256 << 20  # bytes: of the largest grammar that is read, several times
THREADS = 2
Result = TypeVar("Result")

_lock = threading.Lock()
_calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
_process: list[int] = []  # for which the threads were started: a forked child has none of them


def deeply(act: Callable[[], Result]) -> Result:
    """The result of `act`, called on a thread with a stack of STACK bytes."""
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
    except (RuntimeError, MemoryError):  # no thread, or no address space, is left
        problem = f"there is no room for a stack of {STACK >> 20} MiB"
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
            del found, act  # or an error would hold this frame, which holds it
