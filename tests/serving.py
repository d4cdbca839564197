"""A bundle with a chat template, and a real server process, for the tests that need them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kiara_runtime.bundle.manifest import MANIFEST, write_manifest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Serves with forward passes of 30 ms, as in a larger model.
SLOW = """
import sys, time
from kiara_runtime.engine.session import Cache
run = Cache.run
Cache.run = lambda *a, **k: (time.sleep(0.03), run(*a, **k))[1]
from kiara_runtime.commands.main import main
main(sys.argv[1:])
"""


# Names the tools, and writes calls as many templates do; short, as the tests' models have a short context.
TOOL_TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    '{% for c in m.tool_calls or [] %}<call>{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}</call>{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def renamed(bundle: Path, folder: Path) -> Path:
    """A copy of the bundle, named as its folder."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text("utf-8")) | {"name": folder.name}
    _sealed(folder, manifest)
    return folder


def with_chat(bundle: Path, folder: Path, template: str = TEMPLATE) -> Path:
    """A copy of the bundle whose model has a chat template."""
    shutil.copytree(bundle, folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"chat_template": template}), "utf-8")
    _sealed(folder, json.loads((folder / MANIFEST).read_text("utf-8")))
    return folder


def _sealed(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest again, with the hashes of the files as they are."""
    values = {name: value for name, value in manifest.items() if name not in ("format_version", "files", "sha256")}
    write_manifest(folder, values)


@dataclass
class Served:
    """A running `kiara-run serve`. lines: its log so far, complete once it has ended."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list[str])
    connections: list[socket.socket] = field(default_factory=list[socket.socket])

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def connect(self) -> socket.socket:
        """Open a bare connection, closed together with the server."""
        self.connections.append(socket.create_connection(("127.0.0.1", self.port), timeout=20))
        return self.connections[-1]

    def send(self, body: Any, path: str = "/v1/completions") -> socket.socket:
        """Send a request on a new connection without waiting for its answer."""
        data, connection = json.dumps(body, ensure_ascii=False).encode(), self.connect()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return connection

    def get(self, path: str) -> tuple[int, str]:
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **headers})
        status, text = self._ask(request)
        return status, json.loads(text)

    def metric(self, name: str) -> float:
        """The value of a metric, summed over its labels."""
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return sum(map(float, found))

    def wait_for(self, name: str, value: float, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while (found := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {found}, not {value}"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(60)
        self.reader.join(60)
        return code

    def read(self) -> None:
        """Read the log, in a separate thread: a full pipe would block the server."""
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def _ask(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextmanager
def served(bundle: Path, *options: object, ready: bool = True, program: str | None = None) -> Iterator[Served]:
    """Run the server on a free port until the block ends. program: Python code to run in its place."""
    words = ["serve", bundle, "--port", 0, *options]
    process = subprocess.Popen(
        [sys.executable, *(("-c", program) if program else ("-m", "kiara_runtime.commands.main")), *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "KIARA_LOG_LEVEL": "debug"},  # the log has probes, too
    )
    server = Served(process)
    try:
        while not (found := re.search(r"on (http://\S+)", "".join(server.lines))) and process.poll() is None:
            time.sleep(0.01)
        assert found, server.lines
        server.url = found[1]
        while ready and not any("is loaded" in line for line in server.lines) and process.poll() is None:
            time.sleep(0.01)
        yield server
    finally:
        for connection in server.connections:
            connection.close()
        process.kill()
        server.ended()
        assert process.stderr is not None
        process.stderr.close()


def received(connection: socket.socket, until: bytes | None = None) -> bytes:
    """Receive data up to and including `until`, or to the end of the connection."""
    data = b""
    while until is None or until not in data:
        part = connection.recv(1 << 16)
        assert part or until is None, data
        if not part:
            break
        data += part
    return data


def need(installed: bool, what: str) -> None:
    """Skip the test if something is not installed; fail it in CI, which installs it."""
    if not installed:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is not installed")
