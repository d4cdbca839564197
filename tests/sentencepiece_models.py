"""Small SentencePiece models, trained by the library itself: the oracle of the tests of such tokenizers."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

FOUND = ["\n", "\n\n", "\t", "<b>", "</b>", "▁▁", "▁▁▁", "[image]"]  # user-defined pieces
KINDS: dict[str, dict[str, Any]] = {
    "gemma": {"model_type": "bpe", "add_dummy_prefix": False, "user_defined_symbols": FOUND},
    "llama": {"model_type": "bpe", "add_dummy_prefix": True},
    "few-characters": {"model_type": "bpe", "add_dummy_prefix": False, "character_coverage": 0.98},
    "unigram": {"model_type": "unigram", "add_dummy_prefix": True},
    "unigram-nfkc": {
        "model_type": "unigram",
        "add_dummy_prefix": True,
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
    },
}


def train(kind: str, texts: Iterable[str], path: Path, vocab_size: int = 800) -> SentencePieceProcessor:
    """Write a `tokenizer.model`, and open it."""
    model = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n") if line.strip())
    usual = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        vocab_size=vocab_size,
        byte_fallback=True,
        minloglevel=2,
        num_threads=1,
        **{**usual, **KINDS[kind]},
    )
    path.write_bytes(model.getvalue())
    return SentencePieceProcessor(model_proto=model.getvalue())
