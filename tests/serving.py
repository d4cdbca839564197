"""A bundle that can chat, and a real server process, for the tests that need them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiara_runtime.bundle import MANIFEST, write_manifest

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def with_chat(bundle: Path, folder: Path) -> Path:
    """A copy of the bundle whose model has a chat template."""
    shutil.copytree(bundle, folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"chat_template": TEMPLATE}), "utf-8")
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    values = {name: value for name, value in manifest.items() if name not in ("format_version", "files", "sha256")}
    write_manifest(folder, values)
    return folder


@dataclass
class Served:
    """A running `kiara-run serve`. lines: what it has said, read once it has ended."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str] = field(default_factory=list[str])

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def get(self, path: str) -> tuple[int, str]:
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **headers})
        status, text = self._ask(request)
        return status, json.loads(text)

    def metric(self, name: str) -> float:
        """Summed over its labels."""
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
        _, said = self.process.communicate(timeout=60)
        self.lines += said.splitlines()
        return self.process.returncode

    def _ask(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextmanager
def served(bundle: Path, *options: object, ready: bool = True) -> Iterator[Served]:
    """Run the server on a free port until the block ends."""
    words = ["serve", bundle, "--port", 0, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "kiara_runtime.cli", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        found = re.search(r"on (http://\S+)", first)
        assert found, first + process.stderr.read()
        server = Served(process, found[1], [first])
        while ready and server.get("/ready")[0] != 200 and process.poll() is None:
            time.sleep(0.02)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)
