"""The recipe by ablation: what each change to it does to the final bits per byte, over the same seeds and tokens.

python benchmarks/ablation.py [--seeds 3] [--only NAME ...] [--out benchmarks/results/ablation.json]

A change is accepted when its gain exceeds twice its standard error over the paired seeds. Runs that are in the result
file already are not repeated, so that the script can be interrupted, or given more seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, optim

from kiara import train
from kiara.config import ModelConfig, TrainingConfig
from kiara.model import GPT, KeyValue, block
from kiara.training import muon, trainer
from kiara.training import optim as kiara_optim

MODEL = ModelConfig()
SETTINGS: dict[str, Any] = {  # the default model on 1.6 million tokens
    "model.context_length": 256,
    "training.max_steps": 400,
    "training.batch_size": 16,
    "training.eval_every": 400,
    "training.checkpoint_every": 400,
    "training.sample_tokens": 0,
    "training.compile": "never",
}


@contextmanager
def packed_muon() -> Iterator[None]:
    """Orthogonalise q, k and v as the one matrix that they are packed in."""
    with patch.object(kiara_optim, "packed_rows", lambda model: {}):
        yield


@contextmanager
def momentum_warmup() -> Iterator[None]:
    """Muon's momentum from 0.85 to 0.95 over the first fifth."""
    rates = kiara_optim.set_learning_rates

    def warmed(optimizers: dict[str, optim.Optimizer], config: TrainingConfig, step: int) -> None:
        rates(optimizers, config, step)
        muon.MOMENTUM = 0.85 + 0.1 * min(1.0, 5 * step / config.max_steps)

    with patch.object(trainer, "set_learning_rates", warmed), patch.object(muon, "MOMENTUM", 0.85):
        yield


@contextmanager
def value_residual() -> Iterator[None]:
    """Half of each layer's values are the first layer's (Zhou et al. 2024)."""
    first: list[Tensor] = []

    def forward(
        self: block.Attention, x: Tensor, rope: KeyValue | None, past: KeyValue | None, lengths: Any
    ) -> tuple[Tensor, KeyValue]:
        q, k, v = self.qkv_proj(x).split(self.widths, dim=-1)
        if len(first) % MODEL.num_hidden_layers == 0:
            first.clear()
            first.append(v)
        else:
            v = (v + first[0]) / 2
            first.append(v)
        mixed, present = block.ops.attention(q, k, v, self.form, rope, past, lengths)
        return self.o_proj(mixed), present

    with patch.object(block.Attention, "forward", forward):
        yield


@contextmanager
def logit_softcap() -> Iterator[None]:
    """Logits of at most 30, as in Gemma 2."""
    head = GPT.head

    def capped(self: GPT, *arguments: Any) -> Tensor:
        return 30 * torch.tanh(head(self, *arguments) / 30)

    def loss(self: GPT, ids: Tensor, targets: Tensor, segments: Tensor | None = None) -> Tensor:
        return F.cross_entropy(self.predict(ids, segments).flatten(0, 1).float(), targets.flatten())

    with patch.object(GPT, "head", capped), patch.object(GPT, "loss", loss):
        yield


@contextmanager
def embedding_norm() -> Iterator[None]:
    """RMS norm right after the embedding."""
    embed = GPT.embed

    def normed(self: GPT, *arguments: Any) -> tuple[Tensor, Any]:
        x, rope = embed(self, *arguments)
        return F.rms_norm(x, x.shape[-1:], eps=1e-5), rope

    with patch.object(GPT, "embed", normed):
        yield


@contextmanager
def cautious_decay() -> Iterator[None]:
    """Weights decay only where the update makes them smaller as well (Chen et al. 2025)."""
    step = muon.Muon.step

    def cautious(self: muon.Muon) -> None:
        (group,) = self.param_groups
        decay, group["weight_decay"] = group["weight_decay"], 0.0
        before = [weight.detach().clone() for weight in group["params"]]
        step(self)
        group["weight_decay"] = decay
        with torch.no_grad():
            for old, weight in zip(before, group["params"], strict=True):
                weight.sub_(old * ((old - weight) * old > 0), alpha=group["lr"] * decay)

    with patch.object(muon.Muon, "step", cautious):
        yield


