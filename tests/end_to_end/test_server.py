"""The server as a process: start and stop, disconnecting clients, full queues, requests that never end."""

from __future__ import annotations

import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server_clients import LONG, SHORT_TIMEOUTS
from serving import SLOW, received, served

from kiara_runtime.loading import load


def test_the_server_starts_answers_and_drains(bundle: Path) -> None:
    with served(bundle) as server:
        status, found = server.post("/v1/completions", {**LONG, "seed": 1})
        assert status == 200
        with load(bundle) as model:
            expected = model.generate("x", max_tokens=90, ignore_eos=True, temperature=1.0, seed=1)
        assert found["choices"][0]["text"] == expected.text
        connection = server.send({**LONG, "n": 16, "stream": True})
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        answer = received(connection)
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")  # the running request was completed
        assert server.ended() == 0
    logged = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert [line["status"] for line in logged if line["route"] == "/v1/completions"] == [200, 200]


def test_a_second_signal_stops_the_server_at_once(bundle: Path) -> None:
    with served(bundle, program=SLOW) as server:
        connection = server.send({**LONG, "stream": True})
        connection.recv(100)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert server.process.poll() is None
        assert server.stop(signal.SIGINT) == 130


def test_requests_past_the_drain_timeout_are_aborted(bundle: Path) -> None:
    with served(bundle, "--drain", 0, program=SLOW) as server:
        connection = server.send({**LONG, "stream": True})
        connection.recv(100)
        assert server.stop() == 0
        answer = received(connection)
        assert b'"shutting_down"' in answer and b"[DONE]" not in answer


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_slot_running_or_queued(bundle: Path, stream: bool) -> None:
    with served(bundle, "--slots", 2, program=SLOW) as server:
        connections = [server.send({**LONG, "stream": stream}) for _ in range(6)]
        server.wait_for("kiara_requests_running", 2)
        server.wait_for("kiara_requests_waiting", 4)
        for connection in connections:
            connection.close()
        server.wait_for("kiara_requests_running", 0)
        server.wait_for("kiara_requests_waiting", 0)
        server.wait_for("kiara_disconnects_total", 6)
        assert server.metric("kiara_generation_tokens_total") < 2 * LONG["max_tokens"]  # not one ran to its end
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200
        assert server.stop() == 0
    assert sum('"status": 499' in line for line in server.lines) == 6


def test_a_client_that_disconnects_during_prefill_frees_its_slot(bundle: Path) -> None:
    with served(bundle, "--slots", 2, program=SLOW) as server:
        server.send({**LONG, "stream": True}).recv(100)  # while one request decodes, prefill goes in chunks of 4
        leaver = server.send({"prompt": list(range(90)), "max_tokens": 2, "stream": True})
        server.wait_for("kiara_requests_running", 2)
        leaver.close()
        server.wait_for("kiara_disconnects_total", 1, 1.0)


def test_requests_beyond_the_queue_are_refused_at_once_and_none_is_lost(bundle: Path) -> None:
    limit = 2 + 6
    with served(bundle, "--slots", 2, "--queue", 6, program=SLOW) as server, ThreadPoolExecutor(2 * limit) as pool:

        def ask(index: int) -> tuple[int, float]:
            started = time.monotonic()
            status, _ = server.post("/v1/completions", {**LONG, "max_tokens": 40, "seed": index})
            return status, time.monotonic() - started

        found = list(pool.map(ask, range(2 * limit)))
        refused = [seconds for status, seconds in found if status == 429]
        accepted = [seconds for status, seconds in found if status == 200]
        assert len(accepted) == len(refused) == limit
        assert max(refused) < min(accepted)
        assert server.get("/health")[0] == 200
        connection = server.connect()
        for _ in range(limit):
            server.send({**LONG, "stream": True})
        server.wait_for("kiara_requests_waiting", 6)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 2\r\n\r\n{}")
        answer = connection.recv(1 << 16).decode()
        assert answer.startswith("HTTP/1.1 429") and "Retry-After: 1" in answer


def test_a_queued_stream_gets_heartbeats(bundle: Path) -> None:
    with served(bundle, "--slots", 1, program=SLOW) as server:
        server.send({**LONG, "stream": True}).recv(100)
        queued = server.send({**LONG, "stream": True})
        assert b"data:" not in received(queued, until=b": waiting")


def test_slow_and_half_open_connections_block_no_other_client(bundle: Path) -> None:
    with served(bundle) as server:
        held = [server.connect() for _ in range(300)]
        for index, connection in enumerate(held):
            if index % 2:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        started = time.monotonic()
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 3})[0] == 200
        assert time.monotonic() - started < 20  # those half sent are cut after 30 s


def test_a_request_that_is_never_completed_is_cut_off(bundle: Path) -> None:
    with served(bundle, program=SHORT_TIMEOUTS) as server:
        connection = server.connect()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        started, cut = time.monotonic(), False
        while not cut and time.monotonic() - started < 20:
            try:
                connection.sendall(b"X")
                connection.settimeout(0.1)
                cut = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                cut = True
        assert cut  # the default would take 30 s
        other = server.connect()
        other.sendall(b"nonsense\r\n\r\n")
        answer = received(other).decode()
        assert " 400 Bad Request" in answer and '"type":"invalid_request_error"' in answer


REFUSED_EARLY = [
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n", 200),
    (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n", 415),
    (b"POST /x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", 413),
    (b"POST /x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: x\r\n\r\n", 400),
    (b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    (b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /health HTTP/1.0\r\n\r\n", 200),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"nonsense\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
]


def test_every_request_is_answered_counted_and_logged(bundle: Path) -> None:
    with served(bundle, "--cors-origin", "https://Good.example:443") as server:
        before = server.metric("kiara_requests_total")
        for sent, status in REFUSED_EARLY:
            connection = server.connect()
            connection.sendall(sent)
            answer = received(connection, until=b"}").decode()
            assert re.match(rf"HTTP/1\.[01] {status} ", answer) and "X-Request-Id" in answer, (sent[:80], answer)
        connection = server.connect()
        connection.sendall(
            b"POST /x HTTP/1.1\r\nHost: a\r\nOrigin: https://good.example\r\nContent-Length: 9999999\r\n\r\n"
        )
        assert "Access-Control-Allow-Origin: https://good.example" in received(connection).decode()
        assert server.metric("kiara_requests_total") == before + len(REFUSED_EARLY) + 2
    logged = [json.loads(line) for line in server.lines if line.startswith("{")]
    found = [line["status"] for line in logged if line["route"] != "/metrics"]
    assert sorted(found) == sorted([413, *(status for _, status in REFUSED_EARLY)])


def test_clients_that_disconnect_before_an_answer_are_counted(bundle: Path) -> None:
    with served(bundle, "--queue", 100, program=SLOW) as server:
        for _ in range(59):
            server.send({**LONG, "stream": True}).close()
        refused = server.connect()
        refused.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + b"x\r\n\r\n" * 2000)
        refused.close()  # the bytes after the refused request are not a request
        running = server.send({**LONG, "stream": True})
        running.recv(100)
        running.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.wait_for("kiara_requests_running", 1)
        running.close()  # with a second request pipelined behind it
        server.wait_for('kiara_requests_total{route="/v1/completions",status="499"}', 60)
        server.wait_for('kiara_requests_total{route="/health",status="499"}', 1)
        assert server.metric('kiara_requests_total{route="unknown",status="\\d+"}') == 1
        assert 61 <= server.metric("kiara_disconnects_total") <= 62  # the refused one may be among them
