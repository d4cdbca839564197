"""Sampling parameters: checked once as SamplingParams, and as typed keywords for editors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, cast

from kiara_runtime.errors import UserError
from kiara_runtime.sampling.checks import (
    MOST_IDS,
    Check,
    biases,
    count_or_off,
    drawn_seed,
    flag,
    json_schema,
    optional,
    real_number,
    source,
    texts,
    token_ids,
    whole_number,
)


def _documented(default: Any, check: Check, text: str) -> Any:
    """A field with its check and its help text, which the commands show too."""
    return field(default=default, metadata={"check": check, "help": text})


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt. A value out of range raises UserError with the field's name.

    Without a seed a random one is drawn and stored in `seed`: the same seed gives the same text.
    """

    max_tokens: int = _documented(
        128, whole_number(0, MOST_IDS), "Maximum number of tokens to generate; the model's context may end it sooner."
    )
    temperature: float = _documented(
        0.8, real_number(0.0, 100.0), "Divides the logits; 0 always takes the likeliest token (greedy)."
    )
    top_k: int = _documented(0, count_or_off, "Keep the k likeliest tokens; 0 and -1 keep all.")
    typical_p: float = _documented(
        1.0, real_number(0.0, 1.0, above=True), "Keep the most typical tokens that together reach this probability."
    )
    top_p: float = _documented(
        1.0, real_number(0.0, 1.0, above=True), "Keep the likeliest tokens that together reach this probability."
    )
    min_p: float = _documented(
        0.0, real_number(0.0, 1.0), "Keep tokens with at least this fraction of the likeliest one's probability."
    )
    repetition_penalty: float = _documented(
        1.0, real_number(0.01, 10.0), "Above 1, makes tokens of prompt and output less likely."
    )
    presence_penalty: float = _documented(
        0.0, real_number(-2.0, 2.0), "Subtracted from the logit of each token in the output."
    )
    frequency_penalty: float = _documented(
        0.0, real_number(-2.0, 2.0), "Subtracted from a token's logit for each time it is in the output."
    )
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = _documented(
        (), biases, "Added to the logits of these tokens, -100 to 100; stored as pairs of id and bias."
    )
    banned_tokens: tuple[int, ...] = _documented((), token_ids, "Ids of tokens that are never chosen.")
    seed: int | None = _documented(None, drawn_seed, "The same seed gives the same text; random if not given.")
    stop: tuple[str, ...] = _documented((), texts, "The text ends before the first of these strings.")
    stop_token_ids: tuple[int, ...] = _documented((), token_ids, "Ids that end the text like an end-of-text token.")
    ignore_eos: bool = _documented(False, flag, "Continue after an end-of-text token, for benchmarks.")
    logprobs: int | None = _documented(
        None, optional(whole_number(0, 20)), "Return log-probabilities: of each token, and of this many likeliest ones."
    )
    prompt_logprobs: bool = _documented(False, flag, "Return the log-probabilities of the prompt's tokens too.")
    json_schema: str | None = _documented(
        None, optional(json_schema), "The text is JSON that this JSON Schema allows; a dictionary or JSON text."
    )
    regex: str | None = _documented(None, optional(source), "The whole text matches this regular expression.")
    grammar: str | None = _documented(None, optional(source), "The text follows this Lark grammar.")
    token_healing: bool = _documented(
        True, flag, "If a text prompt ends inside a token, sample that token again; False turns it off."
    )
    speculate: bool = _documented(
        False,
        flag,
        "Guess tokens ahead from repeats in the text, and verify them in one pass; "
        "faster on code, but the last bit of a logit may differ.",
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, each.metadata["check"](each.name, getattr(self, each.name)))
        given = [name for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(given[1], f"{given[0]} is given too", "give at most one of json_schema, regex and grammar")

    def check_vocabulary(self, size: int) -> None:
        """Raise UserError for an id outside a vocabulary of `size`, or if all of it is banned."""
        biased = tuple(dict(self.logit_bias))
        for name, ids in (
            ("logit_bias", biased),
            ("banned_tokens", self.banned_tokens),
            ("stop_token_ids", self.stop_token_ids),
        ):
            if ids and ids[-1] >= size:  # they ascend
                raise UserError(name, f"the vocabulary has no token {ids[-1]}", f"give ids below {size}")
        if len(self.banned_tokens) == size:
            raise UserError("banned_tokens", f"all {size} tokens are banned", "leave at least one")


class Sampling(TypedDict, total=False):
    """The keywords of `generate`, `stream` and `chat`: fields of SamplingParams, with their ranges and defaults."""

    max_tokens: int
    """Maximum number of tokens to generate, 0 and up; the model's context may end it sooner. Default 128."""
    temperature: float
    """Divides the logits, 0 to 100; 0 always takes the likeliest token (greedy). Default 0.8."""
    top_k: int
    """Keep the k likeliest tokens, 1 and up; 0 and -1 keep all. Default 0."""
    typical_p: float
    """Keep the most typical tokens that together reach this probability, above 0 to 1. Default 1."""
    top_p: float
    """Keep the likeliest tokens that together reach this probability, above 0 to 1. Default 1."""
    min_p: float
    """Keep tokens with at least this fraction of the likeliest one's probability, 0 to 1. Default 0."""
    repetition_penalty: float
    """Above 1, makes tokens of prompt and output less likely, 0.01 to 10. Default 1."""
    presence_penalty: float
    """Subtracted from the logit of each token in the output, -2 to 2. Default 0."""
    frequency_penalty: float
    """Subtracted from a token's logit for each time it is in the output, -2 to 2. Default 0."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these token ids, -100 to 100. Default none."""
    banned_tokens: Iterable[int]
    """Ids of tokens that are never chosen. Default none."""
    seed: int | None
    """The same seed gives the same text, 0 to 2^63 - 1; None draws a random one."""
    stop: str | Iterable[str]
    """The text ends before the first of these strings, at most 16. Default none."""
    stop_token_ids: Iterable[int]
    """Ids that end the text like an end-of-text token. Default none."""
    ignore_eos: bool
    """Continue after an end-of-text token, for benchmarks. Default False."""
    logprobs: int | None
    """Return each token's log-probability, and those of this many likeliest tokens, 0 to 20. Default None."""
    prompt_logprobs: bool
    """Return the log-probabilities of the prompt's tokens too. Default False."""
    json_schema: str | Mapping[str, Any] | None
    """The text is JSON that this JSON Schema allows, a dictionary or JSON text. Not with `regex` or `grammar`."""
    regex: str | None
    """The whole text matches this regular expression."""
    grammar: str | None
    """The text follows this Lark grammar."""
    token_healing: bool
    """If a text prompt ends inside a token, sample that token again. Default True."""
    speculate: bool
    """Guess tokens ahead from repeats in the text and verify them in one pass. Default False."""


def sampling_params(given: Sampling | Mapping[str, Any]) -> SamplingParams:
    """SamplingParams from keywords; raises UserError for an unknown one, and suggests the nearest."""
    names = [each.name for each in fields(SamplingParams)]
    for name in given:
        if name not in names:
            import difflib  # used for a mistake only

            close = difflib.get_close_matches(name, names, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"use {', '.join(names)}"
            raise UserError(name, "is not a sampling parameter", remedy)
    return SamplingParams(**cast("dict[str, Any]", given))
