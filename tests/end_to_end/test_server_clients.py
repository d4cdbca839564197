"""Clients that disconnect, stall or send too much."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from server_clients import LONG, SHORT_TIMEOUTS
from serving import SLOW, received, served

from kiara_runtime.loading import load


def test_tcp_urgent_data_closes_the_connection_without_errors(bundle: Path) -> None:
    with served(bundle) as server:
        connection = server.connect()
        connection.send(b"x", socket.MSG_OOB)
        with contextlib.suppress(ConnectionError):
            assert received(connection) == b""
        assert server.get("/health")[0] == 200
        assert server.stop() == 0
    assert not any("unhandled" in line for line in server.lines)


@pytest.mark.parametrize("behind", [b"\r\n", b"GET /hea", b"POST /x HTTP/1.1\r\nExpect: 100-continue\r\n"])
def test_bytes_after_a_request_do_not_cut_its_answer(bundle: Path, behind: bytes) -> None:
    slowly = SLOW.partition("from kiara_runtime.commands.main")[0]
    with served(bundle, program=slowly + SHORT_TIMEOUTS) as server:
        connection = server.send({**LONG, "stream": True})
        connection.sendall(behind)  # and nothing more until after the receive timeout
        assert received(connection, until=b"[DONE]").startswith(b"HTTP/1.1 200")


def test_a_grammar_of_thousands_of_chained_rules_does_not_crash_the_server(bundle: Path) -> None:
    rules = "start:a0\n" + "".join(f"a{i:x}:a{i + 1:x}\n" for i in range(3000)) + 'abb8:"q"\n'
    with served(bundle) as server:
        asked = {"prompt": "x", "response_format": {"type": "grammar", "grammar": rules}}
        assert server.post("/v1/completions", asked)[1]["choices"][0]["text"] == "q"


def test_a_client_still_sending_its_body_receives_the_refusal(bundle: Path) -> None:
    """The rest of the refused body may break neither the client's sending nor the answer."""
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


def test_a_refused_client_that_keeps_sending_is_disconnected(bundle: Path) -> None:
    with served(bundle, program=SHORT_TIMEOUTS) as server:
        connection = server.connect()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
        received(connection)
        end = time.monotonic() + 30
        with pytest.raises(OSError):
            while time.monotonic() < end:
                connection.sendall(b"x" * 1000)
                time.sleep(0.01)


def test_clients_that_do_not_read_their_answer_block_no_thread(bundle: Path) -> None:
    """More such clients than threads, each with a second request pipelined behind its unread first answer."""
    unread = SHORT_TIMEOUTS.replace("0.5, 1, 1", "60, 3, 1")  # a slow machine needs seconds to receive these
    with served(bundle, "--slots", 1, "--queue", 0, program=unread) as server:
        for _ in range(12):
            connection = server.send({"prompt": "\U0001f600" * 450_000, "return_token_strs": True}, "/tokenize")
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deaf = server.send({"prompt": ["x"] * 200, "logprobs": 20, "echo": True, "stream": True})
        end, answered = time.monotonic() + 120, 0.0
        while answered < 12:  # /metrics needs a thread, too
            assert time.monotonic() < end
            with contextlib.suppress(OSError):  # with short timeouts our own connection may be dropped, too
                answered = server.metric("kiara_requests_total")
            time.sleep(0.2)
        deaf.close()


def test_a_client_that_disconnects_with_pipelined_requests_frees_its_slot(bundle: Path) -> None:
    with served(bundle, program=SLOW) as server:
        connection = server.send(LONG)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        server.wait_for("kiara_requests_running", 1)
        connection.close()
        server.wait_for("kiara_requests_running", 0, 1.5)


def test_a_signal_while_the_model_loads_stops_the_server_cleanly(bundle: Path) -> None:
    hangs = "import kiara_runtime.model as home\nhome.load = lambda *_: time.sleep(60)\n"
    program = SLOW.replace("main(sys", f"{hangs}main(sys")
    with served(bundle, ready=False, program=program) as server:
        assert server.get("/ready")[0] == 503
        assert server.stop() == 0


@pytest.mark.slow
def test_startup_errors_have_no_traceback(bundle: Path, tmp_path: Path) -> None:
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
    assert "is not a valid host name" in fails(bundle, "--host", "a..b")
    assert "can never match" in fails(bundle, "--cors-origin", "*")
    assert "can never match" in fails(bundle, "--allow-host", "llm.lan:80")
    (tmp_path / "keys").write_text("a key with spaces\n")
    assert "has a space" in fails(bundle, "--api-key-file", tmp_path / "keys")
    (tmp_path / "keys").write_text("short\n")
    assert "less than 8 characters" in fails(bundle, "--api-key-file", tmp_path / "keys")
    (tmp_path / "keys").write_text("# none\n")
    assert "holds no key" in fails(bundle, "--api-key-file", tmp_path / "keys")


def test_a_damaged_model_stops_the_server(bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(bundle, tmp_path / "broken")
    graph = broken / "onnx/model_quantized.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    with served(broken, ready=False) as server:
        assert server.ended() == 1
    assert "damaged, its SHA-256" in server.lines[-1]


def test_listening_on_all_addresses_requires_a_key_and_warns(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-long-key\n")
    with served(bundle, "--host", "0.0.0.0", "--api-key-file", tmp_path / "keys") as server:
        assert server.get("/health")[0] == 200
        assert server.post("/v1/completions", {"prompt": "x"})[0] == 401
        assert server.post("/v1/completions", {"prompt": "x"}, Authorization="Bearer a-long-key")[0] == 200
        server.stop()
    assert any("can be reached from other machines" in line for line in server.lines)
    assert not any("a-long-key" in line for line in server.lines)


def test_eight_concurrent_streams_match_single_requests(bundle: Path) -> None:
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
