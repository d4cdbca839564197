"""An int8 KV cache beside a float32 one: `make bench-cache`. Decode steps and prompts in turn, medians of five rounds.

python benchmarks/kv_cache.py BUNDLE [VARIANT]
"""

import statistics
import sys
import time

from kiara_runtime.bundle import Bundle
from kiara_runtime.engine import Session
from kiara_runtime.system import machine

CACHED = (64, 256, 1000, 1500)
STEPS, ROUNDS, CHUNK = 32, 5, 256


def main(folder: str, variant: str | None = None) -> None:
    bundle = Bundle.open(folder)
    kinds = [Session(bundle.graph_of(variant, cache), bundle.architecture) for cache in (False, True)]
    print(f"{bundle.folder.name} {variant or bundle.variants[0]} on {' '.join(map(str, machine().values()))}\n")
    print("| cached tokens | decode, ms a token | int8 is faster by | 256 tokens of a prompt, ms | int8 is faster by |")
    print("|---|---|---|---|---|")
    for cached in CACHED:
        if cached + max(STEPS, CHUNK) + 1 > bundle.architecture.context_length:
            break
        rounds = [[timed(session, cached) for session in kinds] for _ in range(ROUNDS)]
        cells = []
        for part, unit in (("step", "{:.2f}"), ("chunk", "{:.0f}")):
            medians = [statistics.median(one[kind][part] for one in rounds) for kind in (0, 1)]
            ratios = [one[0][part] / one[1][part] for one in rounds]
            cells.append(", ".join(map(unit.format, medians)))
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"| {cached:,} | {' | '.join(cells)} |", flush=True)
    sizes = [session.cache(1).buffers.nbytes for session in kinds]
    print(f"\nA sequence's cache takes {sizes[1] / sizes[0]:.2f} of the memory.")


def timed(session: Session, cached: int) -> dict[str, float]:
    """Milliseconds of a decode step and of a pass over CHUNK tokens, both after `cached` tokens."""
    ids = [7919 * i % session.architecture.vocab_size for i in range(1, cached + CHUNK + STEPS + 1)]
    decoder, steps = session.decoder(), []
    decoder(ids[:cached])
    for token in ids[cached : cached + STEPS]:
        began = time.perf_counter()
        decoder([token])
        steps.append(time.perf_counter() - began)
    decoder.position, began = cached, time.perf_counter()
    decoder(ids[-CHUNK:])
    return {"step": 1000 * statistics.median(steps), "chunk": 1000 * (time.perf_counter() - began)}


if __name__ == "__main__":
    main(*sys.argv[1:])
