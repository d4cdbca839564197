"""What a bundle does on this machine: load time, prefill and decode speed, memory. A process for itself.

Memory is looked at before requests run together: it is that of one.
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
    from kiara_runtime.model import Model
    from kiara_runtime.stream import Generation

PROMPT_TOKENS, DECODE_TOKENS, ROUNDS = 256, 64, 3


@dataclass(frozen=True)
class Speed:
    """Medians of ROUNDS rounds after one to warm up.

    load_seconds: of `kiara_runtime.load`, hashes and tokenizer included. prefill and decode in tokens/s.
    first_token_seconds: from the request to the first token. peak_memory_bytes: the largest resident size of the
    process, its interpreter included; None where unknown. batches: tokens/s of all together, by requests at once.
    """

    load_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    prompt_tokens: int
    peak_memory_bytes: int | None
    first_token_seconds: float = 0.0
    batches: dict[str, float] = field(default_factory=dict[str, float])

    def rows(self, recorded: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Label and figure, each beside what a receipt's figures `recorded`, as far as it did."""

        def beside(name: str, unit: str, scale: float = 1.0) -> str:
            here, there = getattr(self, name), recorded.get(name)
            ratio = f" ({here / there:.2f} of the receipt's {there * scale:,.4g})" if here and there else ""
            return f"{here * scale:,.4g} {unit}{ratio}"

        yield "load", beside("load_seconds", "s")
        yield f"prefill of {self.prompt_tokens} tokens", beside("prefill_tokens_per_second", "tokens/s")
        yield "first token after", f"{1000 * self.first_token_seconds:,.4g} ms"
        yield "decode", beside("decode_tokens_per_second", "tokens/s")
        for size, together in self.batches.items():
            yield f"decode, {size} at once, all together", f"{together:,.4g} tokens/s"
        if self.peak_memory_bytes is not None:
            yield "peak memory", beside("peak_memory_bytes", "MiB", 2**-20)


def measure_apart(bundle: Path, variant: str | None = None, **sizes: Any) -> Speed:
    """`measure` in a process of its own, whose memory is that of the variant alone."""
    words = [sys.executable, "-m", __name__, json.dumps({"bundle": str(bundle), "variant": variant, **sizes})]
    ours, theirs = os.pipe()
    try:  # the child ends when this end of the pipe is closed, by whatever ends this process
        done = subprocess.run(words, stdin=ours, capture_output=True, text=True, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}; is there memory enough?"])[-1]
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
) -> Speed:
    """Load the bundle and time it; the tokens are spread over the vocabulary, their text does not matter.

    batch: numbers of requests at once, each of a prompt of 16 tokens. A short context cuts prompt and output down.
    """
    from kiara_runtime.engine import SLOTS
    from kiara_runtime.model import load

    started = time.perf_counter()
    model = load(bundle, variant, threads, slots=max(SLOTS, *batch, 1))
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
    """Tokens/s of `size` requests from when all have begun: the median of the rounds."""
    speeds: list[float] = []
    for turn in range(ROUNDS):
        runs = _greedy(model, [_ids(model, 16, 64 * turn + i) for i in range(size)], steps)
        speeds.append(sum(steps / run.decode_seconds for run in runs))
    return statistics.median(speeds)


def _greedy(model: Model, prompts: list[list[int]], steps: int) -> list[Generation]:
    some = model.generate_all(prompts, max_tokens=steps + 1, temperature=0.0, ignore_eos=True)
    return [one for (one,) in some]


def _ids(model: Model, count: int, start: int) -> list[int]:
    """Tokens all over the vocabulary; another start begins with others, so that no cache knows the prompt."""
    return [(7919 * i + 31 * start) % model.tokenizer.vocab_size for i in range(1, count + 1)]


def _peak_memory() -> int | None:
    """The kernel's own mark of this program alone: ru_maxrss would count the parent's before the start."""
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
