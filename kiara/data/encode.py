"""From documents to the token files of a split: in pieces that an interruption leaves, batch by batch."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kiara.data.documents import Document
from kiara.data.engines import Engine, make_pieces
from kiara.data.part import Part
from kiara.data.pieces import Card, Pieces
from kiara.data.token_ids import TokenIds
from kiara_runtime.system import hash_file
from kiara_runtime.tokens import Tokenizer

BATCH_CHARACTERS = 1 << 21
PIECE_BYTES = 1 << 24  # of text
SHARD_TOKENS = 1 << 27  # of a token file, but for its last piece


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """Type of a token in its file."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


class Encoder:
    """Makes the token files of pieces of a split: runs of its documents, about PIECE_BYTES each.

    In each piece, tokens that end the document before and begin the next are in front of every document.
    """

    def __init__(self, pieces: Pieces, part: Part, tokenizer: Path, token_ids: TokenIds, threads: int) -> None:
        """tokenizer: its folder. threads: that encode a piece."""
        self.pieces, self.part, self.folder, self.token_ids, self.threads = pieces, part, tokenizer, token_ids, threads
        ends = np.cumsum(part.bytes)
        piece_of = (ends - part.bytes) // PIECE_BYTES
        self.bounds = [0, *(np.flatnonzero(np.diff(piece_of)) + 1).tolist(), len(ends)]
        self._stream: Iterator[Document] | None = None
        self._at = -1  # the document that it yields next

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def size(self, number: int) -> int:
        begin, end = self.bounds[number : number + 2]
        return int(self.part.bytes[begin:end].sum())

    def __call__(self, number: int, advance: Callable[[int], None]) -> None:
        begin, end = self.bounds[number : number + 2]
        if self._stream is None or self._at != begin:
            self._stream = self.part.stream(begin)
        documents = self.part.chosen(self._stream, begin, end)
        self.pieces.write(number, lambda path: self._fill(path, documents, advance))
        self._at = end

    def _fill(self, path: Path, documents: Iterable[Document], advance: Callable[[int], None]) -> Card:
        kind = token_type(self._tokenizer)
        between = np.array(self._between, kind)
        count = tokens = text_bytes = 0
        whole = not self._tokenizer.is_local
        with path.open("wb") as file:
            for batch in _batches(map(_joined, documents) if whole else documents):
                encoded = self._tokenizer.encode_batch([part for _, part in batch], threads=self.threads)
                rows: list[np.ndarray] = []
                for (begins, _), ids in zip(batch, encoded, strict=True):
                    rows += [between, np.array(ids, kind)] if begins else [np.array(ids, kind)]
                    count += begins
                    tokens += sum(map(len, rows[-2:])) if begins else len(ids)
                np.concatenate(rows).tofile(file)
                read = sum(len(part.encode()) for _, part in batch)
                text_bytes += read
                advance(read)
        return {"documents": count, "bytes": text_bytes, "tokens": tokens}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    @cached_property
    def _between(self) -> list[int]:
        return [*ending(self._tokenizer, self.token_ids), self._tokenizer.first_token(self.token_ids.bos)]


def ending(tokenizer: Tokenizer, token_ids: TokenIds) -> list[int]:
    """What ends a document before the next; nothing if the token that begins the next one ends texts, too."""
    return [] if tokenizer.first_token(token_ids.bos) in token_ids.eos else [min(token_ids.eos)]


def encode(
    tokenizer: Path, token_ids: TokenIds, part: Part, work: Path, out: Path, split: str, engine: Engine,
    advance: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    """Write the split's token files to `out`; returns its entry in the manifest.

    tokenizer: its folder. work: holds the pieces; those that are whole are not made again. advance: receives bytes as
    they are encoded.
    """
    pieces = Pieces(work, split)
    encoder = Encoder(pieces, part, tokenizer, token_ids, 1 if engine == "ray" else os.cpu_count() or 1)
    make_pieces(engine, encoder, pieces.missing(len(encoder), encoder.size, advance), advance)
    loaded = Tokenizer.load(tokenizer)
    return _joined_pieces(pieces, len(encoder), out, split, len(ending(loaded, token_ids)), token_type(loaded))


def _joined_pieces(
    pieces: Pieces, count: int, out: Path, split: str, skipped: int, kind: np.dtype[Any]
) -> dict[str, Any]:
    """Join pieces to token files; returns their entry in the manifest. skipped: tokens at the start of the first."""
    shards: list[dict[str, Any]] = []
    totals = Counter[str]()
    for number in range(count):
        card = pieces.card(number)
        if not shards or shards[-1]["tokens"] >= SHARD_TOKENS:
            shards.append({"file": f"{split}-{len(shards):05}.bin", "tokens": 0})
        with pieces.data(number).open("rb") as source, (out / shards[-1]["file"]).open("ab") as file:
            source.seek(skipped * kind.itemsize)
            shutil.copyfileobj(source, file)
        shards[-1]["tokens"] += card["tokens"] - skipped
        totals.update({name: card[name] for name in ("documents", "bytes", "tokens")})
        totals["tokens"] -= skipped
        skipped = 0
    for shard in shards:
        shard["sha256"] = hash_file(out / shard["file"])
    ratio = round(totals["bytes"] / totals["tokens"], 4) if totals["tokens"] else None
    return {**totals, "bytes_per_token": ratio, "shards": shards}


def _joined(document: Document) -> Document:
    """The document in one part."""
    return replace(document, parts=iter([document.read()]))


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
