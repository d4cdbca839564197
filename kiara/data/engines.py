"""Where the pieces of a prepared folder are made: in this process, or on a cluster by Ray Data.

A piece depends only on its number, so every engine writes the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from kiara_runtime.errors import UserError

Engine = Literal["local", "ray"]


class Maker(Protocol):
    """Makes pieces; one that another process receives must work there, too."""

    def __call__(self, number: int, advance: Callable[[int], None]) -> None:
        """Make a piece. advance: receives bytes of text as they are read."""
        ...

    def size(self, number: int) -> int:
        """Bytes of text of a piece."""
        ...


def make_pieces(engine: Engine, maker: Maker, numbers: Sequence[int], advance: Callable[[int], None]) -> None:
    """Make the pieces with these numbers, on a started engine; the first error ends it."""
    if engine == "ray" and numbers:
        _on_ray(maker, numbers, advance)
        return
    for number in numbers:
        maker(number, advance)


@contextmanager
def started(engine: Engine) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine, until the block ends."""
    if engine == "local":
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise UserError("--engine", "ray needs the package ray", "pip install 'kiara-slm[ray]'") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    address: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **address)
    except ConnectionError as error:
        raise UserError("RAY_ADDRESS", f"cannot be reached ({error})", "start the cluster, or unset it") from None
    try:
        yield
    finally:
        ray.shutdown()


def _on_ray(maker: Maker, numbers: Sequence[int], advance: Callable[[int], None]) -> None:
    """Each piece is a task on one core."""
    import ray.data
    from ray.exceptions import RayError

    def make(row: dict[str, Any]) -> dict[str, Any]:
        try:
            maker(int(row["number"]), lambda size: None)
        except UserError as error:  # as its parts, because Ray would wrap it
            return {**row, "error": json.dumps([error.field, error.problem, error.remedy])}
        return {**row, "error": ""}

    rows = [{"number": number} for number in numbers]
    try:
        for row in ray.data.from_items(rows, override_num_blocks=len(rows)).map(make).iter_rows():
            if row["error"]:
                raise UserError(*json.loads(row["error"]))
            advance(maker.size(int(row["number"])))
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError("--engine ray", f"a task failed ({reason})", "see Ray's logs, or use --engine local") from None
