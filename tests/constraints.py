"""Helpers shared by the grammar tests."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
from families import make_tokenizer

from kiara_runtime.sampling.grammar.constraint import Constraint, constrain
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT, byte_characters

TEXTS = [
    '{"name": "Zoë", "age": 12, "tags": ["a", "b"], "null": null}\n',
    "yes or no, true and false: 東京, naïve café",
] * 9


PADDING = 7  # ids of the model beyond those of the tokenizer


LOST = {0x04, 0x06, *range(0x80, 0x90), 0xF1, 0xF2}  # bytes for which "lossy" has no token


@cache
def _tokenizer(style: str) -> Tokenizer:
    """Run by tiktoken, or by `tokenizers` for "qwen", which has a normaliser, and "lossy", which lacks bytes."""
    if style == "own":
        tokens = [bytes([byte]) for byte in range(256)] + [b'{"', b'":', b" n", b"na", b"am", b"ame", b"name", b"12"]
        return Tokenizer.from_merges(tokens, {END_OF_TEXT: len(tokens), "<|tool|>": len(tokens) + 1})
    definition = json.loads(make_tokenizer("smollm" if style == "lossy" else style, TEXTS).to_str())
    if style == "lossy":
        lost = {byte_characters()[byte] for byte in LOST}
        model = definition["model"]
        model["vocab"] = {name: i for name, i in model["vocab"].items() if not lost & set(name)}
        model["merges"] = [pair for pair in model["merges"] if not lost & set("".join(pair))]
    return Tokenizer(definition, {})


def _size(tokenizer: Tokenizer) -> int:
    return tokenizer.vocab_size + PADDING


def _eos(tokenizer: Tokenizer) -> frozenset[int]:
    """Two end-of-text ids, one of them outside the tokenizer."""
    return frozenset({tokenizer.special_tokens[END_OF_TEXT], _size(tokenizer) - 1})


def _constrain(tokenizer: Tokenizer, **grammar: str) -> Constraint:
    return constrain(tokenizer, _size(tokenizer), _eos(tokenizer), **grammar)


def _write(tokenizer: Tokenizer, constraint: Constraint, seed: int, follow: bool) -> str:
    """The text of a random model under the constraint, taking forced tokens if `follow`; checks every mask."""
    draw, size, eos = np.random.default_rng(seed), _size(tokenizer), sorted(_eos(tokenizer))
    never = [i for i in range(size) if i not in eos and (i >= tokenizer.vocab_size or not tokenizer.token_bytes[i])]
    ids: list[int] = []
    while not constraint.finished:
        assert len(ids) < 5000
        forced = constraint.forced()
        assert not forced or np.flatnonzero(constraint.allowed()).tolist() == forced[:1]
        for token in forced if follow else []:
            constraint.accept(token)
            ids.append(token)
        allowed = constraint.allowed()
        assert allowed.shape == (size,) and allowed.any() and not allowed[never].any()
        assert len(set(allowed[eos])) == 1
        if constraint.finished:
            break
        logits = draw.normal(size=size)
        logits[eos] += 2
        token = int(np.where(allowed, logits, -np.inf).argmax())
        constraint.accept(token)
        if token in eos:
            break
        ids.append(token)
    assert constraint.finished and constraint.forced() == [] and np.flatnonzero(constraint.allowed()).tolist() == eos
    return b"".join(tokenizer.token_bytes[i] for i in ids).decode("utf-8")


def _object(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


SHORT = {"type": "string", "maxLength": 6}


SCHEMAS: list[dict[str, Any]] = [
    _object({"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 150}}),
    _object({"a": {"type": "boolean"}, "b": {"type": "null"}, "c": SHORT}, "a", "c"),
    {"type": "array", "items": {"enum": ["x", 1, None, True, "Zoë", {"k": [1]}]}, "minItems": 2, "maxItems": 4},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
    {"type": "integer", "exclusiveMinimum": -13, "maximum": 7},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]+(-é)?$"},
    {"enum": ["<|im_end|>", "<|endoftext|>", "a\u0004b", '"\\/\n']},
    {"const": {"naïve": [1.5, "東京", False]}},
    {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 5}, _object({"k": {"const": "v"}}), {"type": "null"}]},
    _object(
        {
            "inner": _object({"list": {"type": "array", "items": SHORT, "maxItems": 2}, "deep": _object({"z": SHORT})}),
            "日本": {"$ref": "#/$defs/level"},
        },
        "日本",
        **{"$defs": {"level": {"enum": ["low", "high"]}}},
    ),
]
