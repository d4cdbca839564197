"""The server as a process: starting and stopping, clients that leave, queues that are full, senders that never end."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import SLOW, received, served

from kiara_runtime.model import load

IMPATIENT = """
import sys
import kiara_runtime.server.http as home
home.RECEIVE_SECONDS, home.IDLE_SECONDS, home.CLEANUP_SECONDS = 0.5, 1, 1
from kiara_runtime.commands.main import main
main(sys.argv[1:])
"""
LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 90, "ignore_eos": True}


def test_it_starts_answers_and_drains(bundle: Path) -> None:
    started = time.monotonic()
    with served(bundle) as server:
        assert time.monotonic() - started < 10
        status, found = server.post("/v1/completions", {**LONG, "seed": 1})
        assert status == 200
        with load(bundle) as model:
            expected = model.generate("x", max_tokens=90, ignore_eos=True, temperature=1.0, seed=1)
        assert found["choices"][0]["text"] == expected.text
        connection = server.send({**LONG, "n": 16, "stream": True})
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        answer = received(connection)
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")  # the running request got its end
        assert server.ended() == 0
    logged = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert [line["status"] for line in logged if line["route"] == "/v1/completions"] == [200, 200]


def test_a_second_signal_ends_it_at_once(bundle: Path) -> None:
    with served(bundle, program=SLOW) as server:
        connection = server.send({**LONG, "stream": True})
        connection.recv(100)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert server.process.poll() is None
        assert server.stop(signal.SIGINT) == 130


def test_requests_beyond_the_time_to_drain_are_cut(bundle: Path) -> None:
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
        left = time.monotonic()
        server.wait_for("kiara_requests_running", 0)
        server.wait_for("kiara_requests_waiting", 0)
        assert time.monotonic() - left < 2.5  # 90 tokens of two take 2.7 s, of six 8
        server.wait_for("kiara_disconnects_total", 6)
        started = time.monotonic()
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200
        assert time.monotonic() - started < 1
        assert server.stop() == 0
    assert sum('"status": 499' in line for line in server.lines) == 6


def test_a_client_that_disconnects_during_the_prompt_frees_its_slot(bundle: Path) -> None:
    with served(bundle, "--slots", 2, program=SLOW) as server:
        server.send({**LONG, "stream": True}).recv(100)  # beside one that decodes a prompt goes in chunks of 4
        leaver = server.send({"prompt": list(range(90)), "max_tokens": 2, "stream": True})
        server.wait_for("kiara_requests_running", 2)
        leaver.close()
        server.wait_for("kiara_disconnects_total", 1, 1.0)


def test_the_surplus_is_refused_at_once_and_nothing_is_lost(bundle: Path) -> None:
    limit = 2 + 6
    with served(bundle, "--slots", 2, "--queue", 6, program=SLOW) as server, ThreadPoolExecutor(2 * limit) as pool:

        def ask(index: int) -> tuple[int, float]:
            started = time.monotonic()
            status, _ = server.post("/v1/completions", {**LONG, "max_tokens": 40, "seed": index})
            return status, time.monotonic() - started

        found = list(pool.map(ask, range(2 * limit)))
        refused = [seconds for status, seconds in found if status == 503]
        assert sorted(status for status, _ in found) == [200] * limit + [503] * limit
        assert max(refused) < 1.0  # those let in take a second each
        assert server.get("/health")[0] == 200
        connection = server.connect()
        for _ in range(limit):
            server.send({**LONG, "stream": True})
        server.wait_for("kiara_requests_waiting", 6)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 2\r\n\r\n{}")
        answer = connection.recv(1 << 16).decode()
        assert answer.startswith("HTTP/1.1 503") and "Retry-After: 1" in answer


def test_heartbeats_while_nothing_comes(bundle: Path) -> None:
    with served(bundle, "--slots", 1, program=SLOW) as server:
        server.send({**LONG, "stream": True}).recv(100)
        queued = server.send({**LONG, "stream": True})
        assert b"data:" not in received(queued, until=b": waiting")


def test_slow_and_half_open_senders_hold_nobody_up(bundle: Path) -> None:
    with served(bundle) as server:
        held = [server.connect() for _ in range(300)]
        for index, connection in enumerate(held):
            if index % 2:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        started = time.monotonic()
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 3})[0] == 200
        assert time.monotonic() - started < 2


def test_a_request_that_never_ends_is_cut_off(bundle: Path) -> None:
    with served(bundle, program=IMPATIENT) as server:
        connection = server.connect()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        started, cut = time.monotonic(), False
        while not cut and time.monotonic() - started < 10:
            try:
                connection.sendall(b"X")
                connection.settimeout(0.1)
                cut = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                cut = True
        assert cut and time.monotonic() - started < 5
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


def test_each_gets_its_answer_is_counted_and_logged(bundle: Path) -> None:
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


def test_who_left_before_an_answer_began_is_counted(bundle: Path) -> None:
    with served(bundle, "--queue", 100, program=SLOW) as server:
        for _ in range(59):
            server.send({**LONG, "stream": True}).close()
        refused = server.connect()
        refused.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + b"x\r\n\r\n" * 2000)
        refused.close()  # what stands behind the refused one is no request
        running = server.send({**LONG, "stream": True})
        running.recv(100)
        running.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.wait_for("kiara_requests_running", 1)
        running.close()  # with a second one behind it
        server.wait_for('kiara_requests_total{route="/v1/completions",status="499"}', 60)
        server.wait_for('kiara_requests_total{route="/health",status="499"}', 1)
        assert server.metric('kiara_requests_total{route="unknown",status="\\d+"}') == 1
        assert 61 <= server.metric("kiara_disconnects_total") <= 62  # the refused one may be among them


def test_urgent_data_ends_a_connection_and_keeps_nobody_busy(bundle: Path) -> None:
    with served(bundle) as server:
        connection = server.connect()
        connection.send(b"x", socket.MSG_OOB)
        with contextlib.suppress(ConnectionError):
            assert received(connection) == b""
        assert server.get("/health")[0] == 200
        assert server.stop() == 0
    assert not any("unhandled" in line for line in server.lines)


@pytest.mark.parametrize("behind", [b"\r\n", b"GET /hea", b"POST /x HTTP/1.1\r\nExpect: 100-continue\r\n"])
def test_what_comes_behind_a_request_does_not_cut_its_answer(bundle: Path, behind: bytes) -> None:
    slowly = SLOW.partition("from kiara_runtime.commands.main")[0]
    with served(bundle, program=slowly + IMPATIENT) as server:
        connection = server.send({**LONG, "stream": True})
        connection.sendall(behind)  # nothing comes after it for longer than a request may take
        assert received(connection, until=b"[DONE]").startswith(b"HTTP/1.1 200")


def test_a_grammar_of_endless_rules_does_not_end_the_server(bundle: Path) -> None:
    rules = "start:a0\n" + "".join(f"a{i:x}:a{i + 1:x}\n" for i in range(3000)) + 'abb8:"q"\n'
    with served(bundle) as server:
        asked = {"prompt": "x", "response_format": {"type": "grammar", "grammar": rules}}
        assert server.post("/v1/completions", asked)[1]["choices"][0]["text"] == "q"


def test_a_refusal_reaches_who_still_sends(bundle: Path) -> None:
    """Neither the sending nor the answer may be cut by what the refused request still brings."""
    part = b"x" * (1 << 20)
    with served(bundle) as server:
        for size in (f"Content-Length: {64 * len(part)}", "Transfer-Encoding: chunked"):
            connection = server.connect()
            connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{size}\r\n\r\n".encode())
            for _ in range(64):
                connection.sendall(b"%x\r\n%s\r\n" % (len(part), part) if "chunked" in size else part)
            answer = received(connection).decode()
            assert answer.startswith("HTTP/1.1 413") and '"code":"body_too_large"' in answer
        assert server.get("/health")[0] == 200


def test_who_is_refused_and_goes_on_sending_is_left(bundle: Path) -> None:
    with served(bundle, program=IMPATIENT) as server:
        connection = server.connect()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
        received(connection)
        end = time.monotonic() + 30
        with pytest.raises(OSError):
            while time.monotonic() < end:
                connection.sendall(b"x" * 1000)
                time.sleep(0.01)


def test_who_does_not_read_the_answer_holds_nobody_up(bundle: Path) -> None:
    """More such clients than there are threads, each with a second request that waits for the first's answer to go."""
    with served(bundle, "--slots", 1, "--queue", 0, program=IMPATIENT) as server:
        for _ in range(12):
            connection = server.send({"prompt": "\U0001f600" * 450_000, "return_token_strs": True}, "/tokenize")
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deaf = server.send({"prompt": ["x"] * 200, "logprobs": 20, "echo": True, "stream": True})
        end, answered = time.monotonic() + 30, 0.0
        while answered < 12:  # the metrics need a thread, too
            assert time.monotonic() < end
            with contextlib.suppress(OSError):  # this impatient server may drop our own connection, too
                answered = server.metric("kiara_requests_total")
            time.sleep(0.2)
        deaf.close()


