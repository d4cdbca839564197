"""The default recipe against configs/gpt2-baseline.yaml: how many of its tokens and seconds reach its result.

python benchmarks/baseline.py [--seeds 3] [--part 0.35] [--out benchmarks/results/baseline.json]

The baseline's learning rate is swept first, with the first seed. Then each seed trains the baseline, and the default
recipe with `--part` of its steps and its own schedule over them, in turn. Runs that are in the result file already are
not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from kiara import train

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RATES = (0.001, 0.002, 0.003, 0.005)
STEPS, TOKENS_A_STEP = 400, 16 * 256
Found = dict[str, dict[str, float]]


def run(name: str, settings: dict[str, Any], config: str, folder: Path) -> dict[str, float]:
    """Final bits per byte, and the seconds of the steps."""
    quiet = {"training.sample_tokens": 0, "data.prepared_dir": str(folder / "data")}
    train(folder / name, {**settings, **quiet}, CONFIGS / config)
    records = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text("utf-8").splitlines()]
    (last,) = [record for record in records if "final_val_bits_per_byte" in record]
    return {"bits_per_byte": last["final_val_bits_per_byte"], "seconds": last["seconds"]}


def baseline(rate: float, seed: int) -> dict[str, Any]:
    return {"training.learning_rate": rate, "training.embedding_learning_rate": rate, "training.seed": seed}


def table(found: Found, rate: float, seeds: int, part: float) -> str:
    """Bits per byte of both, and the default's part of the baseline's seconds, by seed."""
    lines = [
        f"| seed | baseline, {STEPS * TOKENS_A_STEP:,} tokens | default, {part:.0%} of them | part of the seconds |",
        "|---|---|---|---|",
    ]
    seconds: list[float] = []
    for seed in range(1, seeds + 1):
        old, new = found[f"baseline-{rate}-{seed}"], found[f"default-{part}-{seed}"]
        seconds.append(new["seconds"] / old["seconds"])
        lines.append(f"| {seed} | {old['bits_per_byte']:.4f} | {new['bits_per_byte']:.4f} | {seconds[-1]:.2f} |")
    return "\n".join([*lines, f"\nMedian part of the seconds: {statistics.median(seconds):.2f}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", type=float, default=0.35)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/baseline.json"))
    arguments = parser.parse_args()
    found: Found = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    part = arguments.part
    with tempfile.TemporaryDirectory() as folder:

        def once(name: str, settings: dict[str, Any], config: str) -> float:
            if name not in found:
                found[name] = run(name, settings, config, Path(folder))
                arguments.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
                print(name, found[name], flush=True)
            return found[name]["bits_per_byte"]

        rate = min(RATES, key=lambda rate: once(f"baseline-{rate}-1", baseline(rate, 1), "gpt2-baseline.yaml"))
        for seed in range(1, arguments.seeds + 1):
            once(f"baseline-{rate}-{seed}", baseline(rate, seed), "gpt2-baseline.yaml")
            settings = {"training.max_steps": round(part * STEPS), "training.seed": seed}
            once(f"default-{part}-{seed}", settings, "small.yaml")
    print(table(found, rate, arguments.seeds, part))


if __name__ == "__main__":
    main()
