"""From documents to the token files of a split, in batches that bound the memory in use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kiara.data.documents import Document
from kiara.data.token_ids import TokenIds
from kiara_runtime.system import hash_file
from kiara_runtime.tokens import Tokenizer

BATCH_CHARACTERS = 1 << 21
SHARD_TOKENS = 1 << 27  # of a token file, but for its last document


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """Type of a token in its file."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def encode(
    tokenizer: Tokenizer,
    token_ids: TokenIds,
    documents: Iterable[Document],
    folder: Path,
    split: str,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Write the split's token files; returns its entry in the manifest. advance: receives bytes as they are encoded."""
    shards: list[dict[str, Any]] = []
    documents_read = tokens = text_bytes = 0
    kind = token_type(tokenizer)
    first = tokenizer.first_token(token_ids.bos)
    end = [] if first in token_ids.eos else [min(token_ids.eos)]
    between = np.array([*end, first], kind)
    # Only tiktoken's split patterns surely end a token wherever a part may end.
    whole = tokenizer.engine != "tiktoken"
    for batch in _batches(map(_joined, documents) if whole else documents):
        rows: list[np.ndarray] = []
        encoded = tokenizer.encode_batch([part for _, part in batch], threads=os.cpu_count() or 1)
        for (begins, _), ids in zip(batch, encoded, strict=True):
            if begins:
                rows.append(between if documents_read else between[-1:])
                documents_read += 1
            rows.append(np.array(ids, kind))
        tokens += _append(folder, split, shards, np.concatenate(rows))
        read = sum(len(part.encode()) for _, part in batch)
        text_bytes += read
        advance(read)
    for shard in shards:
        shard["sha256"] = hash_file(folder / shard["file"])
    ratio = round(text_bytes / tokens, 4) if tokens else None
    counts = {"documents": documents_read, "bytes": text_bytes, "tokens": tokens, "bytes_per_token": ratio}
    return {**counts, "shards": shards}


def _joined(document: Document) -> Document:
    """The document in one part."""
    return replace(document, parts=iter([document.read()]))


def _append(folder: Path, split: str, shards: list[dict[str, Any]], tokens: np.ndarray) -> int:
    """Append to the split's files; returns the number of tokens."""
    if not shards or shards[-1]["tokens"] >= SHARD_TOKENS:
        shards.append({"file": f"{split}-{len(shards):05}.bin", "tokens": 0})
    with (folder / shards[-1]["file"]).open("ab") as file:
        tokens.tofile(file)
    shards[-1]["tokens"] += len(tokens)
    return len(tokens)


def _batches(documents: Iterable[Document]) -> Iterator[list[tuple[bool, str]]]:
    """Batches of document parts, each with whether it begins a document."""
    batch: list[tuple[bool, str]] = []
    held = 0
    for document in documents:
        begins = True
        for part in document.parts:
            batch.append((begins, part))
            begins = False
            held += len(part)
            if held >= BATCH_CHARACTERS:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch
