"""Serve the page, a bundle and the npm packages to a browser on this machine; nothing comes from elsewhere.

npm install --prefix examples/browser
python examples/browser/serve.py bundles/demo
"""

import argparse
import contextlib
import mimetypes
import shutil
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).resolve().parent
PACKAGES = HERE / "node_modules"
POLICY = (
    "default-src 'self'; img-src 'self' data:; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "connect-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
PAGE = {"/": "index.html"} | {f"/{n}": n for n in ("page.js", "style.css", "offline.js", "app.webmanifest", "icon.svg")}
TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
}


class Handler(BaseHTTPRequestHandler):
    """Reads files below a few folders, and nothing else."""

    def __init__(self, folders: dict[str, Path], *args: object) -> None:
        self.folders = folders
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = self._find(unquote(urlsplit(self.path).path))
        if path is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", TYPES.get(path.suffix) or mimetypes.guess_type(path)[0] or "text/plain")
        self.send_header("Content-Length", str(path.stat().st_size))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")  # both: shared memory, so that the
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")  # graph runs on every core
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        with path.open("rb") as file, contextlib.suppress(ConnectionError):  # the browser may have gone
            shutil.copyfileobj(file, self.wfile)

    def _find(self, wanted: str) -> Path | None:
        for prefix, folder in self.folders.items():
            if wanted.startswith(prefix):
                try:
                    path = (folder / wanted[len(prefix) :]).resolve()
                    return path if path.is_file() and path.is_relative_to(folder.resolve()) else None
                except (ValueError, OSError):  # no name that a file could have
                    return None
        return HERE / PAGE[wanted] if wanted in PAGE else None

    def log_message(self, *args: object) -> None:
        """Quiet: the page says what happens."""


def make_server(bundle: Path, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1; port 0 takes a free one."""
    folders = {
        "/models/bundle/": bundle.resolve(),
        "/vendor/transformers/": PACKAGES / "@huggingface/transformers/dist",
        "/vendor/onnxruntime/": PACKAGES / "onnxruntime-web/dist",
    }
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, folders))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    if not (arguments.bundle / "kiara.json").is_file():
        parser.error(f"{arguments.bundle}: no bundle; name one that `kiara export` wrote")
    if not PACKAGES.is_dir():
        parser.error(f"npm install --prefix {HERE} first: it brings transformers.js")
    try:
        server = make_server(arguments.bundle, arguments.port)
    except (OSError, OverflowError) as error:
        parser.error(f"--port {arguments.port}: {error}; name another one")
    with server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("Stopped.")


if __name__ == "__main__":
    main()
