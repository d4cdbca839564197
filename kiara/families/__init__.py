"""Hugging Face model families: one file describes each, and `registry` reads and writes checkpoints by them.

A new family is a file here, and at most new fields in `kiara.config.model`.
"""

from kiara.families.known_keys import (
    BPE,
    BPE_FIXED,
    GENERATION,
    GENERATION_FIXED,
    GGUF,
    GGUF_FIXED,
    GGUF_PREFIXES,
    RECOMMENDED,
    SENTENCEPIECE,
    SPECIAL_TOKENS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_CONFIG_FIXED,
    check_keys,
)
from kiara.families.layout import expected_tensors, tensor_names, to_ours, to_theirs
from kiara.families.registry import Family, family_of, read_config, write_config

__all__ = [
    "BPE",
    "BPE_FIXED",
    "GENERATION",
    "GENERATION_FIXED",
    "GGUF",
    "GGUF_FIXED",
    "GGUF_PREFIXES",
    "RECOMMENDED",
    "SENTENCEPIECE",
    "SPECIAL_TOKENS",
    "SPECIAL_TOKENS_MAP",
    "TOKENIZER",
    "TOKENIZER_CONFIG",
    "TOKENIZER_CONFIG_FIXED",
    "Family",
    "check_keys",
    "expected_tensors",
    "family_of",
    "read_config",
    "tensor_names",
    "to_ours",
    "to_theirs",
    "write_config",
]
