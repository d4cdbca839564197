"""Reads the BPE and Unigram models of SentencePiece (Kudo and Richardson 2018) in Hugging Face's tokenizer.json.

tiktoken runs a SentencePiece BPE exactly. Its merges begin with bytes, those of SentencePiece with characters: so the
first ranks join the bytes of every character that is a token, byte by byte. Bytes of other characters stay apart, or
are joined as far as they begin a known one; `Merges.ids` has the tokens of their bytes for both. The ranks after these
are the file's merges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from kiara_runtime.errors import UserError
from kiara_runtime.tokens.vocabulary import Merges, Prepend, Vocabulary, check_ids

BLANK = "▁"  # stands for a blank in the names of tokens
WHOLE = r"(?s:.+)"  # a text is one piece, whose merges may cross blanks
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
SCHEMES: dict[str, Prepend] = {"never": "never", "first": "first", "always": "always"}


def read_sentencepiece(values: Mapping[str, Any], special: dict[str, int], added: dict[str, int]) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json whose model is BPE without a ByteLevel step, or Unigram."""
    if not any(step["type"] in ("Metaspace", "Replace") for step in _steps(values["decoder"], "decoders")):
        problem = f"it has neither a ByteLevel step nor a decoder that replaces {BLANK!r}"
        raise UserError("tokenizer.json", problem, "take another model")
    model = values["model"]
    unigram = model["type"] == "Unigram"
    names = {piece: i for i, (piece, _) in enumerate(model["vocab"])} if unigram else model["vocab"]
    # Added tokens, too: merges may lead to them, where they are spelled with blanks.
    ordinary = {name: int(i) for name, i in names.items() if name not in special}
    check_ids(ordinary.values(), special.values(), (i for name, i in added.items() if name not in ordinary))
    texts = {i: name.replace(BLANK, " ").encode() for name, i in ordinary.items()}
    bytes_ = [names.get(f"<0x{byte:02X}>") for byte in range(256)]
    texts.update((i, bytes([byte])) for byte, i in enumerate(bytes_) if i is not None)
    prepend, twice = _prepend(values)
    steps = (*_steps(values["normalizer"], "normalizers"), *_steps(values["pre_tokenizer"], "pretokenizers"))
    if unigram and not any(step == _REPLACE or step["type"] == "Metaspace" for step in steps):
        raise UserError("tokenizer.json", f"a Unigram model without blanks as {BLANK!r}", "take another model")
    merges = None
    exact = model.get("byte_fallback") and None not in bytes_ and not model.get("ignore_merges")
    if exact and not unigram and _is_plain(values) and is_literal(values["added_tokens"]):
        ranks, ids = _ranks(ordinary, texts, _pairs(model["merges"]), cast("list[int]", bytes_))
        if not any(0 in text for text in ranks if len(text) > 1):  # `TiktokenEncoder` ends texts with this byte
            merges = Merges(ranks, WHOLE, ids, prepend, twice)
    return Vocabulary(texts, special, added, merges, prepend=prepend)


def _pairs(merges: Iterable[str | list[str]]) -> Iterable[list[str]]:
    return (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)


def _ranks(
    vocab: Mapping[str, int], texts: Mapping[int, bytes], pairs: Iterable[list[str]], byte_ids: list[int]
) -> tuple[dict[bytes, int], list[tuple[int, ...]]]:
    """The rank of every byte string, and the token ids of every rank."""
    characters = {name: texts[i] for name, i in vocab.items() if len(name) == 1}
    found: dict[bytes, tuple[int, ...]] = {bytes([byte]): (i,) for byte, i in enumerate(byte_ids)}
    for text in characters.values():
        for size in range(2, len(text)):
            found[text[:size]] = tuple(byte_ids[byte] for byte in text[:size])
    found.update((text, (vocab[name],)) for name, text in characters.items())
    reachable = set(characters)
    for first, second in pairs:
        whole = first + second
        if whole not in reachable and first in reachable and second in reachable:
            reachable.add(whole)
            i = vocab[whole]
            found[texts[i]] = (i,)
    return {text: rank for rank, text in enumerate(found)}, list(found.values())


def _steps(step: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    return list(step[parts]) if step["type"] == "Sequence" else [step]


def _prepend(values: Mapping[str, Any]) -> tuple[Prepend, bool]:
    """Where a blank is put before a text, and whether also before a blank."""
    for step in _steps(values["normalizer"], "normalizers"):
        if step["type"] == "Prepend":
            return "always", True
    for step in _steps(values["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace":
            usual = "always" if step.get("add_prefix_space", True) else "never"
            return SCHEMES[step.get("prepend_scheme", usual)], False
    return "never", False


def _is_plain(values: Mapping[str, Any]) -> bool:
    """Whether a text is changed in no other way than that blanks are put before and spelled as `BLANK`."""
    before = _steps(values["normalizer"], "normalizers")
    after = _steps(values["pre_tokenizer"], "pretokenizers")
    replaces = _REPLACE in before
    if [step for step in before if step not in (_REPLACE, {"type": "Prepend", "prepend": BLANK})]:
        return False
    for step in after:
        metaspace = step["type"] == "Metaspace" and step["replacement"] == BLANK and step.get("split") is False
        # After the replacement, nothing is left to split at.
        blanks = step["type"] == "Split" and step["pattern"] == {"String": " "} and replaces
        if not metaspace and not blanks:
            return False
        replaces |= metaspace
    return replaces


def is_literal(added: list[Mapping[str, Any]]) -> bool:
    """Whether added tokens are found in a text as they are spelled, with nothing around them."""
    return not any(
        token.get(flag)
        for token in added
        if not token["special"]
        for flag in ("normalized", "lstrip", "rstrip", "single_word")
    )
