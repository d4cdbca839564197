"""The server behind a reverse proxy, over a Unix socket, with the example configuration; and as a service."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import REPOSITORY
from server_clients import LONG, SHORT_TIMEOUTS
from serving import SLOW, received, served

EXAMPLES = REPOSITORY / "examples" / "deploy"
SKIPS = not os.environ.get("CI")
needs_nginx = pytest.mark.skipif(SKIPS and not shutil.which("nginx"), reason="nginx is not installed")
needs_systemd = pytest.mark.skipif(SKIPS and not shutil.which("systemd-analyze"), reason="systemd is not installed")


class _OverSocket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(str(self.path))


def _ask(connection: http.client.HTTPConnection, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, Any]:
    method = "GET" if body is None else "POST"
    with closing(connection):  # it connects again for the next request
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, response.read(), response.headers


@contextmanager
def _on_socket(bundle: Path, path: Path, *options: object) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-m", "kiara_runtime.commands.main", "serve", bundle, "--unix-socket", path, *options]
    process = subprocess.Popen([*map(str, words)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while "is loaded" not in (line := process.stderr.readline()):
            assert line, "the server has ended"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_unix_socket_serves_and_is_removed(bundle: Path, tmp_path: Path, kiara_run: Callable[..., Result]) -> None:
    path = tmp_path / "kiara.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()  # its file stays, as after a crash
    with _on_socket(bundle, path) as process:
        status, body, _ = _ask(_OverSocket(path), "/v1/completions", {"prompt": "x", "max_tokens": 3})
        assert status == 200 and json.loads(body)["usage"]["completion_tokens"] <= 3
        second = kiara_run("serve", bundle, "--unix-socket", path)
        assert second.exit_code == 1 and "another program listens there" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not path.exists()
    (tmp_path / "file").write_text("kept")
    refused = kiara_run("serve", bundle, "--unix-socket", tmp_path / "file")
    assert refused.exit_code == 1 and "no socket" in refused.stderr and (tmp_path / "file").read_text() == "kept"


@needs_nginx
def test_the_example_proxy_passes_streams_ids_and_addresses_on(chat_bundle: Path, tmp_path: Path) -> None:
    port, path = _free_port(), tmp_path / "kiara.sock"
    config = (EXAMPLES / "nginx.conf").read_text("utf-8")
    options = re.search(r"--root-path.*?\n", config.replace("\\\n#", ""))
    assert options is not None
    config = config.replace("/run/kiara/kiara.sock", str(path)).replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    paths = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root root;" if os.geteuid() == 0 else ""  # the folder of the test is its owner's alone
    head = f"daemon off; pid {tmp_path}/pid; error_log stderr; {user}"
    (tmp_path / "nginx.conf").write_text(
        head + config.replace("http {", f"http {{ access_log off; {paths}", 1), "utf-8"
    )
    with _on_socket(chat_bundle, path, *options[0].split()) as process, _nginx(tmp_path, port):
        proxy = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        asked = {**LONG, "max_tokens": 20, "stream": True}
        status, body, headers = _ask(proxy, "/llm/v1/completions", asked, Host="example.org")
        assert status == 200 and body.endswith(b"data: [DONE]\n\n")
        assert re.fullmatch("[0-9a-f]{32}", headers["X-Request-Id"])  # nginx's id
        assert _ask(proxy, "/llm/v1/models", Host="example.org")[0] == 200
        page = _ask(proxy, "/llm/", Host="example.org")[1].decode()
        assert _ask(proxy, "/llm/" + re.findall(r'src="([^"]+)"', page)[0], Host="example.org")[0] == 200
        assert json.loads(_ask(proxy, "/llm/openapi.json", Host="example.org")[1])["servers"] == [{"url": "/llm"}]
        assert _ask(proxy, "/llm/v1/models", Host="elsewhere.org")[0] == 403
        assert _ask(_OverSocket(path), "/v1/models")[0] == 200  # as from a proxy that takes the prefix away
        process.send_signal(signal.SIGKILL)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
    assert lines[0]["client"] == "127.0.0.1" and lines[0]["request_id"] == headers["X-Request-Id"]


@contextmanager
def _nginx(folder: Path, port: int) -> Iterator[None]:
    process = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@needs_systemd
def test_the_example_service_is_valid(tmp_path: Path) -> None:
    unit = (EXAMPLES / "kiara.service").read_text("utf-8").replace("/opt/kiara/bin/kiara-run", sys.executable)
    (tmp_path / "kiara.service").write_text(unit, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "kiara.service"], capture_output=True, text=True, check=False
    )
    assert "kiara.service" not in done.stderr, done.stderr


def test_the_options_of_the_examples_exist(kiara_run: Callable[..., Result]) -> None:
    known = kiara_run("serve", "--help").stdout
    for name in ("kiara.service", "nginx.conf"):
        text = (EXAMPLES / name).read_text("utf-8")
        assert all(option in known for option in re.findall(r" (--[a-z-]+)", text.replace("enable --now", "")))


def test_a_request_that_does_not_arrive_gets_408(bundle: Path) -> None:
    with served(bundle, program=SHORT_TIMEOUTS) as server:
        connection = server.connect()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        answer = received(connection).decode()
        assert answer.startswith("HTTP/1.1 408 ") and '"code":"request_timeout"' in answer and "Retry-After" in answer
        assert server.get("/health")[0] == 200


def test_ids_of_clients_are_kept_unless_they_do_not_fit_a_log(bundle: Path) -> None:
    with served(bundle) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for given, kept in (("trace-1:a.b_c", True), ("with blanks", False), ("x" * 200, False)):
            _, _, headers = _ask(connection, "/health", **{"X-Request-Id": given})
            assert (headers["X-Request-Id"] == given) is kept
        _, _, headers = _ask(connection, "/health", **{"X-Forwarded-For": "1.2.3.4"})
        server.stop()
    logged = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert logged[0]["request_id"] == "trace-1:a.b_c" and "request_id" not in logged[1]
    assert not any("client" in line for line in logged)  # no proxy is trusted


def test_readiness_is_red_before_requests_are_refused(bundle: Path) -> None:
    with served(bundle, "--drain-delay", 60, program=SLOW) as server:
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 30
        while server.get("/ready")[0] == 200 and time.monotonic() < end:
            time.sleep(0.02)
        assert server.get("/ready") == (503, '{"status":"draining"}')
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 2})[0] == 200
        assert server.stop() == 128 + signal.SIGTERM  # the second signal ends it at once


def test_a_root_path_that_is_none_is_refused(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    for path in ("llm", "/llm/", "/a b"):
        result = kiara_run("serve", bundle, "--root-path", path)
        assert result.exit_code == 1 and "--root-path" in result.stderr
