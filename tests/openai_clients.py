"""OpenAI's client packages for Python and npm behind one signature, so that one test can run with both."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import openai
from serving import need

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / "examples/clients"
DRIVER = REPOSITORY / "tests/clients/node_client.mjs"
CALL_SECONDS = 30.0


class FailedError(Exception):
    """An exception raised by a client package. kind: its class name in the npm package."""

    def __init__(self, kind: str, status: int | None, param: str | None, code: str | None, message: str) -> None:
        super().__init__(f"{kind} ({status}): {message}")
        self.kind, self.status, self.param, self.code, self.message = kind, status, param, code, message


class Client(Protocol):
    def __call__(
        self,
        url: str,
        what: str,
        *positional: str,
        key: str = "none",
        timeout: float = CALL_SECONDS,
        close_after: int | None = None,
        extra: dict[str, Any] | None = None,
        **named: Any,
    ) -> Any:
        """The answer as JSON values, or the list of a stream's chunks.

        what: a method such as `models.list`. timeout: in seconds. close_after: close the stream after so many chunks.
        extra: parameters that the package does not define. Raises FailedError.
        """


def by_python(
    url: str,
    what: str,
    *positional: str,
    key: str = "none",
    timeout: float = CALL_SECONDS,
    close_after: int | None = None,
    extra: dict[str, Any] | None = None,
    **named: Any,
) -> Any:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=timeout, max_retries=0) as client:
        method: Any = client
        for name in what.split("."):
            method = getattr(method, name)
        try:
            answer = method(*positional, **named, **({"extra_body": extra} if extra else {}))
            if not isinstance(answer, openai.Stream):
                return answer.to_dict()
            with answer:
                return [chunk.to_dict() for chunk in islice(answer, close_after)]
        except openai.APIError as error:
            kind = {"APITimeoutError": "APIConnectionTimeoutError"}.get(type(error).__name__, type(error).__name__)
            status = error.status_code if isinstance(error, openai.APIStatusError) else None
            raise FailedError(kind, status, error.param, error.code, error.message) from error


def need_node() -> str:
    """The path of Node.js. Without Node.js or the npm package the test is skipped; in CI it fails."""
    node = shutil.which("node")
    need(node is not None and (EXAMPLES / "node_modules/openai").is_dir(), "Node.js or the npm package openai")
    assert node is not None
    return node


@contextmanager
def by_node() -> Iterator[Client]:
    """Run the Node.js driver until the block ends."""
    command = [need_node(), str(DRIVER), str(EXAMPLES / "package.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:

        def call(
            url: str,
            what: str,
            *positional: str,
            key: str = "none",
            timeout: float = CALL_SECONDS,
            close_after: int | None = None,
            extra: dict[str, Any] | None = None,
            **named: Any,
        ) -> Any:
            args = [*positional, *([{**named, **(extra or {})}] if named or extra else [])]
            asked = {"baseURL": f"{url}/v1", "apiKey": key, "timeout": timeout * 1000}
            asked |= {"what": what, "args": args, "closeAfter": close_after}
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(asked) + "\n")
            answer = json.loads(process.stdout.readline())
            if "error" in answer:
                raise FailedError(**answer["error"])
            return answer["result"]

        yield call
        process.kill()
