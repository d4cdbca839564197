"""Reads Hugging Face's tokenizer.json, and writes byte-level BPEs in it; `kiara_runtime.tokens.tokenizer` encodes.

A file is untrusted: content that is not understood raises UserError, or leaves encoding to the `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from kiara_runtime.errors import UserError
from kiara_runtime.tokens.sentencepiece import is_literal, read_sentencepiece
from kiara_runtime.tokens.vocabulary import Merges, Vocabulary, check_ids

# The split pattern of Llama 3. It has no possessive quantifiers, which onnxruntime-genai refuses.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GPT-2's (Radford et al. 2019), ByteLevel's default; and the same after a step that splits digits.
_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+"
GPT2_PATTERN = rf"{_CONTRACTIONS}| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
DIGITS_PATTERN = rf"{_CONTRACTIONS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?=\p{{N}})|\s+(?!\S)|\s+"
END_OF_TEXT = "<|endoftext|>"


def read_vocabulary(values: Mapping[str, Any]) -> Vocabulary:
    """Interpret a parsed tokenizer.json; raises UserError if it is neither a byte-level BPE nor SentencePiece's."""
    try:
        entries = values["added_tokens"]
        if not all(entry["content"] for entry in entries):
            raise UserError("tokenizer.json", "an added token has no text", "fetch it again")
        before, after = (
            frozenset(str(entry["content"]) for entry in entries if entry["special"] and entry.get(flag))
            for flag in ("lstrip", "rstrip")
        )
        return replace(_read(values), strips_before=before, strips_after=after)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            "tokenizer.json", f"not a BPE or Unigram model that this runtime reads ({error!r})", "take another model"
        ) from None


def make_definition(tokens: Sequence[bytes], special_tokens: Mapping[str, int]) -> dict[str, Any]:
    """The tokenizer.json of tokens in merge order, split by SPLIT_PATTERN."""
    characters = byte_characters()
    spelled = ["".join(characters[byte] for byte in token) for token in tokens]
    return bpe_definition(
        vocab={name: i for i, name in enumerate(spelled)},
        merges=list(_merges(spelled)),
        added=[added_token(name, i) for name, i in special_tokens.items()],
        steps=[split_step(SPLIT_PATTERN), byte_level_step(use_regex=False)],
        ignore_merges=True,  # as in tiktoken: a piece that is a token as a whole is that token
    )


def bpe_definition(
    vocab: Mapping[str, int],
    merges: list[list[str]],
    added: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    ignore_merges: bool,
) -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE; steps: the pre-tokenizers, in order."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": byte_level_step(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }


def split_step(pattern: str) -> dict[str, Any]:
    """Split at the matches of a regular expression; each match is a piece."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level_step(use_regex: bool) -> dict[str, Any]:
    """Spell bytes as printable characters; use_regex: split by GPT2_PATTERN first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def added_token(name: str, token_id: int) -> dict[str, Any]:
    """A special token as tokenizer.json lists it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": name, **flags}


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in tokenizer.json (Radford et al. 2019)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _merges(spelled: list[str]) -> Iterator[list[str]]:
    """Every pair that joins into a token, in order of the token's rank: tiktoken merges by the result alone."""
    known = set(spelled)
    for token in spelled:
        for cut in range(1, len(token)):
            if token[:cut] in known and token[cut:] in known:
                yield [token[:cut], token[cut:]]


def _read(values: Mapping[str, Any]) -> Vocabulary:
    model, entries, step = values["model"], values["added_tokens"], values["pre_tokenizer"]
    special = {str(entry["content"]): int(entry["id"]) for entry in entries if entry["special"]}
    added = {str(entry["content"]): int(entry["id"]) for entry in entries if not entry["special"]}
    if model["type"] not in ("BPE", "Unigram"):
        raise UserError("tokenizer.json", "the model is not supported", "only BPE and Unigram are", value=model["type"])
    if model["type"] == "Unigram" or step is None or all(part["type"] != "ByteLevel" for part in _parts(step)):
        return read_sentencepiece(values, special, added)
    if model.get("byte_fallback") or model.get("unk_token"):
        problem = "it is a byte-level BPE with byte fallback or an unknown token"
        raise UserError("tokenizer.json", problem, "take another model")
    # Maps a character to the one with its byte as code point; those that stand for no byte become invalid in Latin-1.
    to_byte = str.maketrans({chr(i): "\uffff" for i in range(512)})
    to_byte.update(str.maketrans({character: chr(byte) for byte, character in enumerate(byte_characters())}))
    vocab = cast("dict[str, int]", model["vocab"])
    ordinary = {name: int(i) for name, i in vocab.items() if name not in special and name not in added}
    check_ids(ordinary.values(), special.values(), added.values())
    ranks = {name.translate(to_byte).encode("latin-1"): i for name, i in ordinary.items()}
    missing = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)
    pattern = _pattern(values)
    merges = None if pattern is None or not is_literal(entries) else Merges(ranks, pattern)
    return Vocabulary({i: text for text, i in ranks.items()}, special, added, merges, missing)


def _parts(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(step["pretokenizers"]) if step["type"] == "Sequence" else [cast("dict[str, Any]", step)]


def _pattern(values: Mapping[str, Any]) -> str | None:
    """The split as one expression for tiktoken, if nothing else changes the text."""
    if values.get("normalizer") is not None:
        return None
    *before, byte_level = _parts(values["pre_tokenizer"])
    if byte_level["type"] != "ByteLevel" or byte_level["add_prefix_space"]:
        return None
    if byte_level.get("use_regex", True):
        if not before:
            return GPT2_PATTERN
        digits = len(before) == 1 and before[0]["type"] == "Digits" and before[0]["individual_digits"]
        return DIGITS_PATTERN if digits else None
    if len(before) != 1 or before[0]["type"] != "Split":
        return None
    split = before[0]
    plain = split["behavior"] == "Isolated" and not split["invert"] and "Regex" in split["pattern"]
    return str(split["pattern"]["Regex"]) if plain else None
