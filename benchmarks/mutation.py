"""Mutation check: `make mutation`. Changes one place of the code at a time and says which changes no test notices.

Cosmic Ray makes the changes: another operator, another number, a negated condition, a loop that never runs. Each part
of the code has its own tests, and an equal number of changes drawn at random. Changes of `|` are left out, as most of
them are in annotations, which are never run.

python benchmarks/mutation.py PYTHON [COUNT] [SEED]     PYTHON: of the environment with the tests' packages
"""

import queue
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome

ROOT = Path(__file__).resolve().parent.parent
JOBS = 2
# Part -> its files, and the tests that are to notice a change.
PARTS = {
    "sampling": ("runtime/kiara_runtime/sampling/[cfps]*.py", "tests/runtime/sampling tests/runtime/test_model.py"),
    "bundle": ("runtime/kiara_runtime/bundle/[gms]*.py", "tests/runtime/bundle tests/runtime/verify"),
    "checkpoint": ("kiara/checkpoints/*.py", "tests/kiara/test_checkpoints.py tests/kiara/training/test_trainer.py"),
    "scheduler": ("runtime/kiara_runtime/engine/s[cel]*.py", "tests/runtime/engine"),
    "tokenizer": ("runtime/kiara_runtime/tokens/*.py", "tests/runtime/tokens tests/kiara/importing/test_import.py"),
}


def main(python: str, count: str = "100", seed: str = "1") -> int:
    draw, python = random.Random(int(seed)), str(Path(python).absolute())
    with tempfile.TemporaryDirectory() as place:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for job in range(JOBS):
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(Path(place, str(job)))], check=True)
            copies.put(Path(place, str(job)))
        root = Path(place, "0")
        work = [(part, *one) for part in PARTS for one in drawn(root, part, int(count) // len(PARTS), draw)]
        with ThreadPoolExecutor(JOBS) as pool:
            limits = dict(zip(PARTS, pool.map(lambda part: usual(python, copies, part), PARTS), strict=True))
            told = pool.map(lambda one: tried(python, copies, limits, *one), work)
            killed = sum(told)
    print(f"\n{killed} of {len(work)} changes noticed ({killed / len(work):.0%})")
    return 0


def drawn(root: Path, part: str, count: int, draw: random.Random) -> list[tuple[str, str, int]]:
    """File, operator and number of the occurrence of `count` changes, each at another place."""
    files = [path for path in sorted(root.glob(PARTS[part][0])) if path.name != "__init__.py"]
    found = [place for path in files for place in places(root, path)]
    return [draw.choice(place) for place in draw.sample(found, count)]


def places(root: Path, path: Path) -> list[list[tuple[str, str, int]]]:
    """The places of a file that can be changed, each with its possible changes."""
    nodes, found = list(ast_nodes(get_ast_from_path(path))), defaultdict[object, list[tuple[str, str, int]]](list)
    for operator in plugins.operator_names():
        made = plugins.get_operator(operator)
        if "BitOr" in operator or made.arguments():
            continue
        for at, place in enumerate(place for node in nodes for place in made().mutation_positions(node)):
            found[place].append((path.relative_to(root).as_posix(), operator, at))
    return list(found.values())


def command(python: str, copy: Path, part: str) -> str:
    """The tests of a part in a copy of the repository, up to the first failure."""
    path = ":".join(str(copy / folder) for folder in ("", "runtime", "export"))
    words = [
        "env",
        "-C",
        copy,
        f"PYTHONPATH={path}",
        "OMP_NUM_THREADS=1",
        python,
        "-m",
        "pytest",
        "-qx",
        "-p",
        "no:cacheprovider",
    ]
    return shlex.join([*map(str, words), "-m", "not slow", *PARTS[part][1].split()])


def usual(python: str, copies: "queue.SimpleQueue[Path]", part: str) -> float:
    """Seconds that a part's tests may take. They must pass without a change."""
    copy, begin = copies.get(), time.monotonic()
    outcome, said = run_tests(command(python, copy, part), 1800)
    copies.put(copy)
    assert outcome == TestOutcome.SURVIVED, said[-3000:]
    seconds = time.monotonic() - begin
    print(f"{part}: {seconds:.0f} s", flush=True)
    return 2 * seconds + 60


def tried(
    python: str,
    copies: "queue.SimpleQueue[Path]",
    limits: dict[str, float],
    part: str,
    name: str,
    operator: str,
    at: int,
) -> bool:
    """Whether the tests notice a change; tells it if they do not."""
    copy = copies.get()
    change = MutationSpec(copy / name, operator, at, (0, 0), (0, 1))
    result = mutate_and_test([change], command(python, copy, part), limits[part])
    copies.put(copy)
    assert result.worker_outcome == WorkerOutcome.NORMAL, result.output
    noticed = result.test_outcome == TestOutcome.KILLED
    print(f"{part}: {'noticed' if noticed else 'NOT noticed'}: {name} {operator} {at}", flush=True)
    if not noticed:
        print(result.diff, flush=True)
    return noticed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
