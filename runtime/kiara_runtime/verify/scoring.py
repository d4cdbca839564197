"""How well a bundle predicts a text on this machine: the figures of `kiara evaluate`, without PyTorch.

The text is read in order, in windows that do not overlap; the last one may be shorter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.engine.session import CHUNK, Session
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.golden import load_tokenizer
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

MAX_WINDOW = 1024
MAX_TEXT_BYTES = 1 << 30


@dataclass(frozen=True)
class Metrics:
    """loss: mean nats a token. accuracy: part of the tokens that were the likeliest. tokens: how many."""

    loss: float
    perplexity: float
    accuracy: float
    bits_per_byte: float
    tokens: int

    def named(self, prefix: str) -> dict[str, float]:
        return {f"{prefix}{name}": value for name, value in asdict(self).items()}


def read_text(path: Path) -> str:
    """The file as text, byte order marks left out; raises UserError where it is empty, no text or too long."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise UserError(path, f"larger than {MAX_TEXT_BYTES >> 20} MiB", "evaluate a part of it")
    try:
        text = path.read_bytes().decode().replace("\ufeff", "")
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 at byte {error.start}", "convert it (iconv)") from None
    if "\0" in text:
        raise UserError(path, "it holds a NUL, so binary data or UTF-16", "convert it (iconv -f UTF-16LE -t UTF-8)")
    if not text.strip():
        raise UserError(path, "no text at all", "give a file with some")
    return text


def first_token(tokenizer: Tokenizer, bos: int) -> int:
    """What stands before a text that is judged: the end of the one before, where the model knows it by END_OF_TEXT."""
    return tokenizer.special_tokens.get(END_OF_TEXT, bos)


def evaluate(
    bundle: Bundle,
    text: str,
    variant: str | None = None,
    threads: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Metrics:
    """advance: told how many tokens of how many are done."""
    bundle.check(bundle.files_of(variant))
    tokenizer = load_tokenizer(bundle)
    session = Session(bundle.graph_of(variant), bundle.architecture, threads)
    ids = np.array([first_token(tokenizer, bundle.bos_token_id), *tokenizer.encode(text)], dtype=np.int64)
    if len(ids) == 1:
        raise UserError("text", "the model has no token for any of it", "give another one")
    window = min(bundle.architecture.context_length, MAX_WINDOW)
    nats, right = 0.0, 0
    for start in range(0, len(ids) - 1, window):
        decoder, part = session.decoder(), ids[start : start + window + 1]
        for i in range(0, len(part) - 1, CHUNK):
            targets = part[i + 1 : i + 1 + CHUNK]
            more = _judge(decoder.append(part[i : i + len(targets)]), targets)
            nats, right = nats + more[0], right + more[1]
        advance(min(start + window, len(ids) - 1), len(ids) - 1)
    if not math.isfinite(nats):
        raise UserError(bundle.folder, f"its loss on this text is {nats}", "name another --variant, or export it again")
    tokens = len(ids) - 1
    return Metrics(
        loss=nats / tokens,
        perplexity=math.exp(min(nats / tokens, 700.0)),
        accuracy=right / tokens,
        bits_per_byte=nats / math.log(2) / len(text.encode()),
        tokens=tokens,
    )


def _judge(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> tuple[float, int]:
    """The negative log-likelihood of targets (S,) under logits (S, V), nats, and how many were the likeliest."""
    ahead = logits - logits.max(-1, keepdims=True)
    rows = np.arange(len(targets))
    nats = np.log(np.exp(ahead).sum(-1, dtype=np.float64)) - ahead[rows, targets]
    return float(nats.sum()), int((logits.argmax(-1) == targets).sum())
