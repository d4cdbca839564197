"""Check a tokenizer's files for settings, besides tokens and merges, that the runtime does not support.

`kiara.importing.tokenizers` tests whether the token ids equal those of the `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kiara.families import BPE, BPE_FIXED, SENTENCEPIECE, SPECIAL_TOKENS, TOKENIZER, check_keys
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import BLANK

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_UNSUPPORTED = "single_word"  # the runtime replaces a special token by its id, whatever is beside it
# What SentencePiece's tokenizers do to get from tokens to text; the runtime does the same.
_SENTENCEPIECE_STEPS = (
    {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    {"type": "Metaspace", "replacement": BLANK},
)
_ADDED_KEYS = frozenset(("id", "content", "__type", *_FLAGS))


def check_definition(definition: Mapping[str, Any]) -> None:
    """Refuse a tokenizer.json with unsupported keys or values that could change the ids or the text of tokens."""
    check_keys("tokenizer.json", definition, TOKENIZER, {})
    model, decoder = definition.get("model"), definition.get("decoder")
    kind = decoder.get("type") if isinstance(decoder, dict) else decoder
    given = model if isinstance(model, dict) else {}
    if kind == "ByteLevel":
        check_keys("tokenizer.json: model", given, BPE, BPE_FIXED)
    elif (steps := _decoders(decoder)) and all(step in _SENTENCEPIECE_STEPS for step in steps):
        fixed = {key: values for key, values in BPE_FIXED.items() if key != "byte_fallback"}
        check_keys("tokenizer.json: model", given, SENTENCEPIECE.get(str(given.get("type")), BPE), fixed)
    else:
        known = "ByteLevel and SentencePiece's are"
        raise UserError("tokenizer.json", f"decoder {kind!r:.40} is not supported", f"only {known}")
    for i, token in enumerate(_listed(definition)):
        check_keys(f"tokenizer.json: added_tokens[{i}]", token, _ADDED_KEYS, {})
        if token.get("special") and token.get(_UNSUPPORTED):
            problem = f"{_UNSUPPORTED} of the special token {token.get('content')!r:.40} is not supported"
            raise UserError(f"tokenizer.json: added_tokens[{i}]", problem, "only false is")


def _decoders(decoder: Any) -> list[Any]:
    """The steps of a decoder, each with the keys that matter."""
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return list(decoder.get("decoders", ()))
    return [{key: decoder.get(key) for key in ("type", "replacement")}]


def check_added_tokens(
    definition: Mapping[str, Any], config: Mapping[str, Any], named: Mapping[str, Any], added: Mapping[str, Any]
) -> None:
    """Refuse added tokens on which the other files differ from tokenizer.json; `transformers` follows those files.

    config, named, added: tokenizer_config.json, special_tokens_map.json and added_tokens.json.
    """
    listed = {token["content"]: token for token in _listed(definition) if isinstance(token.get("content"), str)}
    model = definition.get("model")
    vocab = model.get("vocab", {}) if isinstance(model, dict) else {}
    ids = {**(vocab if isinstance(vocab, dict) else {}), **{name: token.get("id") for name, token in listed.items()}}
    for name, i in added.items():
        if ids.get(name) != i:
            raise UserError(
                "added_tokens.json",
                f"has id {i!r}, but {ids.get(name)} in tokenizer.json",
                "make them agree",
                value=name,
            )
    described = config.get("added_tokens_decoder") or {}
    for i, token in described.items() if isinstance(described, dict) else ():
        _check_described(i, token, listed)
    for file, values in (("tokenizer_config.json", config), ("special_tokens_map.json", named)):
        for key, name in _names(values):
            if name not in listed:
                raise UserError(
                    file,
                    f"{key} {name!r:.40} is not an added token of tokenizer.json",
                    "add it there, or delete it here",
                )


def _check_described(i: str, token: Any, listed: Mapping[str, Mapping[str, Any]]) -> None:
    where = f"tokenizer_config.json: added_tokens_decoder[{i}]"
    content = token.get("content") if isinstance(token, dict) else None
    known = listed.get(content) if isinstance(content, str) else None
    if known is None or str(known.get("id")) != str(i):
        raise UserError(where, "is not an added token of tokenizer.json with this id", "make them agree", value=content)
    for flag in _FLAGS:
        if flag in token and bool(token[flag]) != bool(known.get(flag)):
            raise UserError(
                where, f"{flag} is {token[flag]}, but {known.get(flag)} in tokenizer.json", "make them agree"
            )


def _names(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All special tokens that a file names, each with its key."""
    for key in SPECIAL_TOKENS:
        yield from ((key, name) for name in _contents(values.get(key)))
    for key in ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"):
        given = values.get(key) or ()
        for value in given.values() if isinstance(given, dict) else given if isinstance(given, list) else ():
            yield from ((key, name) for name in _contents(value))


def _contents(value: Any) -> Iterator[str]:
    """The text of a token, given as a string or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if isinstance(text, str):
        yield text


def _listed(definition: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = definition.get("added_tokens")
    return [token for token in found if isinstance(token, dict)] if isinstance(found, list) else []
