"""Hugging Face model families: one file describes each, and `registry` reads and writes checkpoints by them.

A new family is a file here, and at most new fields in `kiara.config.model`.
"""

from kiara.families.gguf import ROPE_TENSORS, gguf_config, gguf_family, gguf_keys
from kiara.families.known_keys import (
    BPE,
    BPE_FIXED,
    GENERATION,
    GENERATION_FIXED,
    GGUF,
    GGUF_ARCHITECTURE_FIXED,
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
from kiara.families.layout import expected_tensors, model_shapes, stored_alike, tensor_names, to_ours, to_theirs
from kiara.families.registry import Family, family_of, read_config, write_config

__all__ = [
    "BPE",
    "BPE_FIXED",
    "GENERATION",
    "GENERATION_FIXED",
    "GGUF",
    "GGUF_ARCHITECTURE_FIXED",
    "GGUF_FIXED",
    "GGUF_PREFIXES",
    "RECOMMENDED",
    "ROPE_TENSORS",
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
    "gguf_config",
    "gguf_family",
    "gguf_keys",
    "model_shapes",
    "read_config",
    "stored_alike",
    "tensor_names",
    "to_ours",
    "to_theirs",
    "write_config",
]
