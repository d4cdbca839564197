"""How to continue a prompt: the parameters of sampling, checked once, and as keywords for editors."""

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
    """A field with what it may hold, and its help text, which the command lines show, too."""
    return field(default=default, metadata={"check": check, "help": text})


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt. A value out of range raises UserError with the field's name.

    Where no seed is given one is drawn, and stands in the result: the same seed gives the same text.
    """

    max_tokens: int = _documented(
        128, whole_number(0, MOST_IDS), "Tokens to generate at most; the model's context may end it sooner."
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
        0.0, real_number(0.0, 1.0), "Keep tokens with at least this part of the likeliest one's probability."
    )
    repetition_penalty: float = _documented(
        1.0, real_number(0.01, 10.0), "Above 1, makes tokens of prompt and output less likely."
    )
    presence_penalty: float = _documented(
        0.0, real_number(-2.0, 2.0), "Taken off the logit of a token that the output holds."
    )
    frequency_penalty: float = _documented(
        0.0, real_number(-2.0, 2.0), "Taken off the logit of a token each time that the output holds it."
    )
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = _documented(
        (), biases, "Added to the logits of these tokens, -100 to 100; stored as pairs of id and number."
    )
    banned_tokens: tuple[int, ...] = _documented((), token_ids, "Ids of tokens that are never chosen.")
    seed: int | None = _documented(None, drawn_seed, "The same seed gives the same text; drawn where none is given.")
    stop: tuple[str, ...] = _documented((), texts, "The text ends before the first of these.")
    stop_token_ids: tuple[int, ...] = _documented((), token_ids, "Ids that end the text as an end-of-text token does.")
    ignore_eos: bool = _documented(False, flag, "Go on after an end-of-text token, for measurements.")
    logprobs: int | None = _documented(
        None, optional(whole_number(0, 20)), "Tell each token's log-probability, and so many of the likeliest ones."
    )
    prompt_logprobs: bool = _documented(False, flag, "Tell the log-probabilities of the prompt's tokens, too.")
    json_schema: str | None = _documented(
        None, optional(json_schema), "The text is JSON that this JSON Schema allows; a dictionary or its text."
    )
    regex: str | None = _documented(None, optional(source), "The text matches this regular expression, whole.")
    grammar: str | None = _documented(None, optional(source), "The text follows this Lark grammar.")
    token_healing: bool = _documented(
        True, flag, "Where a text prompt ends inside a token, choose that token anew; off with False."
    )
    speculate: bool = _documented(
        False,
        flag,
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


class Sampling(TypedDict, total=False):
    """The keywords of `generate`, `stream` and `chat`: fields of SamplingParams, with their ranges and defaults."""

    max_tokens: int
    """Tokens to generate at most, 0 and up; the model's context may end it sooner. Default 128."""
    temperature: float
    """Divides the logits, 0 to 100; 0 always takes the likeliest token (greedy). Default 0.8."""
    top_k: int
    """Keep the k likeliest tokens, 1 and up; 0 and -1 keep all. Default 0."""
    typical_p: float
    """Keep the most typical tokens that together reach this probability, above 0 to 1. Default 1."""
    top_p: float
    """Keep the likeliest tokens that together reach this probability, above 0 to 1. Default 1."""
    min_p: float
    """Keep tokens with at least this part of the likeliest one's probability, 0 to 1. Default 0."""
    repetition_penalty: float
    """Above 1, makes tokens of prompt and output less likely, 0.01 to 10. Default 1."""
    presence_penalty: float
    """Taken off the logit of a token that the output holds, -2 to 2. Default 0."""
    frequency_penalty: float
    """Taken off the logit of a token each time that the output holds it, -2 to 2. Default 0."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these token ids, -100 to 100. Default none."""
    banned_tokens: Iterable[int]
    """Ids of tokens that are never chosen. Default none."""
    seed: int | None
    """The same seed gives the same text, 0 to 2^63 - 1; None draws one."""
    stop: str | Iterable[str]
    """The text ends before the first of these, at most 16. Default none."""
    stop_token_ids: Iterable[int]
    """Ids that end the text as an end-of-text token does. Default none."""
    ignore_eos: bool
    """Go on after an end-of-text token, for measurements. Default False."""
    logprobs: int | None
    """Tell each token's log-probability, and so many of the likeliest ones, 0 to 20. Default None."""
    prompt_logprobs: bool
    """Tell the log-probabilities of the prompt's tokens, too. Default False."""
    json_schema: str | Mapping[str, Any] | None
    """The text is JSON that this JSON Schema allows, a dictionary or its text. One of three forms at most."""
    regex: str | None
    """The text matches this regular expression, whole."""
    grammar: str | None
    """The text follows this Lark grammar."""
    token_healing: bool
    """Where a text prompt ends inside a token, choose that token anew. Default True."""
    speculate: bool
    """Guess tokens ahead from repeats in the text and check them in one pass. Default False."""


def sampling_params(given: Sampling | Mapping[str, Any]) -> SamplingParams:
    """The parameters of keywords; raises UserError for one that is none, with the nearest."""
    names = [each.name for each in fields(SamplingParams)]
    for name in given:
        if name not in names:
            import difflib  # used for a mistake only

            close = difflib.get_close_matches(name, names, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"use {', '.join(names)}"
            raise UserError(name, "is no sampling parameter", remedy)
    return SamplingParams(**cast("dict[str, Any]", given))
