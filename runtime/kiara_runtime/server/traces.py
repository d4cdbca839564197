"""Traces of requests for OpenTelemetry: a span for each, with spans for its time in the queue, prefill and decoding.

Needs the extra `otel`. Names of attributes are those of OpenTelemetry's conventions for HTTP and generative AI. No text
of prompts or answers is in them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kiara_runtime import __version__
from kiara_runtime.server.records import Record

# Details of a record, and the attributes that they become.
_ATTRIBUTES = {
    "model": "gen_ai.response.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "client": "client.address",
    "error": "error.type",
}


class Traces:
    """endpoint: a collector's address, such as http://127.0.0.1:4318; spans are sent to it in the background."""

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({"service.name": "kiara", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("kiara_runtime", __version__)

    def write(self, record: Record, seconds: float) -> None:
        """Add the spans of a request that took so long, as part of the client's trace if it named one."""
        began = record.began_ns
        end = began + int(seconds * 1e9)
        parent = TraceContextTextMapPropagator().extract({"traceparent": record.traceparent or ""})
        span = self._tracer.start_span(
            f"{record.method} {record.route}", parent, SpanKind.SERVER, _attributes(record), start_time=began
        )
        if record.status >= 500:
            span.set_status(StatusCode.ERROR)
        inside = set_span_in_context(span)
        for name, (start, stop) in zip(("queue", "prefill", "decode"), pairwise(_marks(record, end)), strict=False):
            self._tracer.start_span(name, inside, start_time=start).end(stop)
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _attributes(record: Record) -> dict[str, Any]:
    known = {_ATTRIBUTES[name]: value for name, value in record.details.items() if name in _ATTRIBUTES}
    return {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "kiara.request_id": record.shown_id,
        **known,
    }


def _marks(record: Record, end: int) -> list[int]:
    """Nanoseconds when the first sequence was queued, got its slot and had a token, and when the request ended."""
    if record.queued_ns is None or "first_token_seconds" not in record.details:
        return []
    queued, details = record.queued_ns, record.details
    offsets = (0.0, details["queue_seconds"], details["first_token_seconds"])
    return [*(queued + int(offset * 1e9) for offset in offsets), end]
