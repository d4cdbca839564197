"""The tokenizer of a GGUF file: its tokens, with merges of a byte-level BPE or scores of a SentencePiece model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kiara.importing.sentencepiece import Kind, Pieces
from kiara.importing.tokenizers import begin_with
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import (
    SPLIT_PATTERN,
    added_token,
    bpe_definition,
    byte_level_step,
    split_step,
)

# End-of-generation tokens that llama.cpp recognises by name, as far as models of these families have them.
_END_NAMES = frozenset(
    "<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|endoftext|> <|end_of_text|> <EOT> </s> <end_of_turn> "
    "[|endofturn|]".split()
)
_QWEN2_PATTERN = SPLIT_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# Of GPT-4o: words split where lower case is followed by upper case.
_GPT4O_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_CONTRACTION}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BY_BYTES = byte_level_step(use_regex=False)
_GPT2 = [byte_level_step(use_regex=True)]
_DIGITS = [{"type": "Digits", "individual_digits": True}, byte_level_step(use_regex=True)]
_FALCON = [
    {"type": "Punctuation", "behavior": "Contiguous"},
    byte_level_step(use_regex=True),
    {"type": "Digits", "individual_digits": False},
    split_step("[0-9][0-9][0-9]"),
]
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_NFC = ("qwen2", "deepseek-r1-qwen")  # their tokenizers compose characters; llama.cpp does not
# The steps of tokenizer.json that split a text as the models' own tokenizers do, by `tokenizer.ggml.pre`.
_STEPS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("gpt-2", "default", "phi-2", "olmo", "mpt", "exaone4", "granite-docling"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "exaone"), _DIGITS),
    **{pre: [split_step(SPLIT_PATTERN), _BY_BYTES] for pre in (*_LLAMA3, "dbrx", "smaug-bpe")},
    **{pre: [split_step(_QWEN2_PATTERN), _BY_BYTES] for pre in (*_NFC, "stablelm2")},
    "gpt-4o": [split_step(_GPT4O_PATTERN), _BY_BYTES],
    "falcon": _FALCON,
}
_NAMES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def gguf_tokenizer(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json."""
    tokens = metadata["tokenizer.ggml.tokens"]
    kind = metadata["tokenizer.ggml.model"]
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise UserError("tokenizer.ggml.model", "is not supported", f"only {' and '.join(makers)} are", value=kind)
    definition, begins = makers[kind](metadata)
    named = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMES.items()}
    config: dict[str, Any] = {name: tokens[i] for name, i in named.items() if i is not None}
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    if metadata.get("tokenizer.ggml.add_bos_token", begins):
        bos = int(metadata["tokenizer.ggml.bos_token_id"])
        definition["post_processor"] = begin_with(tokens[bos], bos)
    return definition, config


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """Tokens that end a text in llama.cpp (`llama_vocab::impl::load`): from the keys, and control tokens by name."""
    named = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
    keyed = [int(i) for i in named if i is not None]
    if not keyed:
        raise UserError("tokenizer.ggml.eos_token_id", "the key is missing", "convert the model again")
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    by_name = [i for i, name in enumerate(tokens) if kinds[i] == Kind.CONTROL and name in _END_NAMES]
    return sorted({*keyed, *by_name})


def _sentencepiece(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """tokenizer.json, and whether a text begins with BOS if the file does not say."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    scores = metadata["tokenizer.ggml.scores"]
    if not len(tokens) == len(scores) == len(kinds):
        raise UserError("tokenizer.ggml.scores", "there is not one for each token", "convert the model again")
    prepend = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    return Pieces(tokens, scores, kinds, prepend=prepend).definition(), True


def _byte_level(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    if metadata.get("tokenizer.ggml.add_space_prefix"):
        raise UserError("tokenizer.ggml.add_space_prefix", "is not supported with byte-level BPE", "only false is")
    pre = str(metadata["tokenizer.ggml.pre"])
    if pre not in _STEPS:
        raise UserError("tokenizer.ggml.pre", "is not supported", f"use one of {', '.join(_STEPS)}", value=pre)
    added = [
        {**added_token(name, i), "special": kinds[i] == Kind.CONTROL}
        for i, name in enumerate(tokens)
        if kinds[i] in (Kind.CONTROL, Kind.USER_DEFINED)
    ]
    definition = bpe_definition(
        vocab={name: i for i, name in enumerate(tokens) if kinds[i] != Kind.UNUSED},
        merges=[merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        added=added,
        steps=_STEPS[pre],
        ignore_merges=pre in _LLAMA3,
    )
    if pre in _NFC:
        definition["normalizer"] = {"type": "NFC"}
    return definition, pre in _LLAMA3
