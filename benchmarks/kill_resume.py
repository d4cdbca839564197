"""A training killed by SIGKILL at random moments, a hundred times: each time it must go on, and end as if undisturbed.

python benchmarks/kill_resume.py [KILLS]

Runs as long as it takes to place the kills, one run after another; the final weights, optimizer state and losses of
each must be those of a run that nobody disturbed, bit for bit.

Each life is a fork of this process, which computes nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import kiara.training.trainer  # loaded once, before the forks
from kiara import train
from kiara.checkpoints.checkpoint import list_checkpoints

SETTINGS = {
    "data.train": f"{sysconfig.get_path('stdlib')}/[a-c]*.py",  # little to judge at the end: kills meet the steps
    "tokenizer.vocab_size": 512,
    "model.hidden_size": 64,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 4,
    "model.num_key_value_heads": 2,
    "model.head_dim": 16,
    "model.intermediate_size": 128,
    "model.context_length": 64,
    "training.max_steps": 120,
    "training.batch_size": 4,
    "training.eval_every": 10,
    "training.eval_tokens": 512,
    "training.checkpoint_every": 2,  # saving takes most of the time, so most kills meet it
    "training.sample_tokens": 0,
    "training.quantize": "int4",
    "training.quantize_from": 0.3,
}


CLOCK = ("seconds", "step_seconds", "tokens_per_second", "memory_mib")  # figures that are not the training's


def live(out: Path) -> int:
    """Start or go on with the run in a process of its own; returns its id."""
    child = os.fork()
    if child == 0:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of this process
        code = 1
        try:
            code = 0 if train(out, SETTINGS, resume=True) else 2
        finally:
            os._exit(code)
    return child


def ended(child: int, seconds: float) -> int | None:
    """The exit code of a child that ends within so many seconds; None for one that was killed then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def result(run: Path) -> list[object]:
    """Whatever of a finished run must not depend on how often it was killed."""
    last = list_checkpoints(run)[-1].folder
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    curve = [
        {key: value for key, value in record.items() if key not in CLOCK}
        for record in records
        if "resumed" not in record
    ]
    return [curve, *((last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors"))]


def main(kills: int) -> None:
    place = Path(tempfile.mkdtemp())
    os.chdir(place)
    assert ended(live(place / "undisturbed"), 600) == 0
    expected, rng = result(place / "undisturbed"), random.Random(0)
    killed = saving = finished = 0
    while killed < kills:
        run = place / f"run-{finished}"
        code = ended(live(run), rng.uniform(0.1, 1.5))
        if code is None:
            killed += 1
            saving += any(run.glob("checkpoints/.epoch-*"))
            steps = [checkpoint.step for checkpoint in list_checkpoints(run)]
            print(f"kill {killed}: whole checkpoints at steps {steps}", flush=True)
        elif code == 0:
            finished += 1
            assert result(run) == expected, f"{run} departs from the undisturbed run"
        else:
            raise SystemExit(f"{run} ended with {code}")
    run = place / f"run-{finished}"
    assert ended(live(run), 600) == 0
    assert result(run) == expected, f"{run} departs from the undisturbed run"
    print(f"{killed} kills, {saving} within a save; {finished + 1} runs ended as the undisturbed one, bit for bit")


if __name__ == "__main__":
    assert kiara.training.trainer
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
