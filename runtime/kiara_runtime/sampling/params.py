"""From logits to the next token, in NumPy: the one sampler of every front end, PyTorch reference included."""

from __future__ import annotations

import json
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.errors import UserError
from kiara_runtime.sampling import filters
from kiara_runtime.sampling.filters import Logits

MOST_IDS = 1 << 31
MOST_SOURCE_BYTES = 1 << 20
Check = Callable[[str, Any], Any]  # (a field's name, the value given) -> the value to store, or UserError


def check_integer(name: str, value: object, least: int, most: int) -> int:
    """`value` as an int; raises UserError unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise _refusal(name, value, f"give a whole number from {least} to {most}")
    return int(value)


def _refusal(name: str, value: object, remedy: str) -> UserError:
    return UserError(name, "cannot be used", remedy, value=value)


def _whole(least: int, most: int) -> Check:
    return lambda name, value: check_integer(name, value, least, most)


def _count_or_off(name: str, value: object) -> int:
    """Some programs write -1 where others write 0."""
    return max(0, check_integer(name, value, -1, MOST_IDS))


def _real(least: float, most: float, above: bool = False) -> Check:
    def check(name: str, value: Any) -> float:
        number: Any = math.nan if isinstance(value, bool) or not isinstance(value, Real) else value
        if not least <= number <= most or (above and float(number) == least):  # NaN compares as false
            raise _refusal(name, value, f"give a number {'above' if above else 'from'} {least:g} to {most:g}")
        return float(number)

    return check


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _flag(name: str, value: object) -> bool:
    if type(value) is not bool:
        raise _refusal(name, value, "give True or False")
    return value


def _seed(name: str, value: object) -> int:
    return secrets.randbits(32) if value is None else check_integer(name, value, 0, (1 << 63) - 1)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = () if value is None else (value,)
    texts: tuple[Any, ...] = tuple(cast("Iterable[Any]", value))
    if len(texts) > 16:
        raise _refusal(name, texts, "give at most 16 texts")
    for i, text in enumerate(texts):
        if type(text) is not str or not text:
            raise _refusal(name if len(texts) == 1 else f"{name}[{i}]", text, "give a text that is not empty")
    return texts


def _ids(name: str, value: Any) -> tuple[int, ...]:
    """Each id once, ascending."""
    try:
        ids: list[Any] = [] if value is None else list(value)
    except TypeError:
        raise _refusal(name, value, "give a list of token ids") from None
    if isinstance(value, (str, bytes, Mapping)):
        raise _refusal(name, ids, "give a list of token ids")
    return tuple(sorted({check_integer(f"{name}[{i}]", token, 0, MOST_IDS) for i, token in enumerate(ids)}))


def _biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of id and bias by id, each id once. JSON's ids are texts of decimal digits."""
    try:
        given: dict[Any, Any] = dict(() if value is None else value)
    except (TypeError, ValueError):
        raise _refusal(name, value, "give a dictionary from token ids to numbers") from None
    biases: dict[int, float] = {}
    for token, bias in given.items():
        decimal = isinstance(token, str) and token.isascii() and token.isdecimal() and len(token) < 20
        key = check_integer(name, int(token) if decimal else token, 0, MOST_IDS)
        if key in biases:
            raise _refusal(name, token, "give each token once")
        biases[key] = _real(-100.0, 100.0)(f"{name}[{key}]", bias)
    return tuple(sorted(biases.items()))


def _source(name: str, value: Any) -> str:
    try:
        if isinstance(value, str) and 0 < len(value.encode()) <= MOST_SOURCE_BYTES:
            return value
    except UnicodeEncodeError:
        raise _refusal(name, value, "give text that UTF-8 can hold") from None
    raise _refusal(name, value, "give a text of 1 byte to 1 MiB")


def _schema(name: str, value: Any) -> str:
    remedy = "give a JSON Schema, as a dictionary or its JSON text"
    try:
        text = value
        if isinstance(text, dict):
            text = json.dumps(text, ensure_ascii=False, allow_nan=False)
        parsed = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise _refusal(name, value, remedy) from None
    if not isinstance(parsed, dict):
        raise _refusal(name, value, remedy)
    return _source(name, text)


