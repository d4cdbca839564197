"""Measures how well a bundle predicts a text: the figures of `kiara evaluate`, without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kiara_runtime.bundle import Bundle
from kiara_runtime.engine import CHUNK, Session, check_int8_cache
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import load_tokenizer
from kiara_runtime.verify.scoring import Metrics, Scorer, window_length, windows

MAX_TEXT_BYTES = 1 << 30


def read_text(path: Path) -> str:
    """Read a file as text, without byte order marks; raises UserError if it is empty, not text or too long."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise UserError(path, f"larger than {MAX_TEXT_BYTES >> 20} MiB", "evaluate a part of it")
    try:
        text = path.read_bytes().decode().replace("\ufeff", "")
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 at byte {error.start}", "convert it (iconv)") from None
    if "\0" in text:
        raise UserError(path, "it contains NUL: binary data or UTF-16", "convert it (iconv -f UTF-16LE -t UTF-8)")
    if not text.strip():
        raise UserError(path, "no text at all", "give a file with text")
    return text


def evaluate(
    bundle: Bundle,
    text: str,
    variant: str | None = None,
    threads: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    int8_cache: bool = False,
) -> Metrics:
    """Score a text with a variant of the bundle. advance: called with the tokens done and their total."""
    bundle.check(bundle.files_of(variant))
    if int8_cache:
        check_int8_cache()
    tokenizer = load_tokenizer(bundle)
    session = Session(bundle.graph_of(variant, int8_cache), bundle.architecture, threads)
    ids = np.array([tokenizer.first_token(bundle.bos_token_id), *tokenizer.encode(text)], dtype=np.int64)
    if len(ids) == 1:
        raise UserError("text", "the tokenizer has no token for any of it", "give another text")
    scorer = Scorer(tokenizer)
    for window in windows(ids, window_length(bundle.architecture.context_length)):
        decoder = session.decoder()
        for i in range(0, len(window) - 1, CHUNK):
            targets = window[i + 1 : i + 1 + CHUNK]
            scorer.add(decoder.append(window[i : i + len(targets)]), targets)
        advance(scorer.tokens, len(ids) - 1)
    metrics = scorer.metrics(len(text.encode()))
    if not math.isfinite(metrics.loss):
        problem = f"its loss on this text is {metrics.loss}"
        raise UserError(bundle.folder, problem, "name another --variant, or export it again")
    return metrics
