"""A server that speaks the paths of the Hugging Face Hub which a download needs, on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/?]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Hub:
    """files: the folder of owner/name. cut: files whose first download breaks off in the middle. requests: seen."""

    files: Path
    name: str = "owner/name"
    token: str | None = None
    gated: bool = False
    cut: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if found := _API.fullmatch(self.path.split("?")[0]):
            self._info(found[1], found[2])
        elif found := _TREE.fullmatch(self.path.split("?")[0]):
            self._tree(found[1], found[2])
        elif found := _FILE.fullmatch(self.path.split("?")[0]):
            self._file(found[1], found[2], found[3])
        else:
            self._refuse(404, "EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _allowed(self, name: str, revision: str | None) -> bool:
        if name != self.hub.name:
            self._refuse(401, "RepoNotFound")
        elif self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(403 if self.hub.gated else 401, "GatedRepo" if self.hub.gated else "RepoNotFound")
        elif revision not in (None, "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def _info(self, name: str, revision: str | None) -> None:
        if not self._allowed(name, revision):
            return
        names = sorted(str(path.relative_to(self.hub.files)) for path in self.hub.files.rglob("*") if path.is_file())
        siblings = [{"rfilename": one} for one in names]
        self._send(json.dumps({"id": self.hub.name, "sha": COMMIT, "siblings": siblings}).encode(), {})

    def _tree(self, name: str, revision: str | None) -> None:
        if not self._allowed(name, revision):
            return
        files = [path for path in sorted(self.hub.files.rglob("*")) if path.is_file()]
        listed = [
            {
                "type": "file",
                "path": str(path.relative_to(self.hub.files)),
                "size": path.stat().st_size,
                "oid": "0" * 40,
            }
            for path in files
        ]
        self._send(json.dumps(listed).encode(), {})

    def _file(self, name: str, revision: str, file: str) -> None:
        if not self._allowed(name, revision):
            return
        path = self.hub.files / file
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        data = path.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        self._send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, file)

    def _send(self, data: bytes, headers: dict[str, str], file: str = "") -> None:
        begin = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(begin[1]) if begin else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if file in self.hub.cut:
            self.hub.cut.discard(file)
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(data[start:])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port, whose address `hub` then has."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfOne", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
