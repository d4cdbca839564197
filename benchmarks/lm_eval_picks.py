"""lm-evaluation-harness against a server: the same picks as scoring in this process.

Multiple-choice items made of the standard library's sources: some lines, and which of four lines is the next. The
harness asks `kiara-run serve` (model local-completions, tokenizer_backend remote), once with token ids and once with
text; `score` of the loaded bundle is the oracle, item by item. Run by hand, `make check-lm-eval`.

python benchmarks/lm_eval_picks.py bundles/demo [number of items]
"""

import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # before the harness is imported

import lm_eval
from lm_eval.tasks import TaskManager

import kiara_runtime
from kiara_runtime.model import Model

TASK = "next_line"
SOURCES = ("argparse", "ast", "calendar", "csv", "difflib", "heapq", "inspect", "shlex", "statistics", "typing")
CONTEXT_LINES = 8
TOLERANCE = 1e-4  # of a log-likelihood, in nats
WAYS = {"token ids": "batch_size=8", "text": "tokenized_requests=False,num_concurrent=4"}
Item = dict[str, Any]
Scores = list[list[float]]


def make_items(model: Model, count: int) -> list[Item]:
    """Choices begin with the end of the context's last line: the harness would move it there by itself."""
    draw, items = random.Random(1), list[Item]()
    folder = Path(sysconfig.get_path("stdlib"))
    files = [_lines(folder / f"{name}.py") for name in SOURCES]
    while len(items) < count:
        lines = draw.choice(files)
        at = draw.randrange(CONTEXT_LINES, len(lines))
        others = draw.sample([line for line in lines if line != lines[at]], 3)
        choices = [f"\n{line}" for line in (*others, lines[at])]
        draw.shuffle(choices)
        context = "\n".join(lines[at - CONTEXT_LINES : at])
        if max(len(model.tokenize(context + choice)) for choice in choices) < model.context_length:
            items.append({"context": context, "choices": choices, "gold": choices.index(f"\n{lines[at]}")})
    return items


def _lines(path: Path) -> list[str]:
    return [line.rstrip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def write_task(items: list[Item], folder: Path) -> None:
    (folder / "items.json").write_text(json.dumps(items))
    task: dict[str, Any] = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.json")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / f"{TASK}.yaml").write_text(json.dumps(task))  # which is YAML, too


def score_here(model: Model, items: list[Item], way: str) -> Scores:
    """Cut as the harness does: a context's tokens alone, then what the whole has beyond so many of them."""

    def score(context: str, choice: str) -> float:
        before, whole = model.tokenize(context), model.tokenize(context + choice)
        ids, cut = [*before, *whole[len(before) :]], len(before)
        if way == "text":
            ids = model.tokenize(model.detokenize(ids))
        return model.score(ids[:cut], ids[cut:]).logprob

    return [[score(item["context"], choice) for choice in item["choices"]] for item in items]


def score_there(url: str, model: Model, folder: Path, way: str) -> tuple[Scores, float]:
    """What the harness was told, and the accuracy that it reports."""
    name = json.loads(_get(f"{url}/v1/models"))["data"][0]["id"]
    arguments = f"model={name},base_url={url}/v1/completions,tokenizer_backend=remote,max_length={model.context_length}"
    found = lm_eval.simple_evaluate(
        "local-completions",
        model_args=f"{arguments},max_retries=1,{WAYS[way]}",
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    assert found is not None
    samples = sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"])
    scores = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    return scores, found["results"][TASK]["acc,none"]


def pick(scores: list[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def report(way: str, items: list[Item], here: Scores, there: Scores, accuracy: float) -> bool:
    pairs = [pair for some, others in zip(here, there, strict=True) for pair in zip(some, others, strict=True)]
    largest = max(abs(one - other) for one, other in pairs)
    same = sum(pick(some) == pick(others) for some, others in zip(here, there, strict=True))
    ours = sum(pick(scores) == item["gold"] for scores, item in zip(here, items, strict=True)) / len(items)
    print(f"{way}: {same} of {len(items)} picks are the same; accuracy {accuracy:.4f} there, {ours:.4f} here")
    print(f"  {len(pairs)} log-likelihoods differ by {largest:.2g} at most")
    return same == len(items) and largest < TOLERANCE


@contextmanager
def serve(bundle: str, folder: Path) -> Iterator[str]:
    """A server's address, for as long as the block lasts."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "kiara_runtime.commands.main", "serve", bundle, "--port", "0"]
    with log.open("w") as out, subprocess.Popen(command, stderr=out) as process:
        try:
            while process.poll() is None:
                found = re.search(r" on (http://\S+)", log.read_text("utf-8"))
                if found and _is_ready(found[1]):
                    break
                time.sleep(0.1)
            else:
                raise SystemExit(log.read_text("utf-8"))
            yield found[1]
        finally:
            process.terminate()


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read().decode()


def _is_ready(url: str) -> bool:
    try:
        return bool(_get(f"{url}/ready"))
    except urllib.error.HTTPError:
        return False


def main(bundle: str, count: int) -> None:
    with kiara_runtime.load(bundle) as model, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = make_items(model, count)
        write_task(items, folder)
        here = {way: score_here(model, items, way) for way in WAYS}
        with serve(bundle, folder) as url:
            found = {way: score_there(url, model, folder, way) for way in WAYS}
    fine = [report(way, items, here[way], *told) for way, told in found.items()]
    raise SystemExit(0 if all(fine) else 1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 300)
