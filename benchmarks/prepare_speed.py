"""How fast `kiara prepare` is, and that its memory does not grow with the text.

python benchmarks/prepare_speed.py

Prepares JSON lines of 30 and 300 MB, made of the Python standard library with its lines in another order each time.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kiara.data import read_manifest, resolve_source


def write(file: Path, size: int) -> None:
    """JSON lines of about so many bytes of text."""
    texts = [path.read_text("utf-8", errors="replace").splitlines(keepends=True) for path in resolve_source("stdlib")]
    shuffle = random.Random(0).shuffle
    written = 0
    with file.open("w", encoding="utf-8") as out:
        while written < size:
            for lines in texts:
                shuffle(lines)
                text = "".join(lines)
                out.write(json.dumps({"text": text}) + "\n")
                written += len(text)


def measure(source: Path, out: Path) -> None:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "kiara", "prepare", str(source), "--out", str(out)], check=True)
    seconds = time.perf_counter() - started
    manifest = read_manifest(out)
    assert manifest is not None
    size = sum(split["bytes"] for split in manifest["splits"].values()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(f"{size:.0f} MB in {seconds:.1f} s: {size / seconds:.1f} MB/s, at most {peak} MiB in one process")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for size in (30, 300):
            write(Path(folder, f"{size}.jsonl"), size * 1_000_000)
            measure(Path(folder, f"{size}.jsonl"), Path(folder, f"out-{size}"))


if __name__ == "__main__":
    main()