@contextmanager
def averaged() -> Iterator[None]:
    """The mean of the weights after each of the last tenth of the steps."""
    own_step, last = trainer.Trainer._step, SETTINGS["training.max_steps"]
    sums: dict[str, Tensor] = {}

    def step(self: trainer.Trainer) -> float:
        loss = own_step(self)
        if self.step > 0.9 * last:
            for name, weight in self.model.state_dict().items():
                sums[name] = sums.get(name, 0) + weight.detach() / (last - int(0.9 * last))
        if self.step == last:
            self.model.load_state_dict(sums)
        return loss

    with patch.object(trainer.Trainer, "_step", step):
        yield


Change = tuple[Callable[[], AbstractContextManager[None]], dict[str, Any]]
SWIGLU = {"model.mlp": "swiglu", "model.intermediate_size": 704}
CHANGES: dict[str, Change] = {
    "as it is": (nullcontext, {}),
    "Muon on q, k, v together": (packed_muon, {}),
    "momentum warm-up": (momentum_warmup, {}),
    "value residual": (value_residual, {}),
    "logit soft-cap": (logit_softcap, {}),
    "embedding norm": (embedding_norm, {}),
    "cautious weight decay": (cautious_decay, {}),
    "weight averaging": (averaged, {}),
    "SwiGLU at equal parameters": (nullcontext, SWIGLU),
    "SwiGLU and QK-norm": (nullcontext, {**SWIGLU, "model.qk_norm": True}),  # no family has QK-norm and squared ReLU
    "AdamW, cosine": (
        nullcontext,
        {
            "training.optimizer": "adamw",
            "training.schedule": "cosine",
            "training.learning_rate": 0.003,
            "training.embedding_learning_rate": 0.003,
        },
    ),
}


def run(name: str, seed: int, folder: Path) -> dict[str, float]:
    """Final bits per byte, and the seconds of its steps."""
    patched, changed = CHANGES[name]
    settings = {**SETTINGS, **changed, "training.seed": seed, "data.prepared_dir": str(folder / "data")}
    out = folder / f"{name.replace(' ', '-')}-{seed}"
    with ExitStack() as stack:
        stack.enter_context(patched())
        train(out, settings)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    (last,) = [record for record in records if "final_val_bits_per_byte" in record]
    return {"bits_per_byte": last["final_val_bits_per_byte"], "seconds": last["seconds"]}


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Gain of each change over the same seeds: mean, standard error, and whether it exceeds two of them."""
    base = found["as it is"]
    lines = ["| change | bits per byte | gain | standard error | accepted |", "|---|---|---|---|---|"]
    for name, runs in found.items():
        gains = [base[seed]["bits_per_byte"] - runs[seed]["bits_per_byte"] for seed in runs if seed in base]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        mean = statistics.mean(gains)
        told = statistics.mean(one["bits_per_byte"] for one in runs.values())
        accepted = "" if runs is base else "yes" if mean > 2 * error else "no"
        lines.append(f"| {name} | {told:.4f} | {mean:+.4f} | {error:.4f} | {accepted} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(CHANGES), default=list(CHANGES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.json"))
    arguments = parser.parse_args()
    found = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, arguments.seeds + 1):
            for name in arguments.only:
                runs = found.setdefault(name, {})
                if str(seed) in runs:
                    continue
                started = time.monotonic()
                runs[str(seed)] = run(name, seed, Path(folder))
                arguments.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
                print(f"{name}, seed {seed}: {runs[str(seed)]}, {time.monotonic() - started:.0f} s", flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
