"""From logits to the next token, in NumPy: the one sampler of every front end, PyTorch reference included."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.errors import UserError

Logits = NDArray[np.float32]
Sampler = Callable[[Logits, Sequence[int]], int]


def _documented(default: Any, text: str) -> Any:
    """A field whose help text the command lines show, too."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt. A value out of range raises UserError with the field's name.

    Where no seed is given one is drawn, and stands in the result: the same seed gives the same text.
    """

    max_tokens: int = _documented(128, "Tokens to generate at most; the model's context may end it sooner.")
    temperature: float = _documented(0.8, "Divides the logits; 0 always takes the likeliest token (greedy).")
    top_k: int = _documented(0, "Keep the k likeliest tokens; 0 keeps all.")
    top_p: float = _documented(1.0, "Keep the likeliest tokens that together reach this probability.")
    min_p: float = _documented(0.0, "Keep tokens with at least this part of the likeliest one's probability.")
    repetition_penalty: float = _documented(1.0, "Above 1, makes tokens of prompt and output less likely.")
    seed: int | None = _documented(None, "The same seed gives the same text; drawn where none is given.")
    stop: tuple[str, ...] = _documented((), "The text ends before the first of these.")
    ignore_eos: bool = _documented(False, "Go on after an end-of-text token, for measurements.")

    def __post_init__(self) -> None:
        check_integer("max_tokens", self.max_tokens, 1, 1 << 31)
        _number("temperature", self.temperature, 0.0, 100.0)
        check_integer("top_k", self.top_k, 0, 1 << 31)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(32))
        check_integer("seed", self.seed, 0, (1 << 63) - 1)
        object.__setattr__(self, "stop", _texts(self.stop))
        if type(self.ignore_eos) is not bool:
            raise UserError(f"ignore_eos: {self.ignore_eos!r} will not do; give True or False")
        if len(self.stop) > 16 or not all(_is_text(text) for text in self.stop):
            raise UserError(f"stop: give at most 16 texts, none of them empty, not {self.stop!r:.100}")


def make_sampler(params: SamplingParams) -> Sampler:
    """A function of (logits (V,), all token ids so far) that picks the next id, drawing from its own seed."""
    draw = np.random.default_rng(params.seed).random

    def sample(logits: Logits, history: Sequence[int]) -> int:
        if params.repetition_penalty != 1.0:
            logits = penalise(logits, history, params.repetition_penalty)
        if params.temperature == 0.0:
            return int(logits.argmax())
        return pick(logits, params, draw())

    return sample


def penalise(logits: Logits, history: Sequence[int], penalty: float) -> Logits:
    """Divide positive and multiply negative logits of tokens seen before (Keskar et al. 2019). (V,) -> (V,)."""
    seen = np.unique(np.asarray(history, dtype=np.int64))
    changed = logits.copy()
    changed[seen] = np.where(changed[seen] > 0, changed[seen] / penalty, changed[seen] * penalty)
    return changed


def pick(logits: Logits, params: SamplingParams, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the cumulated probabilities that top-k, top-p and min-p leave.

    Tokens are ranked by falling probability, equal ones by id, so the choice depends on nothing else.
    """
    order, probabilities = keep(logits, params)
    cumulated = probabilities.cumsum()
    place = int(np.searchsorted(cumulated, uniform * float(cumulated[-1]), "right"))
    return int(order.item(min(place, len(order) - 1)))


def keep(logits: Logits, params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that stay, likeliest first, and their probabilities, which sum to one.

    top_p: nucleus sampling (Holtzman et al. 2020); min_p: Nguyen et al. 2024. Both see the tempered logits.
    """
    order = _likeliest(logits, params.top_k)
    scaled = (logits[order].astype(np.float64) - float(logits[order[0]])) / params.temperature
    weights = np.exp(scaled)
    probabilities = weights / weights.sum()
    kept = len(order)
    if params.top_p < 1.0:  # up to and with the token that reaches top_p
        kept = min(kept, int(np.searchsorted(probabilities.cumsum(), params.top_p)) + 1)
    if params.min_p > 0.0:
        kept = min(kept, int((probabilities >= params.min_p * probabilities[0]).sum()))
    return order[:kept], probabilities[:kept] / probabilities[:kept].sum()


def _likeliest(logits: Logits, top_k: int) -> NDArray[np.int64]:
    """Ids by falling logit, equal ones by id; only the first `top_k` where that is not 0."""
    candidates = np.arange(len(logits))
    if 0 < top_k < len(logits):  # spares the sort of the whole vocabulary
        threshold = np.partition(logits, -top_k)[-top_k]
        candidates = np.flatnonzero(logits >= threshold)
    order = candidates[np.argsort(-logits[candidates], kind="stable")]
    return order[:top_k] if top_k else order


def _texts(stop: object) -> tuple[Any, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str) or not isinstance(stop, Iterable):
        return (stop,)
    return tuple(cast("Iterable[Any]", stop))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def check_integer(name: str, value: object, least: int, most: int) -> None:
    """Raises UserError unless `value` is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise UserError(f"{name}: {value!r} will not do; give a whole number from {least} to {most}")


def _number(name: str, value: object, least: float, most: float, above: bool = False) -> None:
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not least <= number <= most or (above and number == least):  # not a number compares as false
        raise UserError(
            f"{name}: {value!r} will not do; give a number {'above' if above else 'from'} {least:g} to {most:g}"
        )
