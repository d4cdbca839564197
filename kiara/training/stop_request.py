"""Ctrl-C during training: answered between two steps, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kiara_runtime.system import answered


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """A first Ctrl-C or SIGTERM is a request, answered between two steps; a second one is the usual end."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        answered(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        restore()
