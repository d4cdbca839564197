"""What commands print: in any encoding, to closed pipes and on full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kiara_runtime.loading import load

COMMAND = [sys.executable, "-m", "kiara_runtime.commands.main"]


def _run(*words: object, encoding: str = "utf-8", **options: Any) -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run([*COMMAND, *map(str, words)], env=environ, capture_output=True, check=False, **options)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-8"])
def test_unencodable_characters_print_as_question_marks_and_json_is_complete(encoding: str, bundle: Path) -> None:
    options = ("generate", bundle, "-p", "日本 é", "--echo", "--max-tokens", 3, "--seed", 1)
    text, as_json = _run(*options, encoding=encoding), _run(*options, "--json", encoding=encoding)
    assert text.returncode == as_json.returncode == 0 and b"Traceback" not in text.stderr + as_json.stderr
    assert text.stdout.startswith("日本 é".encode(encoding, "replace"))
    assert json.loads(as_json.stdout)["text"].startswith("日本 é")
    missing = _run("info", "日本-\udcff", encoding=encoding)
    assert missing.returncode == 1 and b"there is no such folder" in missing.stderr and missing.stderr.count(b"\n") == 1


def test_a_byte_order_mark_is_stripped_from_a_piped_prompt(bundle: Path) -> None:
    options = ("generate", bundle, "--echo", "--max-tokens", 0)
    assert _run(*options, input=b"\xef\xbb\xbfdef").stdout == _run(*options, input=b"def").stdout


def test_a_closed_output_pipe_ends_generate_quietly(bundle: Path) -> None:
    words = [*COMMAND, "generate", str(bundle), "-p", "def", "--max-tokens", "90", "--ignore-eos"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 1 and said == b""


def test_the_server_keeps_running_after_its_log_pipe_closes(bundle: Path) -> None:
    """The pipe is closed after the first line; the server still loads, answers and drains."""
    words = [*COMMAND, "serve", str(bundle), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split(" on ")[1].strip()
        process.stderr.close()
        assert _fetch(f"{url}/ready", process)
        body = json.dumps({"prompt": "x", "max_tokens": 5}).encode()
        assert json.loads(_fetch(f"{url}/v1/completions", process, body))["usage"]["completion_tokens"] <= 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def _fetch(url: str, process: subprocess.Popen[str], body: bytes | None = None) -> bytes:
    """Repeat the request until it succeeds; return the body of the answer."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    while process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                error.read()
        time.sleep(0.05)
    raise AssertionError(f"it ended with {process.returncode}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device")
def test_a_full_disk_during_output_gives_a_one_line_error(bundle: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        words = [*COMMAND, "generate", str(bundle), "-p", "def", "--max-tokens", "3"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and b"No space left" in done.stderr and done.stderr.count(b"\n") == 1


def test_async_generations_do_not_block_the_threads_of_the_application(bundle: Path) -> None:
    """More generations than asyncio has threads; none can end before the application's own thread has run."""
    import asyncio
    import threading

    from kiara_runtime.aio import AsyncModel

    model, ran = load(bundle), threading.Event()
    twin = AsyncModel(model)
    model.runner = _Waiting(model.runner, ran)  # type: ignore[assignment]

    async def many() -> int:
        tasks = [asyncio.create_task(twin.generate("x", max_tokens=2)) for _ in range(60)]
        await asyncio.sleep(0)
        await asyncio.to_thread(ran.set)
        return len(await asyncio.gather(*tasks))

    assert asyncio.run(asyncio.wait_for(many(), 60)) == 60
    twin.close()


class _Waiting:
    """A runner whose steps wait for an event."""

    def __init__(self, runner: Any, event: Any) -> None:
        self._runner, self._event = runner, event

    def wait(self, *arguments: Any) -> None:
        assert self._event.wait(60)
        self._runner.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)
