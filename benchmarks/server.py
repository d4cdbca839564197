"""The server under load: throughput beside the engine's own, fairness, clients that leave, a full queue, a long soak.

Run by hand: `make bench-server BUNDLE=...` (some ten minutes), `make soak BUNDLE=...` (twenty more). Prints Markdown.

python benchmarks/server.py BUNDLE [--health-seconds 300] [--soak-seconds 0]
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiara_runtime import load
from kiara_runtime.system.machine import machine

ROUNDS, SLOTS, QUEUE = 3, 8, 32
TOKENS = 96  # of an answer
GREEDY = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}


class Server:
    """`kiara-run serve` as a process; its log is thrown away."""

    def __init__(self, bundle: Path, *options: object) -> None:
        words = [sys.executable, "-m", "kiara_runtime.commands.main", "serve", bundle, "--port", 0, *options]
        self.process = subprocess.Popen([str(word) for word in words], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        self.port = int(re.findall(r":(\d+)\s*$", first)[0])
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        while self.get("/ready")[0] != 200:
            time.sleep(0.02)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        response = connection.getresponse()
        found = response.status, response.read()
        connection.close()
        return found

    def ask(
        self, path: str = "/v1/completions", **body: Any
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {**GREEDY, **body}
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def metric(self, name: str) -> float:
        text = self.get("/metrics")[1].decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def resident(self) -> int:
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[0]) << 10

    def held(self) -> tuple[int, int]:
        """Threads and descriptors."""
        task, fd = (len(list(Path(f"/proc/{self.process.pid}", name).iterdir())) for name in ("task", "fd"))
        return task, fd


@contextmanager
def running(bundle: Path, *options: object) -> Iterator[Server]:
    server = Server(bundle, *options)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Of 32 tokens, no two of which begin alike."""
    rng = random.Random(seed)
    return [[rng.randrange(300, 500) for _ in range(32)] for _ in range(count)]


def stream(server: Server, prompt: list[int]) -> tuple[float, float, float]:
    """When it was sent, its first token came, and its last."""
    sent = time.perf_counter()
    connection, response = server.ask(prompt=prompt, stream=True)
    times = [time.perf_counter() for line in response if line.startswith(b"data: {")]
    connection.close()
    return sent, times[0], times[-1]


def streams(server: Server, batch: list[list[int]]) -> None:
    """Read a stream for each prompt to its end, with as little of the processor as can be: the server has two cores."""
    with selectors.DefaultSelector() as selector:
        for prompt in batch:
            body = json.dumps({**GREEDY, "prompt": prompt, "stream": True})
            connection = socket.create_connection(("127.0.0.1", server.port))
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = key.fileobj.recv(1 << 16)
                assert data, "the server closed a stream"
                if b"data: [DONE]" in data:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


def at_once(count: int, do: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(do, range(count)))


