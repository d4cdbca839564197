"""The training loop, which can be stopped after any step and resumed with the same result.

There is no random state: a step's batch and dropout depend only on (seed, step), and the initial weights only on the
seed, so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial

import torch
from torch import Tensor

from kiara.console import log_without_bar, logger, progress
from kiara.data import Dataset, PairSplit
from kiara.model import sizes
from kiara.training.advice import advice, stalled
from kiara.training.curvature import curvatures, tokens_for
from kiara.training.device import (
    memory_mib,
    memory_told,
    pick_device,
    repeatable,
    use_bfloat16,
    use_compile,
)
from kiara.training.gradient import Gradient
from kiara.training.initial import initial_model, reference
from kiara.training.lora import step_seed
from kiara.training.optim import make_optimizers, schedule, set_learning_rates
from kiara.training.pace import Pace, duration
from kiara.training.parallel import Objective, World, check_batch, whole
from kiara.training.preference import Preference
from kiara.training.preflight import announce, check_text_fits
from kiara.training.rounding import Rounding
from kiara.training.run import Run
from kiara.training.snapshot import load_snapshot, save_snapshot, whole_model
from kiara.training.stop_request import stop_request
from kiara.training.validation import Validation, sample
from kiara_runtime.errors import UserError
from kiara_runtime.verify import Metrics

ALONE = World()
LOG_SECONDS = 20.0  # between progress lines where there is no terminal to draw a bar on


def train(run: Run, dataset: Dataset, world: World = ALONE) -> bool:
    """Train into the run folder, then release its lock; False if it was interrupted, with a checkpoint written."""
    with closing(run):
        return _train(run, dataset, world)


def _train(run: Run, dataset: Dataset, world: World) -> bool:
    most = run.config.training.max_steps
    judged = any("final_val_loss" in record and record["step"] >= most for record in run.metrics())
    if run.last and run.last.step >= most and judged:
        logger.info(
            "%s is finished at step %d; set a higher training.max_steps to continue.", run.folder, run.last.step
        )
        return True
    with memory_told("model", "make hidden_size or num_hidden_layers smaller"):
        trainer = Trainer(run, dataset, world)
    run.begin()
    shortage = memory_told("training.batch_size", "lower it, or training.sequence_length; --resume goes on")
    with run.logged(), shortage, repeatable(trainer.device):
        trainer.announce()
        with stop_request() as stopping:
            finished = trainer.loop(stopping)
        trainer.finish(finished)
    return finished


class Trainer:
    """The state of a run: model, optimizers and the next step to take."""

    def __init__(self, run: Run, dataset: Dataset, world: World) -> None:
        self.run, self.config, self.dataset, self.world = run, run.config.training, dataset, world
        self.device, self.length = pick_device(self.config.device), run.config.sequence_length
        check_batch(self.config.sequences, world)
        check_text_fits(run.config, dataset)
        self.step, self.seconds, self.gradient_norm = 0, 0.0, 0.0
        self.validated = -1  # the step of the last validation
        self.preference_loss: float | None = None  # of that validation, in a run that learns preferences
        self.model = initial_model(run, dataset)
        if run.last:
            state = run.last.state()
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.model.to(self.device).train()
        self.model.recompute = self.config.activation_checkpointing
        self.bfloat16 = use_bfloat16(self.config.dtype, self.device)
        self.autocast = partial(torch.autocast, self.device, torch.bfloat16, enabled=self.bfloat16)
        self.objective = Objective(self.model)
        if isinstance(dataset.train, PairSplit):
            self.objective = Preference(self.model, reference(run, dataset).to(self.device), self.config.dpo_beta)
        self.gradient = Gradient(self.objective, dataset.train, run.config, world, self.autocast)
        self.optimizers = make_optimizers(self.model, self.config, self.bfloat16)
        quantize, selected = self.config.quantize, self.config.select_by or self.config.quantize
        tokens = self.config.max_steps * self.config.sequences * self.length
        estimate = partial(curvatures, self.model, dataset.train, tokens_for(tokens), self.autocast)
        self.rounding = Rounding(self.model, quantize, estimate) if quantize != "none" else None
        self.selection = Rounding(self.model, selected) if selected not in ("none", "val_bpb") else None
        self.saved = self.step
        if run.last:
            load_snapshot(run.last, self.model, self.optimizers)
        self.validation = Validation(self.model, dataset, world, self._predict, self.length)
        flops = sizes.training_flops(run.config.model, self.model.vocab_size, tokens, self.length) / world.size
        self.compiled = use_compile(self.config.compile, self.device, flops, run.config.model.num_hidden_layers)
        if self.compiled:
            self.gradient.compile()

    def announce(self) -> None:
        """Log sizes, data and device."""
        arithmetic = "bfloat16 autocast" if self.bfloat16 else "float32"
        processes = f", {self.world.size} processes ({self.config.parallel})" if self.world.size > 1 else ""
        compiling = ", compiling the model" if self.compiled else ""
        announce(self.run.config, self.model, self.dataset, f"{self.device}{processes}, {arithmetic}{compiling}")

    def loop(self, stopping: Callable[[], bool]) -> bool:
        """Train until the last step, or until `stopping` in any process; returns whether the last step was reached."""
        self._judge_start()
        config, shown = self.config, time.monotonic()
        pace = Pace(config.max_steps, self.step)
        with progress("Training", config.max_steps, self.step) as advance:
            while not self._done() and not self._agreed(stopping()):
                started = time.perf_counter()
                loss = self._step()
                seconds = time.perf_counter() - started
                self._record(loss, seconds)
                if first := pace.stepped(seconds):
                    logger.info("Estimated time: about %s.", first)
                note = f"loss {loss:.3f}  {config.sequences * self.length / seconds:,.0f} tokens/s"
                advance(1, note)
                if time.monotonic() - shown > LOG_SECONDS:
                    shown = time.monotonic()
                    log_without_bar("step %d/%d  %s  ETA %s", self.step, config.max_steps, note, pace.left(self.step))
                started = time.perf_counter()
                self._milestones()
                pace.paused(time.perf_counter() - started)
        if self.saved != self.step:  # interrupted between checkpoints
            with self._as_shipped():
                self._save(self._validate())
        return self._done()

    def _judge_start(self) -> None:
        """Evaluate a checkpoint that the run starts from on the whole validation split, to compare with its end."""
        if self.step == 0 and self.config.init_from is not None:
            metrics = self.validation(None)
            self.run.record(step=0, **metrics.named("initial_val_"))
            self._validate_preference(None, "initial_val_")
            logger.info(
                "Before training: loss %.4f, %.4f bits per byte on all %s validation tokens.",
                metrics.loss, metrics.bits_per_byte, f"{metrics.tokens:,}",
            )  # fmt: skip

    def _done(self) -> bool:
        """Whether the run has reached its last step, or its patience."""
        if self.step < self.config.max_steps and self.config.patience is not None and self.step == self.validated:
            return self.world.total([stalled(self.run.metrics()) >= self.config.patience]) > [0.0]
        return self.step >= self.config.max_steps

    def _record(self, loss: float, seconds: float) -> None:
        self.seconds += seconds
        self.run.record(
            step=self.step,
            loss=round(loss, 6),
            learning_rate=schedule(self.config, self.step - 1) * self.config.learning_rate,
            gradient_norm=round(self.gradient_norm, 6),
            step_seconds=round(seconds, 4),
            tokens_per_second=round(self.config.sequences * self.length / seconds),
            memory_mib=memory_mib(self.device),
        )

    def finish(self, finished: bool) -> None:
        """Plot the run, and evaluate a finished one on the whole validation split."""
        self.run.plot()
        if not finished:
            saved = "saved" if self.step else "nothing to save yet"
            logger.warning(
                "Interrupted at step %d, %s. To continue: kiara train --resume --out %s",
                self.step,
                saved,
                self.run.folder,
            )
            return
        with self._as_shipped():
            metrics = self.validation(None)
            self._validate_preference(None, "final_val_")
        self.run.record(step=self.step, seconds=round(self.seconds, 3), **metrics.named("final_val_"))
        logger.info(
            "Finished in %s: loss %.4f, perplexity %.2f, next-token accuracy %.1f %%, %.4f bits per byte on all %s "
            "validation tokens. Run: %s",
            duration(self.seconds), metrics.loss, metrics.perplexity, 100 * metrics.accuracy, metrics.bits_per_byte,
            f"{metrics.tokens:,}", self.run.folder,
        )  # fmt: skip

    def _agreed(self, stop: bool) -> bool:
        """Whether any process was asked to stop; all stop after the same step."""
        return self.world.total([float(stop)]) > [0.0]

    def _step(self) -> float:
        """Take one optimizer step; returns the mean loss of its batch."""
        set_learning_rates(self.optimizers, self.config, self.step)
        if self.run.config.adapt.dropout:
            torch.manual_seed(step_seed(self.config.seed, self.step, self.world.rank))
        with self._as_shipped(training=True):
            mine = self.gradient.add(self.step)
        (loss,) = self.world.total([mine])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.gradient_norm = whole(norm).item()
        self._must_be_finite("loss", loss)
        self._must_be_finite("norm of the gradient", self.gradient_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad()
        self.step += 1
        return loss

    def _must_be_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        kept = self.run.newest()
        raise UserError(
            "training.learning_rate",
            f"{self.config.learning_rate} made the {name} {value} at step {self.step + 1}",
            f"lower it and continue from {kept.folder} with --resume" if kept else "lower it and start again",
        )

    def _milestones(self) -> None:
        config = self.config
        saving = self.step % config.checkpoint_every == 0 or self.step == config.max_steps
        if saving or self.step % config.eval_every == 0:
            with self._as_shipped():
                metrics = self._validate()
                if saving:
                    self._save(metrics)

    def _validate(self) -> Metrics:
        metrics = self.validation(self.config.eval_tokens)
        self._must_be_finite("validation loss", metrics.loss)  # before such weights are saved
        self.run.record(step=self.step, **metrics.named("val_"))
        self.preference_loss = self._validate_preference(self.config.eval_tokens, "val_")
        self.validated = self.step
        logger.info(
            "step %d/%d  validation loss %.4f  perplexity %.2f  accuracy %.1f %%  %.4f bits per byte",
            self.step, self.config.max_steps, metrics.loss, metrics.perplexity, 100 * metrics.accuracy,
            metrics.bits_per_byte,
        )  # fmt: skip
        if self.world.main and (said := advice(self.run.metrics())):
            logger.info("%s.", said[0].upper() + said[1:])
        if self.config.sample_tokens:
            model = whole_model(self.model)
            if self.world.main:
                text = sample(model, self.dataset, self.config.sample_prompt, self.config.sample_tokens)
                self.run.sample(self.step, text)
                logger.debug("sample at step %d: %r", self.step, text)
        return metrics

    def _validate_preference(self, tokens: int | None, prefix: str) -> float | None:
        """The loss on held-out preferences, recorded and logged; None if the run learns none."""
        if not isinstance(self.objective, Preference):
            return None
        loss, right = self.validation.preference(self.objective, tokens)
        self.run.record(step=self.step, **{f"{prefix}preference_loss": loss, f"{prefix}preference_accuracy": right})
        logger.info("Preferences: loss %.4f, %.1f %% of the choices are right.", loss, 100 * right)
        return loss

    def _as_shipped(self, training: bool = False) -> AbstractContextManager[None]:
        """Round the weights, once the full-precision part of the run is over. training: for the passes of a step."""
        start = round(self.config.quantize_from * self.config.max_steps)
        return self.rounding(training) if self.rounding and self.step >= start else nullcontext()

    def _selection_loss(self, metrics: Metrics) -> float:
        """The loss that picks the best checkpoint: of the weights as they are, or rounded for a variant; or that on
        preferences.
        """
        if self.preference_loss is not None:
            return self.preference_loss
        rounded_for = self.rounding.variant if self.rounding and self.rounding.exact else None
        if self.selection is None or self.selection.variant == rounded_for:
            return metrics.loss
        with self.selection():
            metrics = self.validation(self.config.eval_tokens)
        self.run.record(step=self.step, **metrics.named(f"{self.selection.variant}_val_"))
        return metrics.loss

    def _save(self, metrics: Metrics) -> None:
        state = {
            "step": self.step,
            "epoch": self.dataset.train.epoch(self.step, self.config.sequences, self.length),
            "seconds": round(self.seconds, 3),
            **metrics.named("val_"),
            "selection_loss": self._selection_loss(metrics),
        }
        saved = save_snapshot(
            self.run, self.dataset, self.model, self.optimizers, self.rounding, self.world, progress=state
        )
        self.saved = self.step
        if saved:
            logger.debug("saved %s", saved.folder)

    def _predict(self, ids: Tensor, segments: Tensor | None) -> Tensor:
        with self.autocast():
            return self.model.predict(ids, segments)
