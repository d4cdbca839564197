"""Checks a bundle's tokenizer against the ids that the exporter recorded for a few difficult texts."""

from __future__ import annotations

from typing import Any

from kiara_runtime.bundle import Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import Tokenizer

GOLDEN_TEXTS = (
    "def main(argv=None):\n    return 0\n",
    "The quick brown fox, 12345 times; don't ask why…",
    "  \t\n\r\n mixed   space \u00a0\u2003",
    "naïve café — Ωμέγα, 東京, 한국어, नमस्ते, 👩🏽\u200d🚀🇨🇭 \u0000\ufffd",
    "",
)


def golden_ids(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The texts with their ids, for the manifest."""
    return [{"text": text, "ids": tokenizer.encode(text)} for text in GOLDEN_TEXTS]


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a bundle; raises UserError if its ids differ from those in the manifest."""
    tokenizer = Tokenizer.load(bundle.folder)
    if tokenizer.vocab_size > bundle.architecture.vocab_size:
        raise UserError(
            bundle.folder, "tokenizer.json has more tokens than the graph has logits", "export the bundle again"
        )
    for golden in bundle.manifest["tokenizer"]["golden"]:
        if tokenizer.encode(golden["text"]) != golden["ids"]:
            raise UserError(
                bundle.folder,
                f"tokenizer.json does not give the recorded ids for {golden['text']!r}",
                "export the bundle again",
            )
    return tokenizer
