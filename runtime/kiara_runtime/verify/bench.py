"""Measures a bundle on this machine: load time, prefill and decode speed, memory; in a process of its own if needed.

Memory is read before requests run concurrently, so it is that of one request.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiara_runtime.errors import UserError

if TYPE_CHECKING:
    from kiara_runtime.engine import KVCache
    from kiara_runtime.model import Model
    from kiara_runtime.stream import Generation

PROMPT_TOKENS, DECODE_TOKENS, ROUNDS = 256, 64, 3


@dataclass(frozen=True)
class Speed:
    """Medians of ROUNDS rounds after a warm-up round.

    load_seconds: of `kiara_runtime.load`, hashes and tokenizer included. prefill and decode in tokens/s.
    first_token_seconds: from the request to the first token. peak_memory_bytes: the peak resident size of the
    process, its interpreter included; None if unknown. batches: number of concurrent requests -> tokens/s in total.
    """

    load_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    prompt_tokens: int
    peak_memory_bytes: int | None
    first_token_seconds: float = 0.0
    batches: dict[str, float] = field(default_factory=dict[str, float])

    def rows(self, recorded: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Labels and figures, compared with a receipt's figures, `recorded`, where it has them."""

        def beside(name: str, unit: str, scale: float = 1.0) -> str:
            here, there = getattr(self, name), recorded.get(name)
            ratio = f" ({here / there:.2f} of the receipt's {there * scale:,.4g})" if here and there else ""
            return f"{here * scale:,.4g} {unit}{ratio}"

        yield "load", beside("load_seconds", "s")
        yield f"prefill of {self.prompt_tokens} tokens", beside("prefill_tokens_per_second", "tokens/s")
        yield "time to first token", f"{1000 * self.first_token_seconds:,.4g} ms"
        yield "decode", beside("decode_tokens_per_second", "tokens/s")
        for size, together in self.batches.items():
            yield f"decode, {size} at once, in total", f"{together:,.4g} tokens/s"
        if self.peak_memory_bytes is not None:
            yield "peak memory", beside("peak_memory_bytes", "MiB", 2**-20)


def measure_in_subprocess(bundle: Path, variant: str | None = None, **sizes: Any) -> Speed:
    """Run `measure` in a separate process, so that its memory is that of the variant alone."""
    words = [sys.executable, "-m", __name__, json.dumps({"bundle": str(bundle), "variant": variant, **sizes})]
    ours, theirs = os.pipe()
    try:  # the child ends when this end of the pipe is closed, however this process ends
        done = subprocess.run(words, stdin=ours, capture_output=True, text=True, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, perhaps out of memory"])[-1]
        raise UserError(
            bundle, f"measuring {variant} failed ({said[:300]})", "close other programs, or use another variant"
        )
    return Speed(**json.loads(done.stdout))


def measure(
    bundle: Path,
    variant: str | None = None,
    threads: int | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    max_tokens: int = DECODE_TOKENS,
    batch: Sequence[int] = (),
    kv_cache: KVCache = "fp32",
) -> Speed:
    """Load the bundle and time it, with tokens from all over the vocabulary, as their text does not matter.

    batch: numbers of concurrent requests, each with a prompt of 16 tokens. A short context shortens prompt and output.
    """
    from kiara_runtime.engine import SLOTS
    from kiara_runtime.loading import load

    started = time.perf_counter()
    model = load(bundle, variant, threads, slots=max(SLOTS, *batch, 1), kv_cache=kv_cache)
    load_seconds = time.perf_counter() - started
    prompt = min(prompt_tokens, max(1, model.context_length // 2))
    steps = min(max_tokens, model.context_length - prompt) - 1
    runs = [_greedy(model, [_ids(model, prompt, i)], steps)[0] for i in range(ROUNDS + 1)][1:]
    first = statistics.median(run.prefill_seconds for run in runs)
    return Speed(
        load_seconds=load_seconds,
        prefill_tokens_per_second=prompt / first,
        decode_tokens_per_second=statistics.median(steps / run.decode_seconds for run in runs),
        prompt_tokens=prompt,
        first_token_seconds=first,
        peak_memory_bytes=_peak_memory(),
        batches={str(size): _together(model, size, steps) for size in batch},
    )


def _together(model: Model, size: int, steps: int) -> float:
    """Decode speed of `size` concurrent requests in total, tokens/s: the median of the rounds."""
    speeds: list[float] = []
    for turn in range(ROUNDS):
        runs = _greedy(model, [_ids(model, 16, 64 * turn + i) for i in range(size)], steps)
        speeds.append(sum(steps / run.decode_seconds for run in runs))
    return statistics.median(speeds)


def _greedy(model: Model, prompts: list[list[int]], steps: int) -> list[Generation]:
    some = model.generate_all(prompts, max_tokens=steps + 1, temperature=0.0, ignore_eos=True)
    return [one for (one,) in some]


def _ids(model: Model, count: int, start: int) -> list[int]:
    """Ids from all over the vocabulary; each `start` begins with different ones, so that no cached prefix matches."""
    return [(7919 * i + 31 * start) % model.tokenizer.vocab_size for i in range(1, count + 1)]


def _peak_memory() -> int | None:
    """The kernel's peak for this program alone: ru_maxrss would include the parent's memory at the fork."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    marks = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(marks[0][1]) * 1024 if marks else None


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.write(json.dumps(asdict(measure(**json.loads(sys.argv[1])))))