def throughput(bundle: Path, say: Callable[[str, str], None]) -> None:
    """Eight streams over HTTP and eight sequences in the engine, in turn, prompts included."""
    with running(bundle) as server, load(bundle) as model:
        ratios: list[float] = []
        for turn in range(ROUNDS + 1):
            batch = prompts(SLOTS, turn)
            started = time.perf_counter()
            model.generate_all(batch, max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
            alone = time.perf_counter() - started
            started = time.perf_counter()
            streams(server, batch)
            served = time.perf_counter() - started
            if turn:
                ratios.append(alone / served)
                tokens = SLOTS * TOKENS / served
        say(
            "8 streams, tokens/s of all by the engine's own",
            f"{statistics.median(ratios):.2f} ({tokens:,.0f} tokens/s)",
        )


def fairness(server: Server, say: Callable[[str, str], None]) -> None:
    waits: list[float] = []
    for turn in range(ROUNDS):
        batch = prompts(16, 100 + turn)
        found = at_once(16, lambda i, batch=batch: stream(server, batch[i]))
        first = [first - sent for sent, first, _ in found]
        waits.append(max(first) / statistics.median(first))
    say("first token under 16 at once, slowest by median", f"{statistics.median(waits):.2f}")


def leaving(server: Server, say: Callable[[str, str], None]) -> None:
    """200 requests, 40 at a time, each dropped after half a second."""

    def drop(index: int) -> None:
        while True:
            connection, response = server.ask(prompt=prompts(1, index)[0], stream=True, max_tokens=2000)
            if response.status == 200:
                break
            connection.close()  # those that left a moment ago are still seen as there
            time.sleep(0.05)
        time.sleep(0.5)
        connection.close()

    with ThreadPoolExecutor(SLOTS + QUEUE) as pool:
        list(pool.map(drop, range(200)))
    left = time.perf_counter()
    connection, response = server.ask(prompt="x", max_tokens=1)
    assert response.read() and response.status == 200
    connection.close()
    answered = time.perf_counter() - left
    while server.metric("kiara_requests_running") or server.metric("kiara_requests_waiting"):
        time.sleep(0.05)
    say("200 dropped: the next one answered after", f"{answered:.2f} s")
    say(
        "gauges at 0 after",
        f"{time.perf_counter() - left:.2f} s; {server.metric('kiara_disconnects_total'):.0f} counted",
    )


def surplus(server: Server, say: Callable[[str, str], None]) -> None:
    """Twice as many as the server lets in."""
    limit = SLOTS + QUEUE

    def ask(index: int) -> tuple[int, float]:
        started = time.perf_counter()
        connection, response = server.ask(prompt=prompts(1, 1000 + index)[0], max_tokens=32)
        response.read()
        connection.close()
        return response.status, time.perf_counter() - started

    found = at_once(2 * limit, ask)
    refused = [1000 * seconds for status, seconds in found if status == 429]
    counts = f"{sum(status == 200 for status, _ in found)} answered, {len(refused)} refused of {2 * limit}"
    say("twice the limit at once", counts)
    say("refused within", f"{statistics.median(refused):.0f} ms (median), {max(refused):.0f} ms (slowest)")


def saturated(server: Server, seconds: float, say: Callable[[str, str], None]) -> None:
    """/health every 50 ms while as many requests as are let in keep coming."""
    end, times = time.monotonic() + seconds, list[float]()

    def keep_asking(index: int) -> int:
        done = 0
        while time.monotonic() < end:
            stream(server, prompts(1, 5000 + index + 100 * done)[0])
            done += 1
        return done

    with ThreadPoolExecutor(SLOTS + QUEUE) as pool:
        work = [pool.submit(keep_asking, index) for index in range(SLOTS + QUEUE)]
        while time.monotonic() < end:
            started = time.perf_counter()
            assert server.get("/health")[0] == 200
            times.append(1000 * (time.perf_counter() - started))
            time.sleep(0.05)
        done = sum(one.result() for one in work)
    times.sort()
    p99 = times[int(0.99 * len(times))]
    say(
        f"/health for {seconds:.0f} s beside {SLOTS + QUEUE} requests at a time ({done} in all)",
        f"p50 {statistics.median(times):.1f} ms, p99 {p99:.1f} ms, slowest {times[-1]:.1f} ms of {len(times)}",
    )


def mixed(server: Server, say: Callable[[str, str], None]) -> None:
    """The speed of four streams beside texts to embed, tool calls or both, by their speed beside as many plain streams
    with prompts of the same length.

    For a bundle with a chat template that was exported with --embeddings.
    """
    sentences = ["A sentence of some length, that somebody wants to find again later. " * 2] * 8
    tool = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    tools = [{"type": "function", "function": {"name": "note", "parameters": tool}}]
    call = {"messages": [{"role": "user", "content": "Write a note."}], "tools": tools, "tool_choice": "required"}
    embeds = ("/v1/embeddings", {"input": sentences})
    calls = ("/v1/chat/completions", {**call, **GREEDY})
    connection, response = server.ask("/v1/chat/completions", **call)
    size = json.loads(response.read())["usage"]["prompt_tokens"]
    connection.close()
    plain = ("/v1/completions", {**GREEDY, "prompt": prompts(1, 7)[0][:1] * size})
    cases = {"embeddings": ([embeds], []), "tools": ([calls, calls], [plain, plain])}
    cases["tools and embeddings"] = ([calls, calls, embeds], [plain, plain])
    for name, (others, peers) in cases.items():
        ratios, done = list[float](), 0
        for turn in range(ROUNDS + 1):
            batch = prompts(4, 9000 + turn)
            usual, _ = beside(server, batch, peers)
            found, done = beside(server, batch, others)
            ratios.append(usual / found)
        told = ", ".join(f"{ratio:.2f}" for ratio in ratios[1:])
        say(
            f"4 streams beside {name}, speed by that beside {len(peers)} plain streams",
            f"{statistics.median(ratios[1:]):.2f} ({told}); {done} answered beside them",
        )


def beside(server: Server, batch: list[list[int]], others: list[tuple[str, dict[str, Any]]]) -> tuple[float, int]:
    """Seconds that streams of these prompts take while others keep asking, and how many of those were answered."""
    over, answered = threading.Event(), list[int]()

    def keep_asking(path: str, body: dict[str, Any]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        while not over.is_set():
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            assert response.status == 200, text
            answered.append(1)
        connection.close()

    with ThreadPoolExecutor(max(1, len(others))) as pool:
        work = [pool.submit(keep_asking, *other) for other in others]
        time.sleep(1)  # they have begun
        started = time.perf_counter()
        streams(server, batch)
        taken, count = time.perf_counter() - started, len(answered)
        over.set()
        for one in work:
            one.result()
    return taken, count


def soak(bundle: Path, seconds: float, say: Callable[[str, str], None]) -> None:
    """Requests of many sizes from 12 clients, a fifth of them aborted; memory from the first quarter to the end."""
    with running(bundle) as server:
        end, begun = time.monotonic() + seconds, time.monotonic()
        marks: list[tuple[float, int]] = []
        held: list[tuple[int, int]] = []

        def client(index: int) -> int:
            rng, done = random.Random(index), 0
            while time.monotonic() < end:
                size, tokens = rng.randrange(1, 200), rng.randrange(1, 100)
                prompt = [rng.randrange(300, 500) for _ in range(size)]
                connection, response = server.ask(prompt=prompt, max_tokens=tokens, stream=rng.random() < 0.7)
                if rng.random() < 0.2:
                    response.read(rng.randrange(1, 400))
                else:
                    response.read()
                connection.close()
                done += 1
            return done

        with ThreadPoolExecutor(12) as pool:
            work = [pool.submit(client, index) for index in range(12)]
            while time.monotonic() < end:
                time.sleep(min(10.0, seconds / 60))
                marks.append((time.monotonic() - begun, server.resident()))
                held.append(server.held())
            done = sum(one.result() for one in work)
        early = statistics.median(size for at, size in marks if seconds / 4 <= at < seconds / 2)
        late = statistics.median(size for at, size in marks if at >= 3 * seconds / 4)
        say(f"soak of {seconds / 60:.0f} min, {done} requests, a fifth aborted", f"memory {late / early - 1:+.2%}")
        say("resident, second quarter / last quarter", f"{early / 2**20:.1f} / {late / 2**20:.1f} MiB")
        threads = [count for count, _ in held[len(held) // 4 :]]
        files = [count for _, count in held[len(held) // 4 :]]
        say("threads, descriptors (least to most)", f"{min(threads)}-{max(threads)}, {min(files)}-{max(files)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--health-seconds", type=float, default=300.0)
    parser.add_argument(
        "--mixed", action="store_true", help="Streams beside tool calls and embeddings, and nothing else."
    )
    parser.add_argument("--soak-seconds", type=float, default=0.0, help="Soak, and nothing else.")
    options = parser.parse_args()
    print(f"{options.bundle.name} on {' '.join(str(value) for value in machine().values())}\n")
    print("| what | figure |\n|---|---|")

    def say(what: str, figure: str) -> None:
        print(f"| {what} | {figure} |", flush=True)

    if options.soak_seconds:
        soak(options.bundle, options.soak_seconds, say)
        return
    if options.mixed:
        with running(options.bundle) as server:
            mixed(server, say)
        return
    throughput(options.bundle, say)
    with running(options.bundle, "--slots", SLOTS, "--queue", QUEUE) as server:
        fairness(server, say)
        leaving(server, say)
        surplus(server, say)
        saturated(server, options.health_seconds, say)


if __name__ == "__main__":
    main()
