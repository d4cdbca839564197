"""Spans of requests, as a collector receives them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from serving import served

from kiara_runtime.errors import UserError

TRACE = "0af7651916cd43dd8448eb211c80319c"


@contextmanager
def _collector() -> Iterator[tuple[str, list[Any]]]:
    """A server that keeps the spans it is sent."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            sent = ExportTraceServiceRequest.FromString(body)
            spans.extend(span for one in sent.resource_spans for scope in one.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def test_each_request_is_a_span_with_its_parts_in_the_clients_trace(bundle: Path) -> None:
    with _collector() as (url, spans), served(bundle, "--otlp-endpoint", url) as server:
        body = {"prompt": "secret words", "max_tokens": 5, "ignore_eos": True}
        assert server.post("/v1/completions", body, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")[0] == 200
        assert server.post("/v1/completions", {"prompt": "x", "model": "none"})[0] == 404
        assert server.stop() == 0
    assert "secret" not in str(spans)
    whole, *parts = sorted((span for span in spans if span.trace_id.hex() == TRACE), key=lambda span: span.kind)[::-1]
    values = {one.key: one.value.string_value or one.value.int_value for one in whole.attributes}
    assert whole.name == "POST /v1/completions" and whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert (values["http.response.status_code"], values["gen_ai.usage.output_tokens"]) == (200, 5)
    assert values["gen_ai.response.model"] == "small"
    assert sorted(part.name for part in parts) == ["decode", "prefill", "queue"]
    for part in parts:
        assert part.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano
        assert part.end_time_unix_nano <= whole.end_time_unix_nano
    refused = [span for span in spans if span.trace_id.hex() != TRACE and span.name == "POST /v1/completions"]
    assert len(refused) == 1


def test_an_address_that_is_none_is_refused(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    result = kiara_run("serve", bundle, "--otlp-endpoint", "localhost")
    assert result.exit_code == 1 and "--otlp-endpoint" in result.stderr


def test_a_missing_package_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kiara_runtime.server import lifecycle

    monkeypatch.setitem(__import__("sys").modules, "kiara_runtime.server.traces", None)
    with pytest.raises(UserError, match=r"kiara-runtime\[otel\]"):
        lifecycle._traces("http://127.0.0.1:4318")
