"""The training loop, which can be stopped after any step and resumed with the same result.

There is no random state: a step's batch depends only on (seed, step), and the initial weights only on the seed, so a
resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import closing

import regex
import torch
from torch import Tensor

from kiara.checkpoints.checkpoint import (
    OPTIMIZER_FILE,
    TokenIds,
    load_model,
    prune_checkpoints,
    read_tensors,
    save_checkpoint,
)
from kiara.config.sections import Config
from kiara.console import log_to_file, log_without_bar, logger, progress
from kiara.data.dataset import Dataset
from kiara.evaluation.evaluate import Metrics, evaluate, rows_at_once, window_length, windows
from kiara.evaluation.reference import reference_model
from kiara.model import sizes
from kiara.model.gpt import GPT
from kiara.training.device import check_device, memory_told, pick_device, repeatable, use_bfloat16, use_compile
from kiara.training.optim import load_optimizers, make_optimizers, optimizer_tensors, set_learning_rates
from kiara.training.plot import plot_run
from kiara.training.run import PLOT_FILE, Run
from kiara.training.stop_request import stop_request
from kiara_runtime.bundle.variants import VARIANTS
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import check_text
from kiara_runtime.tokens.tokenizer_json import SPLIT_PATTERN

SMALLEST = [variant for variant in VARIANTS if variant.rounding in ("blocks", "gptq")]  # whose sizes are logged
LOG_SECONDS = 20.0  # between progress lines without a terminal


def train(run: Run, dataset: Dataset) -> bool:
    """Train into the run folder, then release its lock; returns False if interrupted, with a checkpoint saved."""
    with closing(run):
        return _train(run, dataset)


def _train(run: Run, dataset: Dataset) -> bool:
    max_steps = run.config.training.max_steps
    if run.last and run.last.step >= max_steps:
        logger.info("%s is finished at step %d; raise training.max_steps to continue.", run.folder, run.last.step)
        return True
    with memory_told("model", "make hidden_size or num_hidden_layers smaller"):
        trainer = Trainer(run, dataset)
    run.begin()
    shortage = memory_told("training.batch_size", "lower it or model.context_length in a new run")
    with log_to_file(run.folder / "train.log"), shortage:
        with repeatable(trainer.device):
            trainer.announce()  # may compile, so deterministic mode must be on already
            with stop_request() as stopping:
                finished = trainer.loop(stopping)
        trainer.finish(finished)
    return finished


def check_settings(config: Config) -> None:
    """Raise UserError for invalid settings, as far as they can be checked without the data."""
    training, length = config.training, config.model.context_length
    check_device(training.device, training.compile)
    try:
        check_text(training.sample_prompt).encode()
    except ValueError as error:  # includes lone surrogates
        raise UserError("training.sample_prompt", f"cannot be encoded ({error})", "choose another") from None
    least = sum(1 for _ in regex.finditer(SPLIT_PATTERN, training.sample_prompt))
    if training.sample_tokens and least >= length:
        raise UserError("training.sample_prompt", f"leaves no room in model.context_length ({length})", "shorten it")


class Trainer:
    """The state of a run: model, optimizers and the next step to take."""

    def __init__(self, run: Run, dataset: Dataset) -> None:
        self.run, self.config, self.dataset = run, run.config.training, dataset
        self.device = pick_device(self.config.device)
        self.length = run.config.model.context_length
        dataset.train.windows(self.length)  # raises UserError if there are none, before any work
        if not dataset.val.targets:
            raise UserError("data.val", "the validation split has no token to predict", "hold out more text")
        prompt = dataset.tokenizer.encode(self.config.sample_prompt) if self.config.sample_tokens else []
        if len(prompt) >= self.length:
            raise UserError("training.sample_prompt", f"fills model.context_length ({self.length})", "shorten it")
        self.step, self.seconds = 0, 0.0
        if run.last:
            self.model, _ = load_model(run.last.folder)
            state = run.last.state()
            if state["data_sha256"] != dataset.sha256:
                raise UserError(dataset.folder, "differs from the data of the run", "restore it or start a new run")
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
        else:
            self.model = GPT(run.config.model, dataset.tokenizer.vocab_size)
            self.model.initialise(self.config.seed)
        self.saved = self.step
        self.model.to(self.device).train()
        self.optimizers = make_optimizers(self.model, self.config)
        if run.last:
            load_optimizers(self.model, self.optimizers, read_tensors(run.last.folder / OPTIMIZER_FILE))
        self.bfloat16 = use_bfloat16(self.config.dtype, self.device)
        tokens = self.config.max_steps * self.config.batch_size * self.length
        flops = sizes.training_flops(run.config.model, self.model.vocab_size, tokens)
        self.compiled = use_compile(self.config.compile, self.device, flops)
        self.loss: Callable[[Tensor, Tensor], Tensor] = self.model.loss
        if self.compiled:
            self.loss = torch.compile(self.model.loss, dynamic=False)

    def announce(self) -> None:
        """Log sizes, data, device, and the estimated time, for which two passes are run."""
        model, vocab = self.run.config.model, self.model.vocab_size
        logger.info(
            "Model: %.2fM parameters; bundle %s; KV cache %.1f KB per token; context %d.",
            sizes.parameters(model, vocab) / 1e6,
            ", ".join(f"{sizes.graph_bytes(model, vocab, v) / 1e6:.1f} MB at {v.name}" for v in SMALLEST),
            sizes.cache_bytes_per_token(model) / 1e3,
            model.context_length,
        )
        train_tokens, step_tokens = self.dataset.train.tokens, self.config.batch_size * self.length
        logger.info(
            "Data: %s, %s training and %s validation tokens; %d steps of %s tokens are %.2f epochs.",
            self.dataset.folder,
            f"{train_tokens:,}",
            f"{self.dataset.val.tokens:,}",
            self.config.max_steps,
            f"{step_tokens:,}",
            self.config.max_steps * step_tokens / train_tokens,
        )
        arithmetic = "bfloat16 autocast" if self.bfloat16 else "float32"
        logger.info("Machine: %s, %s%s.", self.device, arithmetic, ", compiling the model" if self.compiled else "")
        logger.info("Estimated time: about %s.", duration(self._estimate()))

    def _estimate(self) -> float:
        self._forward_backward(0)  # warms up, and compiles
        started = time.perf_counter()
        self._forward_backward(0)
        seconds = time.perf_counter() - started
        self.model.zero_grad()
        left = self.config.max_steps - self.step
        return left * seconds * 1.2  # 20 % for optimizers and validations

    def loop(self, stopping: Callable[[], bool]) -> bool:
        """Train until the last step or until `stopping()`; returns whether the last step was reached."""
        config, shown = self.config, time.monotonic()
        with progress("Training", config.max_steps, self.step) as advance:
            while self.step < config.max_steps and not stopping():
                started = time.perf_counter()
                loss = self._step()
                seconds = time.perf_counter() - started
                self.seconds += seconds
                note = f"loss {loss:.3f}  {config.batch_size * self.length / seconds:,.0f} tokens/s"
                advance(1, note)
                if time.monotonic() - shown > LOG_SECONDS:
                    shown = time.monotonic()
                    eta = duration((config.max_steps - self.step) * self.seconds / self.step)
                    log_without_bar("step %d/%d  %s  ETA %s", self.step, config.max_steps, note, eta)
                self._milestones()
        if self.saved != self.step:  # interrupted between two checkpoints
            self._save(self._validate())
        return self.step >= config.max_steps

    def finish(self, finished: bool) -> None:
        """Plot the run, and evaluate a finished one on the whole validation split."""
        plot_run(self.run.metrics(), self.run.folder / PLOT_FILE)
        if not finished:
            saved = "saved" if self.step else "nothing to save yet"
            logger.warning(
                "Interrupted at step %d, %s; continue with --resume --out %s.", self.step, saved, self.run.folder
            )
            return
        metrics = self._evaluate(None)
        self.run.record(step=self.step, seconds=round(self.seconds, 3), **metrics.named("final_val_"))
        logger.info(
            "Finished in %s: loss %.4f, perplexity %.2f, next-token accuracy %.1f %%, %.4f bits per byte on all %s "
            "validation tokens. Run: %s",
            duration(self.seconds), metrics.loss, metrics.perplexity, 100 * metrics.accuracy, metrics.bits_per_byte,
            f"{metrics.tokens:,}", self.run.folder,
        )  # fmt: skip

    def _step(self) -> float:
        part = set_learning_rates(self.optimizers, self.config, self.step)
        loss = self._forward_backward(self.step)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad()
        self.step += 1
        value = loss.item()
        self._check_finite(value)
        self.run.record(step=self.step, loss=round(value, 6), learning_rate=part * self.config.learning_rate)
        return value

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                "training.learning_rate",
                f"{self.config.learning_rate} led to a loss of {loss}",
                "lower it and start again, or continue from the last checkpoint with --resume",
            )

    def _forward_backward(self, step: int) -> Tensor:
        batch = self.dataset.train.batch(self.config.seed, step, self.config.batch_size, self.length)
        ids = torch.from_numpy(batch).to(self.device)
        with self._autocast():
            loss = self.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        return loss.detach()

    def _milestones(self) -> None:
        config = self.config
        saving = self.step % config.checkpoint_every == 0 or self.step == config.max_steps
        if saving or self.step % config.eval_every == 0:
            metrics = self._validate()
            if saving:
                self._save(metrics)

    def _validate(self) -> Metrics:
        metrics = self._evaluate(self.config.eval_tokens)
        self._check_finite(metrics.loss)  # before such weights are saved
        self.run.record(step=self.step, **metrics.named("val_"))
        logger.info(
            "step %d/%d  validation loss %.4f  perplexity %.2f  accuracy %.1f %%  %.4f bits per byte",
            self.step, self.config.max_steps, metrics.loss, metrics.perplexity, 100 * metrics.accuracy,
            metrics.bits_per_byte,
        )  # fmt: skip
        if self.config.sample_tokens:
            model = reference_model(self.model, self.dataset.tokenizer, TokenIds.of(self.dataset.tokenizer))
            prompt = self.config.sample_prompt
            sample = model.generate(prompt, max_tokens=self.config.sample_tokens, temperature=0.0)
            self.run.sample(self.step, prompt + sample.text)
            logger.debug("sample at step %d: %r", self.step, prompt + sample.text)
        return metrics

    def _save(self, metrics: Metrics) -> None:
        split = self.dataset.train
        state = {
            "step": self.step,
            "epoch": split.epoch(self.step, self.config.batch_size, self.length),
            "seconds": round(self.seconds, 3),
            "dataset": os.path.relpath(self.dataset.folder, self.run.folder / "checkpoints" / "any"),
            "data_sha256": self.dataset.sha256,
            "seed": self.config.seed,
            **metrics.named("val_"),
        }
        tensors = optimizer_tensors(self.model, self.optimizers)
        saved = save_checkpoint(self.run.folder, self.model, self.dataset.tokenizer, tensors, state)
        prune_checkpoints(self.run.folder, self.config.keep_last)
        self.saved = self.step
        logger.debug("saved %s", saved.folder)

    def _evaluate(self, tokens: int | None) -> Metrics:
        self.model.eval()

        def predict(ids: Tensor) -> Tensor:
            with self._autocast():
                return self.model(ids.to(self.device))[0]

        batches = windows(self.dataset.val, window_length(self.model), tokens, rows_at_once(self.model))
        metrics = evaluate(predict, self.dataset.tokenizer, batches)
        self.model.train()
        return metrics

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
