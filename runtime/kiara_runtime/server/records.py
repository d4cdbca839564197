"""Metrics for Prometheus, and a log line for each request."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds
LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
PROBES = ("/health", "/ready", "/metrics")  # asked every few seconds: logged only if they fail, or at level debug
GONE = 499  # status in logs and metrics: the client disconnected before its response was complete


class Metrics:
    """load: returns the numbers of running and waiting sequences, models that of loaded ones, at each scrape."""

    def __init__(self, load: Callable[[], tuple[int, int]], models: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        gauge, counter = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        times = partial(Histogram, registry=self.registry, buckets=LONG)
        gauge("kiara_requests_running", "Sequences that are being computed.").set_function(lambda: load()[0])
        gauge("kiara_requests_waiting", "Sequences that wait for a slot.").set_function(lambda: load()[1])
        gauge("kiara_models_loaded", "Models in memory.").set_function(models)
        self.requests = counter("kiara_requests", "Requests by their end; 499: the client left.", ["route", "status"])
        self.disconnects = counter("kiara_disconnects", "Clients that left before their answer was whole.")
        self.prompt_tokens = counter("kiara_prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = counter("kiara_generation_tokens", "Tokens generated.")
        self.first_token = times("kiara_time_to_first_token_seconds", "From a sequence's arrival to its first token.")
        self.inter_token = times("kiara_inter_token_latency_seconds", "From a token to the next.", buckets=SHORT)
        self.duration = times("kiara_request_duration_seconds", "From a request's arrival to its end.", ["route"])
        self.queue = times("kiara_queue_seconds", "From a sequence's arrival to its slot.")

    def text(self) -> bytes:
        return generate_latest(self.registry)


def request_id(header: str | None) -> str | None:
    """The id that a client or proxy gave a request, if it is fit for a log."""
    return header if header and re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", header) else None


@dataclass
class Record:
    """One request, from arrival to end; only the first call of `end` counts.

    given, traceparent: the client's id of it, and the trace that it belongs to. queued_ns: when its first sequence was
    queued, in nanoseconds since 1970, as `began_ns`.
    """

    id: str
    method: str
    route: str
    status: int = 0
    given: str | None = None
    traceparent: str | None = None
    queued_ns: int | None = None
    began_ns: int = field(default_factory=time.time_ns)
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    started: float = field(default_factory=time.perf_counter)
    _over: bool = False

    @property
    def shown_id(self) -> str:
        """The id that the client is told."""
        return self.given or self.id

    def end(self, metrics: Metrics, log: Log, trace: Callable[[Record, float], None] | None = None) -> None:
        """trace: gets the record and its seconds."""
        if self._over:
            return
        self._over = True
        seconds = time.perf_counter() - self.started
        metrics.requests.labels(self.route, self.status).inc()
        metrics.duration.labels(self.route).observe(seconds)
        if trace is not None:
            trace(self, seconds)
        if self.status == GONE:
            metrics.disconnects.inc()
        metrics.prompt_tokens.inc(self.details.get("prompt_tokens", 0))
        metrics.generation_tokens.inc(self.details.get("completion_tokens", 0))
        log.write(
            {"id": self.id}
            | ({"request_id": self.given} if self.given else {})
            | {"method": self.method, "route": self.route, "status": self.status}
            | self.details
            | {"seconds": round(seconds, 4)},
            self._level(),
        )

    def _level(self) -> int:
        if self.status >= 500:
            return logging.ERROR
        if self.status >= 400 and self.status != GONE:
            return logging.WARNING
        return logging.DEBUG if self.route in PROBES else logging.INFO


class Log:
    """JSON lines on standard error. They contain text of clients only if `prompts` is true.

    level: the least that is written, of the module `logging`.
    """

    def __init__(self, prompts: bool = False, level: int = logging.INFO) -> None:
        self.prompts, self.level = prompts, level
        self._lock = threading.Lock()

    def write(self, entry: dict[str, Any], level: int = logging.INFO) -> None:
        if level < self.level:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        line = json.dumps({"time": f"{stamp}Z", "level": logging.getLevelName(level).lower(), **entry})
        with self._lock, contextlib.suppress(OSError):  # a closed log must not affect clients
            print(line, file=sys.stderr, flush=True)  # noqa: T201
