"""What a bundle does on this machine: load time, prefill and decode speed, memory. A process for itself."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kiara_runtime.errors import UserError

PROMPT_TOKENS, DECODE_TOKENS, ROUNDS = 256, 64, 3


@dataclass(frozen=True)
class Speed:
    """Medians of ROUNDS rounds after one to warm up.

    load_seconds: of `kiara_runtime.load`, hashes and tokenizer included. prefill and decode in tokens/s.
    peak_memory_bytes: the largest resident size of the process, its interpreter included; None where unknown.
    """

    load_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    prompt_tokens: int
    peak_memory_bytes: int | None


def machine() -> dict[str, Any]:
    """The machine that figures were taken on, as far as it tells."""
    import os

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": name, "cores": cores, "system": f"{platform.system()} {platform.machine()}"}


def measure_apart(bundle: Path, variant: str | None = None, threads: int | None = None) -> Speed:
    """`measure` in a process of its own, whose memory is that of the variant alone."""
    words = [sys.executable, "-m", __name__, json.dumps([str(bundle), variant, threads])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}; is there memory enough?"])[-1]
        raise UserError(f"{bundle}: measuring {variant} failed ({said[:300]})")
    return Speed(**json.loads(done.stdout))


def measure(bundle: Path, variant: str | None = None, threads: int | None = None) -> Speed:
    """Load the bundle and time it; the tokens are spread over the vocabulary, their text does not matter."""
    from kiara_runtime.generate import load

    started = time.perf_counter()
    model = load(bundle, variant=variant, threads=threads)
    load_seconds = time.perf_counter() - started
    prompt = min(PROMPT_TOKENS, max(1, model.context_length // 2))
    steps = min(DECODE_TOKENS, model.context_length - prompt - 1)
    ids = [(7919 * i) % model.tokenizer.vocab_size for i in range(prompt)]
    prefills: list[float] = []
    decodes: list[float] = []
    for _ in range(ROUNDS + 1):
        advance = model.begin()
        times = [time.perf_counter()]
        advance(ids)
        times.append(time.perf_counter())
        for i in range(steps):
            advance([ids[i % prompt]])
        times.append(time.perf_counter())
        prefills.append(prompt / (times[1] - times[0]))
        decodes.append(steps / (times[2] - times[1]))
    return Speed(
        load_seconds=load_seconds,
        prefill_tokens_per_second=statistics.median(prefills[1:]),
        decode_tokens_per_second=statistics.median(decodes[1:]),
        prompt_tokens=prompt,
        peak_memory_bytes=_peak_memory(),
    )


def _peak_memory() -> int | None:
    """The kernel's own mark of this program alone: ru_maxrss would count the parent's before the start."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    marks = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(marks[0][1]) * 1024 if marks else None


if __name__ == "__main__":
    path, variant, threads = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(asdict(measure(Path(path), variant, threads))))