def _documented(default: Any, check: Check, text: str) -> Any:
    """A field with what it may hold, and its help text, which the command lines show, too."""
    return field(default=default, metadata={"check": check, "help": text})


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt. A value out of range raises UserError with the field's name.

    Where no seed is given one is drawn, and stands in the result: the same seed gives the same text.
    """

    max_tokens: int = _documented(
        128, _whole(0, MOST_IDS), "Tokens to generate at most; the model's context may end it sooner."
    )
    temperature: float = _documented(
        0.8, _real(0.0, 100.0), "Divides the logits; 0 always takes the likeliest token (greedy)."
    )
    top_k: int = _documented(0, _count_or_off, "Keep the k likeliest tokens; 0 and -1 keep all.")
    typical_p: float = _documented(
        1.0, _real(0.0, 1.0, above=True), "Keep the most typical tokens that together reach this probability."
    )
    top_p: float = _documented(
        1.0, _real(0.0, 1.0, above=True), "Keep the likeliest tokens that together reach this probability."
    )
    min_p: float = _documented(
        0.0, _real(0.0, 1.0), "Keep tokens with at least this part of the likeliest one's probability."
    )
    repetition_penalty: float = _documented(
        1.0, _real(0.01, 10.0), "Above 1, makes tokens of prompt and output less likely."
    )
    presence_penalty: float = _documented(
        0.0, _real(-2.0, 2.0), "Taken off the logit of a token that the output holds."
    )
    frequency_penalty: float = _documented(
        0.0, _real(-2.0, 2.0), "Taken off the logit of a token each time that the output holds it."
    )
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = _documented(
        (), _biases, "Added to the logits of these tokens, -100 to 100; stored as pairs of id and number."
    )
    banned_tokens: tuple[int, ...] = _documented((), _ids, "Ids of tokens that are never chosen.")
    seed: int | None = _documented(None, _seed, "The same seed gives the same text; drawn where none is given.")
    stop: tuple[str, ...] = _documented((), _texts, "The text ends before the first of these.")
    stop_token_ids: tuple[int, ...] = _documented((), _ids, "Ids that end the text as an end-of-text token does.")
    ignore_eos: bool = _documented(False, _flag, "Go on after an end-of-text token, for measurements.")
    logprobs: int | None = _documented(
        None, _optional(_whole(0, 20)), "Tell each token's log-probability, and so many of the likeliest ones."
    )
    prompt_logprobs: bool = _documented(False, _flag, "Tell the log-probabilities of the prompt's tokens, too.")
    json_schema: str | None = _documented(
        None, _optional(_schema), "The text is JSON that this JSON Schema allows; a dictionary will do, too."
    )
    regex: str | None = _documented(None, _optional(_source), "The text matches this regular expression, whole.")
    grammar: str | None = _documented(None, _optional(_source), "The text follows this Lark grammar.")
    speculate: bool = _documented(
        False,
        _flag,
        "Guess tokens ahead from repeats in the text, and check them in one pass; "
        "faster on code, the last bit of a logit may differ.",
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, each.metadata["check"](each.name, getattr(self, each.name)))
        given = [name for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(given[1], f"{given[0]} is given, too", "give one of json_schema, regex and grammar at most")

    def check_vocabulary(self, size: int) -> None:
        """Raises UserError for an id that a vocabulary of `size` lacks, and where all of it is banned."""
        biased = tuple(dict(self.logit_bias))
        for name, ids in (
            ("logit_bias", biased),
            ("banned_tokens", self.banned_tokens),
            ("stop_token_ids", self.stop_token_ids),
        ):
            if ids and ids[-1] >= size:  # they ascend
                raise UserError(name, f"the vocabulary has no token {ids[-1]}", f"give ids below {size}")
        if len(self.banned_tokens) == size:
            raise UserError("banned_tokens", f"all {size} tokens are banned", "leave one at least")


class Sampler:
    """Picks the tokens of one sequence; draws once for each that it samples, so that a seed repeats in any company.

    prompt: its ids. choice: which of a request's continuations this is; each has draws of its own.
    The logits change in this order: repetition penalty (prompt and output), presence and frequency penalty
    (output only, as OpenAI defines them), bias, bans. Temperature and filters follow, see `filters.keep`.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], choice: int = 0) -> None:
        seed = params.seed or 0  # never None, SamplingParams has drawn one
        self._draw = np.random.default_rng([seed, choice] if choice else seed).random
        self._params = params
        self._repetition = params.repetition_penalty != 1.0
        self._bias = {**dict(params.logit_bias), **dict.fromkeys(params.banned_tokens, -math.inf)}
        self._changes = self._repetition or bool(
            self._bias or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        self._prompt = set(prompt) if self._repetition else set[int]()
        self._recorded: list[int] = []  # not counted yet
        self._counts: Counter[int] = Counter()  # of the output
        self._seen = np.zeros(0, dtype=np.bool_)  # (V,) from the first call on, which tells V
        self._shift = np.zeros(0, dtype=np.float32)

    def __call__(self, logits: Logits, allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token. logits: (V,), never written to; allowed: (V,), the tokens that a grammar permits.

        Raises UserError where no token can be chosen, or a logit is not a number.
        """
        if self._changes:
            logits = self._changed(logits)
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
        likeliest = int(logits.argmax())
        if not math.isfinite(logits[likeliest]):
            raise _no_choice(float(logits[likeliest]))
        params = self._params
        if params.temperature == 0.0:
            return likeliest
        kept = filters.keep(logits, params.temperature, params.top_k, params.typical_p, params.top_p, params.min_p)
        return filters.pick(*kept, self._draw())

    def record(self, token: int) -> None:
        """Count a token that joined the output, for the penalties."""
        if self._changes:
            self._recorded.append(token)

    def _changed(self, logits: Logits) -> Logits:
        if not len(self._shift):
            self._begin(len(logits))
        for token in self._recorded:
            self._count(token)
        self._recorded.clear()
        if self._repetition:
            logits = filters.penalise(logits, np.flatnonzero(self._seen), self._params.repetition_penalty)
        return logits + self._shift

    def _begin(self, size: int) -> None:
        self._seen, self._shift = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.float32)
        self._seen[list(self._prompt)] = True
        self._shift[list(self._bias)] = list(self._bias.values())

    def _count(self, token: int) -> None:
        self._counts[token] += 1
        self._seen[token] = True
        penalty = self._params.presence_penalty + self._params.frequency_penalty * self._counts[token]
        self._shift[token] = self._bias.get(token, 0.0) - penalty


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural log-probability, and the likeliest tokens in its place as pairs of id and log-probability."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: Logits, token: int, top: int) -> TokenLogprob:
    """By the model's own distribution, before temperature, penalties and bans. logits: (V,).

    top: how many of the likeliest tokens to tell, by falling probability, equal ones by id.
    """
    logprobs = filters.log_softmax(logits)
    best = filters.ranked(-logits, top)[:top]
    return TokenLogprob(token, float(logprobs[token]), tuple(zip(best.tolist(), logprobs[best].tolist(), strict=True)))


def _no_choice(largest: float) -> UserError:
    if largest == -math.inf:
        return UserError("banned_tokens", "with logit_bias and the grammar they leave no token here", "ban fewer")
    return UserError("logits", f"the largest is {largest}, no number", "the model overflows here, try another variant")
