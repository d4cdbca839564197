"""Stop training on Ctrl-C between two steps, so that a checkpoint can be written."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kiara_runtime.system import answered


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM asked for a stop; a second signal acts as usual."""
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
