"""What the engine promises, on a real model: speculation, requests at once, decoding beside a long prompt, the same
bytes.

Run by hand, `make bench-engine`: some ten minutes on two cores. Prints Markdown; ratios are of runs side by side.

python benchmarks/engine.py BUNDLE [FLOAT32_BUNDLE [DEMO_BUNDLE]]
"""

from __future__ import annotations

import argparse
import calendar
import csv
import http
import inspect
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from kiara_runtime import Model, load
from kiara_runtime.system.machine import machine

ROUNDS = 3
CODE = [inspect.getsource(module) for module in (argparse, calendar, csv, textwrap, http, statistics)]
REPEATS = [
    "\n".join(f"{status.value},{status.name},{status.phrase}" for status in http.HTTPStatus),
    json.dumps(
        [{"id": i, "name": name, "days": 31 - i % 2, "open": True} for i, name in enumerate(calendar.month_name)]
    ),
    "\n".join(f"2024-03-{day:02d} 09:15:{day:02d} INFO worker {day % 3} finished job {day}" for day in range(1, 30)),
]
ENGLISH = "\n\n".join(topics.values())


def greedy(model: Model, ids: list[int], tokens: int, **options: Any) -> Any:
    return model.generate(ids, max_tokens=tokens, temperature=0.0, ignore_eos=True, **options)


def pieces(model: Model, texts: Iterable[str], tokens: int, start: int = 0) -> list[list[int]]:
    return [model.tokenize(text)[start : start + tokens] for text in texts]


def speculation(model: Model, judge: Model | None) -> None:
    rng = random.Random(0)
    noise = [[rng.randrange(1000, model.tokenizer.vocab_size) for _ in range(200)] for _ in range(4)]
    kinds = {
        "code": (pieces(model, CODE, 400, 300), {"temperature": 0.0}),
        "text with repeats": (pieces(model, REPEATS, 300), {"temperature": 0.0}),
        "English": (pieces(model, [ENGLISH[i * 9000 :] for i in range(1, 6)], 300), {"temperature": 0.0}),
        "random tokens, temperature 1.5": (noise, {"temperature": 1.5, "seed": 1}),
    }
    print("\n## Guesses ahead against plain decode, 160 tokens\n")
    print("| text | speed | lowest of a prompt | accepted of guessed | other text | nats a token, plain | ahead |")
    print("|---|---|---|---|---|---|---|")
    for name, (prompts, options) in kinds.items():
        ratios: list[float] = []
        departing, likelihoods, counts = 0, [[], []], [0, 0]
        for prompt in prompts:
            greedy(model, prompt, 1)  # the prompt is known to both from here on
            both: list[list[float]] = [[], []]
            for _ in range(ROUNDS):
                runs = [
                    model.generate(prompt, max_tokens=160, ignore_eos=True, speculate=ahead, **options)
                    for ahead in (False, True)
                ]
                for seconds, run in zip(both, runs, strict=True):
                    seconds.append(run.decode_seconds)
            plain, ahead = runs
            ratios.append(statistics.median(a / b for a, b in zip(*both, strict=True)))
            departing += plain.tokens != ahead.tokens
            counts = [counts[0] + ahead.accepted_tokens, counts[1] + ahead.drafted_tokens]
            if judge is not None:
                for sums, run in zip(likelihoods, runs, strict=True):
                    sums.append(-judge.score(prompt, run.tokens).logprob / len(run.tokens))
        nats = [f"{statistics.mean(sums):.4f}" if sums else "-" for sums in likelihoods]
        print(
            f"| {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | {counts[0]} of {counts[1]} | "
            f"{departing} of {len(prompts)} | {' | '.join(nats)} |",
            flush=True,
        )


def together(model: Model, count: int = 8, tokens: int = 128) -> None:
    """Wall time of the requests one after the other over that of all at once, prompts included."""
    ratios: list[float] = []
    for turn in range(ROUNDS):
        prompts = [[*pieces(model, [ENGLISH[4000 * (9 * turn + i + 1) :]], 32)[0]] for i in range(count)]
        started = time.perf_counter()
        alone = [greedy(model, prompt, tokens).tokens for prompt in prompts]
        middle = time.perf_counter()
        prompts = [[prompt[0] + 1, *prompt[1:]] for prompt in prompts]  # others, that no slot knows
        found = model.generate_all(prompts, max_tokens=tokens, temperature=0.0, ignore_eos=True)
        ended = time.perf_counter()
        assert len(found) == len(alone)
        ratios.append((middle - started) / (ended - middle))
    print(
        f"\n{count} requests of 32 + {tokens} tokens at once: {statistics.median(ratios):.2f} times one after the other"
    )


