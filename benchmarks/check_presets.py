"""Every preset takes two steps and is exported to int8: python benchmarks/check_presets.py [NAME ...]

The largest needs about 12 GB of memory. Prints the time and the peak memory of each.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from kiara import export, train
from kiara.config.presets import presets

SETTINGS = {
    "data.train": "stdlib",
    "training.max_steps": 2,
    "training.batch_size": 1,
    "training.global_batch": 1,
    "training.eval_tokens": 1024,
    "training.sample_tokens": 0,
    "training.compile": "never",
}


def check(name: str) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = {**SETTINGS, "data.prepared_dir": str(Path(folder, "data"))}
        train(Path(folder, "run"), settings, name)
        export(Path(folder, "run"), Path(folder, "bundle"), quantize=["int8"])
        size = sum(file.stat().st_size for file in Path(folder, "bundle").rglob("*") if file.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{name}: {size / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s, {peak:,} MiB", flush=True)


def main() -> None:
    for name in sys.argv[1:] or presets():
        child = os.fork()  # so that each has its own peak of memory
        if child == 0:
            check(name)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{name} failed")


if __name__ == "__main__":
    main()