def test_who_asked_twice_at_once_and_leaves_is_noticed(bundle: Path) -> None:
    with served(bundle, program=SLOW) as server:
        connection = server.send(LONG)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        server.wait_for("kiara_requests_running", 1)
        connection.close()
        server.wait_for("kiara_requests_running", 0, 1.5)


def test_a_signal_while_the_model_loads_ends_it_orderly(bundle: Path) -> None:
    hangs = "import kiara_runtime.model as home\nhome.load = lambda *_: time.sleep(60)\n"
    program = SLOW.replace("main(sys", f"{hangs}main(sys")
    with served(bundle, ready=False, program=program) as server:
        assert server.get("/ready")[0] == 503
        assert server.stop() == 0


def test_what_keeps_it_from_starting_is_one_line(bundle: Path, tmp_path: Path) -> None:
    def fails(*options: object) -> str:
        words = [sys.executable, "-m", "kiara_runtime.commands.main", "serve", *map(str, options)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        return done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "another program listens there" in fails(bundle, "--port", taken.getsockname()[1])
    assert "there is no such folder" in fails(tmp_path / "nothing")
    assert "variant: 'int3'" in fails(bundle, "--variant", "int3", "--port", 0)
    assert "give an address of this machine" in fails(bundle, "--host", "no.such.host.invalid")
    assert "no name of a machine" in fails(bundle, "--host", "a..b")
    assert "can match nothing" in fails(bundle, "--cors-origin", "*")
    assert "can match nothing" in fails(bundle, "--allow-host", "llm.lan:80")
    (tmp_path / "keys").write_text("a key with spaces\n")
    assert "holds a space" in fails(bundle, "--api-key-file", tmp_path / "keys")
    (tmp_path / "keys").write_text("short\n")
    assert "less than 8 characters" in fails(bundle, "--api-key-file", tmp_path / "keys")
    (tmp_path / "keys").write_text("# none\n")
    assert "holds no key" in fails(bundle, "--api-key-file", tmp_path / "keys")


def test_a_damaged_model_ends_it(bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(bundle, tmp_path / "broken")
    graph = broken / "onnx/model_quantized.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    with served(broken, ready=False) as server:
        assert server.ended() == 1
    assert "damaged, its SHA-256" in server.lines[-1]


def test_others_can_be_let_in_and_are_warned_of(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-long-key\n")
    with served(bundle, "--host", "0.0.0.0", "--api-key-file", tmp_path / "keys") as server:
        assert server.get("/health")[0] == 200
        assert server.post("/v1/completions", {"prompt": "x"})[0] == 401
        assert server.post("/v1/completions", {"prompt": "x"}, Authorization="Bearer a-long-key")[0] == 200
        server.stop()
    assert any("can be reached from other machines" in line for line in server.lines)
    assert not any("a-long-key" in line for line in server.lines)


def test_eight_streams_get_what_each_gets_alone(bundle: Path) -> None:
    with load(bundle) as model, served(bundle) as server:
        found: dict[int, str] = {}

        def ask(seed: int) -> None:
            connection = server.send({**LONG, "seed": seed, "stream": True})
            found[seed] = _until_done(connection)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seed, text in found.items():
            assert text == model.generate("x", max_tokens=90, ignore_eos=True, temperature=1.0, seed=seed).text


def _until_done(connection: socket.socket) -> str:
    lines = received(connection, until=b"data: [DONE]").decode().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return "".join(event["choices"][0]["text"] for event in events)
