"""Training steps of Kiara beside `transformers`: the same shape, batch and data, tokens per second in turn.

python benchmarks/training_speed.py [--config small] [--rounds 6] [--steps 4]

Kiara's are whole steps of its trainer: data, compiled passes, Muon, gradient clipping. `transformers` is the model of
the same shape in a plain loop, compiled, under the same autocast, with fused AdamW, and then its Trainer with its
defaults. Every round takes some steps of each; the ratios are of one round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim
from torch.nn.utils import clip_grad_norm_
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from kiara.config import Config, load_config
from kiara.data import Dataset, dataset_of
from kiara.families import write_config
from kiara.training import trainer
from kiara.training.run import Run

Steps = Callable[[int], float]  # takes so many steps, returns their seconds


def timed(step: Callable[[], Any]) -> Steps:
    def take(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - started

    return take


def same_shape(config: Config, dataset: Dataset) -> Any:
    values = write_config(config.model, dataset.tokenizer.vocab_size, {})
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))


def batch(config: Config, dataset: Dataset, step: int) -> Tensor:
    return torch.from_numpy(dataset.train.batch(0, step, config.training.sequences, config.sequence_length)[:, :-1])


def plain_loop(config: Config, dataset: Dataset, ours: trainer.Trainer) -> Steps:
    """`transformers`' model, compiled, on the device and under the autocast of `ours`."""
    model = same_shape(config, dataset).to(ours.device).train()
    compiled: Any = torch.compile(model, dynamic=False)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    numbers = count()

    def step() -> None:
        ids = batch(config, dataset, next(numbers)).to(ours.device)
        with ours.autocast():
            loss = compiled(input_ids=ids, labels=ids).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(step)


class _Clock(TrainerCallback):
    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = getattr(self, "started", time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()


def default_trainer(config: Config, dataset: Dataset, folder: Path) -> Steps:
    """`transformers`' Trainer as it comes."""
    model = same_shape(config, dataset)

    def take(steps: int) -> float:
        rows = [row for step in range(steps) for row in batch(config, dataset, step)]
        examples: Any = [{"input_ids": row, "labels": row} for row in rows]
        arguments = TrainingArguments(
            str(folder), per_device_train_batch_size=config.training.sequences, max_steps=steps, report_to=[],
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        clock = _Clock()
        Trainer(model, arguments, train_dataset=examples, callbacks=[clock]).train()
        return clock.ended - clock.started

    return take


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="small")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        quiet = [f"data.prepared_dir={folder}/data", "training.compile=always", "training.sample_tokens=0"]
        config = load_config(Path(arguments.config), quiet)
        dataset = dataset_of(config)
        ours = trainer.Trainer(Run(Path(folder, "run"), config, resume=False), dataset, trainer.ALONE)
        contenders = {
            "Kiara": timed(ours._step),  # pyright: ignore[reportPrivateUsage]
            "transformers, compiled": plain_loop(config, dataset, ours),
            "Trainer's defaults": default_trainer(config, dataset, Path(folder, "trainer")),
        }
        tokens = arguments.steps * config.training.sequences * config.sequence_length
        found: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(arguments.rounds + 1):
            for name, take in contenders.items():
                rate = tokens / take(arguments.steps)
                if number:  # the first round compiles
                    found[name].append(rate)
    for name, rates in found.items():
        ratios = [ours / rate for ours, rate in zip(found["Kiara"], rates, strict=True)]
        spread = f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name}: {statistics.median(rates):,.0f} tokens/s; Kiara is {spread}")


if __name__ == "__main__":
    main()
