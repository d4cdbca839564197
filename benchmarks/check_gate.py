"""The export's own gate on ten texts of 10 kB to 1 MB: every one must end in a bundle with the variant in it.

Usage: check_gate.py CHECKPOINT [VARIANT]. The texts are English, code, lists and other languages, from this machine's
Python, its documentation and the system's manual pages. Prints a row a text: the loss with its standard error, how
often blocks were made finer, and the seconds it took.
"""

from __future__ import annotations

import gzip
import inspect
import json
import pydoc_data.topics
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STDLIB, MANUALS = Path(sysconfig.get_path("stdlib")), Path("/usr/share/man")


def _code(size: int, first: str) -> str:
    files = sorted(path for path in STDLIB.glob("*.py") if path.name >= first)
    return "".join(path.read_text("utf-8") for path in files)[:size]


def _topics(size: int) -> str:
    return "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))[:size]


def _docstrings(size: int) -> str:
    import argparse
    import decimal
    import logging
    import statistics

    modules = (argparse, decimal, logging, statistics, inspect, subprocess, tempfile, random)
    docs = (inspect.getdoc(value) or "" for module in modules for _, value in sorted(vars(module).items()))
    return "\n\n".join(dict.fromkeys(docs))[:size]


def _words(size: int) -> str:
    """A list of words, one a line."""
    words = sorted({word for word in _code(2_000_000, "a").split() if word.isalpha()})
    return ("\n".join(words) * 9)[:size]


def _numbers(size: int) -> str:
    rng = random.Random(1)
    return "".join(f"{i},{rng.randint(0, 99999)},{rng.random():.4f}\n" for i in range(size // 12))[:size]


def _other_language(size: int, language: str) -> str:
    """Manual pages in that language, without their markup; sentences made of German words where there are none."""
    pages = sorted(MANUALS.glob(f"{language}/man*/*.gz"))
    lines = (
        line for page in pages for line in gzip.decompress(page.read_bytes()).decode("utf-8", "ignore").split("\n")
    )
    text = "\n".join(re.sub(r"\\f.|\\.", "", line) for line in lines if line and line[0] not in ".'")
    return text[:size] if len(text) >= size else _sentences(size)


def _sentences(size: int) -> str:
    rng = random.Random(2)
    days = "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag".split()
    things = "den Brief,das Buch,die Straße,einen Schlüssel,das Geländer,die Bücher,den Äquator,sein Frühstück".split(
        ","
    )
    acts = "las suchte fand verlor verkaufte malte übersah vergaß".split()
    who = "Der Gärtner,Die Ärztin,Meine Großmutter,Ein müder Bäcker,Jörg,Niemand,Der Präsident,Das Mädchen".split(",")
    lines = (
        f"Am {rng.choice(days)} {rng.choice(acts)} {rng.choice(who).lower()} {rng.choice(things)}." for _ in range(size)
    )
    return " ".join(lines)[:size]


def _mixed(size: int) -> str:
    part = size // 4
    return _topics(part) + _code(part, "d") + _numbers(part) + _other_language(part, "fr")


def texts() -> Iterator[tuple[str, str]]:
    """Name and text."""
    yield "English, reference", _topics(10_000)
    yield "English, reference", _topics(300_000)
    yield "English, docstrings", _docstrings(60_000)
    yield "code", _code(10_000, "h")
    yield "code", _code(1_000_000, "a")
    yield "list of words", _words(20_000)
    yield "table of numbers", _numbers(50_000)
    yield "German", _other_language(30_000, "de")
    yield "Russian", _other_language(200_000, "ru")
    yield "mixed", _mixed(100_000)


def main() -> None:
    checkpoint, variant = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "int8"
    missing = 0
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, text) in enumerate(texts()):
            path, out = Path(folder, f"{i}.txt"), Path(folder, f"bundle-{i}")
            path.write_text(text, "utf-8")
            started = time.perf_counter()
            command = [sys.executable, "-c", "from kiara.commands.main import main; main()", "export", checkpoint]
            command += ["--quantize", variant, "--text", str(path), "--out", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - started
            row = f"{name:20} {len(text.encode()) / 1000:7.0f} kB  {seconds:5.0f} s  "
            figures = json.loads((out / "kiara.json").read_text("utf-8"))["receipt"] if done.returncode == 0 else {}
            if variant in figures:
                loss, error = (figures[variant][f"bits_per_byte_loss{end}"] for end in ("", "_error"))
                finer = done.stderr.count("made again, finer")
                print(f"{row} {variant} {loss:+.3%} ± {error:.3%}  made finer {finer} times", flush=True)
            else:
                missing += 1
                print(f"{row} NO {variant}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
    sys.exit(missing)


if __name__ == "__main__":
    main()