def guest(model: Model) -> None:
    """Time between the tokens of a stream, alone and while a prompt of 1,000 tokens is computed."""
    ids = pieces(model, [ENGLISH[50_000:]], 1000)[0]
    stream = model.stream(pieces(model, [ENGLISH], 100)[0], max_tokens=700, temperature=0.0, ignore_eos=True)
    alone = gaps(stream, 100)
    long = model.stream(ids, max_tokens=1, temperature=0.0, ignore_eos=True)
    started, during = time.perf_counter(), list[float]()
    while not long.sequence.pieces:  # looks without making a step
        during += gaps(stream, 1)
    seconds, step = time.perf_counter() - started, statistics.median(alone)
    stream.close()
    added = sorted((gap - step) / step for gap in during)
    print(
        f"\nA prompt of 1,000 tokens beside a stream: {seconds:.1f} s; the stream's {len(during)} tokens meanwhile "
        f"{statistics.median(added):.2f} steps later than alone ({1000 * step:.1f} ms), 95 % at most "
        f"{added[int(0.95 * len(added))]:.2f}, all {added[-1]:.2f}"
    )


def gaps(stream: Any, count: int) -> list[float]:
    times = [time.perf_counter()]
    for _ in itertools.islice(stream, count):
        times.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(times)]


def same_bytes(bundle: Path, turns: int = 63) -> None:
    """SequentialRunner, among seven others, streamed, with a known prefix, with a restored one."""
    model, compared, differing = load(bundle), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        stored = [load(bundle, prompt_cache=folder) for _ in range(2)]
        for turn in range(turns):
            options = {"max_tokens": 16, "temperature": (0.0, 0.8)[turn % 2], "seed": turn, "ignore_eos": True}
            prompts = pieces(model, [ENGLISH[3000 * (turn + i) :] for i in range(8)], 40 + 3 * (turn % 40))
            with load(bundle) as fresh:  # knows nothing
                expected = fresh.generate(prompts[0], **options).text
            found = [
                model.generate_all(prompts, **options)[0][0].text,
                model.generate(prompts[0], **options).text,
                "".join(piece.text for piece in model.stream(prompts[0], **options)),
                *(one.generate(prompts[0], **options).text for one in (*stored, *stored)),
                model.generate_all([prompts[0]] * 2, **options)[1][0].text,
            ]
            compared += len(found)
            differing += sum(text != expected for text in found)
    print(f"\nThe same request {compared} times, alone, among seven, streamed, known, restored: {differing} differ")


def leak(model: Model, requests: int = 2000) -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))

    rng, seen = random.Random(0), list[int]()
    for i in range(requests):
        ids = [rng.randrange(model.tokenizer.vocab_size) for _ in range(rng.randrange(1, 60))]
        model.generate(ids, max_tokens=rng.randrange(1, 12), seed=i, logprobs=2, ignore_eos=True)
        if i % 100 == 99:
            seen.append(resident())
    print(f"\n{requests} requests: {seen[1]} MiB after 200, {seen[-1]} MiB after all ({seen[-1] / seen[1] - 1:+.1%})")


def cold(bundle: Path) -> None:
    """Seconds of whole processes, medians of 7."""
    run = Path(sys.executable).with_name("kiara-run")
    words = {
        "kiara-run generate, one token, whole process": [run, "generate", bundle, "-p", "def", "--max-tokens", "1"],
        "import kiara_runtime": [sys.executable, "-c", "import kiara_runtime"],
        "import kiara_runtime and all that load needs": [sys.executable, "-c", "import kiara_runtime.model"],
        "python alone": [sys.executable, "-c", ""],
    }
    for name, command in words.items():
        seconds: list[float] = []
        for _ in range(7):
            started = time.perf_counter()
            subprocess.run([str(word) for word in command], check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
        print(f"{name}: {statistics.median(seconds):.3f} s")


def main(bundle: Path, float32: Path | None = None, demo: Path | None = None) -> None:
    print(f"{bundle} on {' '.join(str(value) for value in machine().values())}")
    with load(bundle) as model:
        together(model)
        guest(model)
    with load(bundle) as model:
        speculation(model, load(float32) if float32 else None)
    same_bytes(bundle)
    with load(demo or bundle) as model:
        leak(model)
    cold(demo or bundle)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
