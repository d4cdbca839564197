"""Where the time of a pass goes: by kind of node, for a decode step and for a prompt, beside what the machine can do.

ONNX Runtime writes the time of every node to a file. Writing it takes time, too, so speeds come from `bench`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kiara_runtime.bundle import Bundle
from kiara_runtime.engine import CHUNK, Session, check_int8_cache
from kiara_runtime.system import machine

STEPS, PROMPTS = 33, 4  # passes of each kind; the first is a warm-up
SHOWN = 0.005  # share of a pass below which a kind has no row
READ_BYTES, MATRIX, ROUNDS = 1 << 28, 1024, 5  # larger than a cache; width of the product


@dataclass(frozen=True)
class Pass:
    """Medians of several passes. milliseconds: of all of it. operators: kind of node -> how many, and milliseconds."""

    tokens: int
    cached: int
    milliseconds: float
    operators: dict[str, tuple[int, float]]

    def rows(self) -> Iterator[tuple[str, int | None, float]]:
        """Kind, number of nodes and milliseconds, the longest first; kinds below SHOWN are added up."""
        others, rest = 0, 0.0
        for name, (count, milliseconds) in sorted(self.operators.items(), key=lambda one: -one[1][1]):
            if milliseconds >= SHOWN * self.milliseconds:
                yield name, count, milliseconds
            else:
                others, rest = others + count, rest + milliseconds
        yield "other nodes", others, rest
        inside = sum(milliseconds for _, milliseconds in self.operators.values())
        yield "between the nodes", None, max(0.0, self.milliseconds - inside)


@dataclass(frozen=True)
class Profile:
    """graph_bytes: of the variant. read: bytes a second from memory; multiplied: multiplications and additions a second
    of float32 matrices, both with all threads.
    """

    prompt: Pass
    decode: Pass
    graph_bytes: int
    read: float
    multiplied: float


def profile(
    bundle: Bundle, variant: str | None, threads: int | None, prompt_tokens: int, int8_cache: bool = False
) -> Profile:
    """Profile a bundle. prompt_tokens: read in one pass, then cached at the decode steps; a short context has fewer."""
    bundle.check(bundle.files_of(variant))
    if int8_cache:
        check_int8_cache()
    length = max(2, min(prompt_tokens, CHUNK, bundle.architecture.context_length - STEPS - 1))
    ids = (7919 * np.arange(1, length + STEPS + 1)) % bundle.architecture.vocab_size
    graph = bundle.graph_of(variant, int8_cache)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(graph, bundle.architecture, threads, profile=Path(folder, "nodes"))
        for _ in range(PROMPTS):
            session.decoder()(ids[:length].tolist())
        decoder = session.decoder()
        for token in (ids[:length].tolist(), *([one] for one in ids[length:].tolist())):
            decoder(token)
        runs = list(_runs(Path(session.graph.end_profiling())))
    return Profile(
        prompt=_medians(runs[1 : PROMPTS + 1], length, 0),
        decode=_medians(runs[PROMPTS + 2 :], 1, length),
        graph_bytes=sum(path.stat().st_size for path in graph.parent.glob(f"{bundle.graph_of(variant).name}*")),
        read=_read_rate(threads or int(machine()["cores"])),
        multiplied=_multiply_rate(),
    )


def _runs(path: Path) -> Iterator[tuple[float, list[tuple[str, float]]]]:
    """Milliseconds of each pass, and of its nodes with their kinds, from ONNX Runtime's file: a list of events, with
    microseconds as `ts` (the beginning) and `dur`.
    """
    events: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    for run in (event for event in events if event["name"] == "model_run"):
        inside = [node for node in nodes if run["ts"] <= node["ts"] < run["ts"] + run["dur"]]
        yield run["dur"] / 1000, [(node["args"]["op_name"], node["dur"] / 1000) for node in inside]


def _medians(runs: list[tuple[float, list[tuple[str, float]]]], tokens: int, cached: int) -> Pass:
    kinds = dict.fromkeys(kind for kind, _ in runs[0][1])
    sums = {kind: [sum(time for name, time in nodes if name == kind) for _, nodes in runs] for kind in kinds}
    counts = {kind: sum(name == kind for name, _ in runs[0][1]) for kind in kinds}
    operators = {kind: (counts[kind], statistics.median(times)) for kind, times in sums.items()}
    return Pass(tokens, cached, statistics.median(run for run, _ in runs), operators)


def _read_rate(threads: int) -> float:
    """Bytes a second that this many threads read from memory together."""
    parts = np.array_split(np.ones(READ_BYTES // 8, dtype=np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / _fastest(lambda: list(pool.map(np.bitwise_or.reduce, parts)))


def _multiply_rate() -> float:
    """Multiplications and additions a second of a product of two square matrices."""
    matrix = np.ones((MATRIX, MATRIX), dtype=np.float32)
    return 2 * MATRIX**3 / _fastest(lambda: matrix @ matrix)


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of several rounds: what the machine can do if nothing else runs."""
    seconds: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
