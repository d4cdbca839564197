"""What rounding costs: each variant against float32, token by token, on held-out text.

A quantised graph cannot be compared bit by bit (its activations are rounded to 8 bits, which amplifies the last
bit that differs between a step and a chunk), so it is judged by bits per byte, by the Kullback-Leibler divergence
of its next-token distribution from float32's, and by how often both find the same token likeliest. What it can
promise bit by bit, that company in a batch changes nothing, is tried as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiara.data import Split
from kiara.evaluate import Metrics, Tally, rows_at_once, windows
from kiara.model import GPT
from kiara_export.reference import Reference, window_length
from kiara_export.verify import departing_layer
from kiara_runtime.bundle import Architecture
from kiara_runtime.errors import UserError
from kiara_runtime.paths import PathAgreement, cached, in_chunks, path_agreement
from kiara_runtime.session import Session
from kiara_runtime.tokenizer import Tokenizer

MAX_TOKENS, MIN_TOKENS = 1 << 16, 1 << 13  # of held-out text that the variants are judged on
MAX_WORK = 1e12  # tokens times parameters: a dozen seconds a variant on two cores
ROWS = 64  # positions whose distributions are compared at once: they are large beside a small model
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Limits:
    """What a variant may cost. bits_per_byte_loss: relative to float32; the others: at least this part agrees."""

    bits_per_byte_loss: float
    top1_agreement: float
    path_agreement: float


LIMITS = {
    "int8": Limits(0.003, 0.9, 0.9),
    "int4": Limits(0.02, 0.75, 0.9),
    "fp16": Limits(0.001, 0.97, 0.95),
    "int8-dynamic": Limits(0.02, 0.75, 0.6),  # its activations share a scale with the whole pass
}


@dataclass(frozen=True)
class Quality:
    """Of a variant on held-out text.

    kl: mean divergence of the next-token distribution from float32's, in nats a token; kl_quantiles: at QUANTILES.
    top1_agreement: part of the positions whose likeliest token is float32's. paths: the same of single steps, chunks,
    a padded batch and the context's end with the variant's own prefill; path_agreement: the lowest of them.
    """

    metrics: Metrics
    bits_per_byte_loss: float
    kl: float
    kl_quantiles: tuple[float, ...]
    top1_agreement: float
    path_agreement: float
    paths: PathAgreement

    def figures(self) -> dict[str, Any]:
        """Everything but the metrics, by name."""
        return {name: value for name, value in asdict(self).items() if name != "metrics"}


class Judge:
    """Compares any number of variants with float32 in one reading of the text, a window at a time."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, split: Split) -> None:
        self._tokenizer, self._split, self._length = tokenizer, split, window_length(model)
        self._rows = rows_at_once(model)
        affordable = max(MIN_TOKENS, int(MAX_WORK / sum(parameter.numel() for parameter in model.parameters())))
        self._float32: Metrics | None = None
        self.tokens = min(MAX_TOKENS, affordable, split.windows(self._length) * self._length)

    def measure(
        self,
        float32: Session,
        variants: Mapping[str, Session],
        reference: Reference | None = None,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> tuple[Metrics, dict[str, Quality]]:
        """Metrics of float32, and the quality of each variant, whose paths are compared on the reference's text."""
        tally, seen = Tally(self._tokenizer), {name: _Comparison(self._tokenizer) for name in variants}
        for batch in windows(self._split, self._length, self.tokens, self._rows):
            for window in batch:
                ids, targets = window[:-1].numpy(), window[1:]
                expected = torch.from_numpy(in_chunks(float32, ids, len(ids)))
                tally.add(expected, targets)
                for name, session in variants.items():
                    seen[name].add(torch.from_numpy(in_chunks(session, ids, len(ids))), expected, targets)
                advance(len(ids))
        metrics = tally.metrics()
        if reference is None:
            return metrics, {}
        return metrics, {name: seen[name].quality(metrics, variants[name], reference) for name in variants}

    def loss_of_files(self, shape: Architecture, float32: Path, variant: Path) -> float:
        """Relative loss of bits per byte of the second graph against the first, which is measured only once."""
        if self._float32 is None:
            self._float32, _ = self.measure(Session(float32, shape), {})
        return self.measure(Session(variant, shape), {})[0].bits_per_byte / self._float32.bits_per_byte - 1


class _Comparison:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tally, self._agreeing, self._divergences = Tally(tokenizer), 0, list[Tensor]()

    def add(self, found: Tensor, expected: Tensor, targets: Tensor) -> None:
        """Logits (S, V) of the variant and of float32, and the tokens that came (S,)."""
        self._tally.add(found, targets)
        self._agreeing += int((found.argmax(-1) == expected.argmax(-1)).sum())
        for ours, theirs in zip(found.split(ROWS), expected.split(ROWS), strict=True):
            ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
            self._divergences.append((theirs.exp() * (theirs - ours)).sum(-1))

    def quality(self, float32: Metrics, session: Session, reference: Reference) -> Quality:
        metrics, divergences = self._tally.metrics(), torch.cat(self._divergences).clamp(min=0)
        paths = path_agreement(session, reference.windows)
        return Quality(
            metrics=metrics,
            bits_per_byte_loss=metrics.bits_per_byte / float32.bits_per_byte - 1,
            kl=divergences.mean().item(),
            kl_quantiles=tuple(torch.quantile(divergences, torch.tensor(QUANTILES)).tolist()),
            top1_agreement=self._agreeing / metrics.tokens,
            path_agreement=paths.lowest(),
            paths=paths,
        )


def demand(name: str, quality: Quality, limits: Limits, blame: Callable[[], str]) -> None:
    """Raises UserError where a variant costs more than it may. blame: says which layer departs first."""
    for field, value, good in (
        ("bits_per_byte_loss", quality.bits_per_byte_loss, quality.bits_per_byte_loss <= limits.bits_per_byte_loss),
        ("top1_agreement", quality.top1_agreement, quality.top1_agreement >= limits.top1_agreement),
        ("path_agreement", quality.path_agreement, quality.path_agreement >= limits.path_agreement),
    ):
        if not good:
            bound = "at most" if field == "bits_per_byte_loss" else "at least"
            raise UserError(
                f"verification: {name} has {field} {value:.2%} where {bound} {getattr(limits, field):.2%} is allowed "
                f"({blame()}); no bundle was written; leave it out or allow more with --max-bpb-loss"
            )


def worst_layer(float32: Session, session: Session, reference: Reference) -> str:
    """Where a variant leaves float32: the first layer whose cache departs half as far as any does."""
    ids = reference.windows[0]
    expected, found = cached(float32, ids), cached(session, ids)
    errors = [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(expected, found, strict=True)]
    layer = departing_layer(expected, found, max(errors) / 2)
    return f"keys and values depart most from layer {layer} on, by up to {max(errors):.1%}"
