"""Text to a prepared folder: read, split by document, learn the tokenizer, encode.

The files are read three times, so that no pass holds more than a batch of documents: to measure them,
to learn the merges, to write the tokens. The folder appears under its name when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from kiara.config import Config
from kiara.console import logger, progress
from kiara.data import MANIFEST, SHARD_TOKENS, Dataset, read_manifest
from kiara.files import claim, new_folder
from kiara.sources import Document, read_documents, resolve_source
from kiara.tokenizer import train_tokenizer
from kiara_runtime.errors import UserError
from kiara_runtime.tokenizer import Tokenizer
from kiara_runtime.tokenizer_json import END_OF_TEXT

LEARN_BYTES = 1 << 28  # merges are learned from this much text at most: more hardly changes them
BATCH_BYTES = 1 << 22

Reader = Callable[[], Iterator[Document]]


def prepare(config: Config, out: Path) -> bool:
    """Write the prepared folder `out`; False where it was up to date and nothing had to be done."""
    files = _files(config)
    fingerprint = _fingerprint(config, files)
    known = read_manifest(out) if out.exists() else None
    if known and known["fingerprint"] == fingerprint:
        return False
    inputs = [file for found in files.values() for file in found]
    claim(out, "prepared folder", inputs)
    if known and known["source"] != config.data.train:
        raise UserError(f"--out {out}: prepared from {known['source']}; name another, or delete it if nothing needs it")
    with new_folder(out, "prepared folder", inputs) as folder:
        manifest = {"fingerprint": fingerprint, "source": config.data.train, **_write(config, files, folder)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return True


def prepare_folder(config: Config, out: Path) -> Dataset:
    """Prepare `out` if it is not up to date, say what is in it, and open it."""
    fresh = prepare(config, out)
    dataset = Dataset.open(out)
    splits = dataset.manifest["splits"]
    train, val = splits["train"], splits["val"]
    logger.info(
        "%s %s: %s documents, %.1f MB, %s tokens (%.2f bytes each) to train on; %s documents, %s tokens held out; "
        "vocabulary %d.",
        "Prepared" if fresh else "Up to date:", out, f"{train['documents']:,}", train["bytes"] / 1e6,
        f"{train['tokens']:,}", train["bytes"] / train["tokens"], f"{val['documents']:,}", f"{val['tokens']:,}",
        dataset.tokenizer.vocab_size,
    )  # fmt: skip
    return dataset


def dataset_of(config: Config) -> Dataset:
    """The data of a configuration: the prepared folder that it names, or one prepared from its source."""
    named = Path(config.data.train)
    if read_manifest(named) is not None:
        if config.data.val:
            raise UserError("data.val: a prepared folder brings its own validation split; leave this null")
        return Dataset.open(named)
    name = re.sub(r"[^A-Za-z0-9]+", "-", config.data.train).strip("-")[-40:] or "text"
    return prepare_folder(config, Path(config.data.prepared_dir, f"{name}-{_fingerprint(config, _files(config))[:8]}"))


def _files(config: Config) -> dict[str, list[Path]]:
    data = config.data
    return {"train": resolve_source(data.train), "val": resolve_source(data.val) if data.val else []}


def _settings(config: Config) -> list[dict[str, Any]]:
    """What shapes a prepared folder besides its files."""
    return [config.data.model_dump(exclude={"prepared_dir"}), config.tokenizer.model_dump()]


def _fingerprint(config: Config, files: dict[str, list[Path]]) -> str:
    """Changes with the files (name, size, time) and with every setting that shapes the folder."""
    stats = {
        split: [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in found]
        for split, found in files.items()
    }
    return hashlib.sha256(json.dumps([stats, _settings(config)], sort_keys=True).encode()).hexdigest()


def _write(config: Config, files: dict[str, list[Path]], folder: Path) -> dict[str, Any]:
    readers, sizes = _split(config, files)
    for split, size in sizes.items():
        if not size:
            source = config.data.val if split == "val" and config.data.val else config.data.train
            raise UserError(
                f"{source}: no text at all, or too little to hold some out, for the {split} split; give more"
            )
    with progress("Learning the tokenizer", min(LEARN_BYTES, sizes["train"])) as advance:
        tokenizer = train_tokenizer(_learn_from(readers["train"](), advance), config.tokenizer.vocab_size)
    tokenizer.save(folder)
    if tokenizer.vocab_size != config.tokenizer.vocab_size:
        logger.warning(
            "The text has pairs enough for %d vocabulary entries only, not %d.",
            tokenizer.vocab_size, config.tokenizer.vocab_size,
        )  # fmt: skip
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with progress("Encoding", sum(sizes.values())) as advance:
        splits = {
            split: _encode(tokenizer, _advancing(reader(), advance), folder, split, dtype)
            for split, reader in readers.items()
        }
    return {"vocab_size": tokenizer.vocab_size, "dtype": dtype.str, "splits": splits}


def _split(config: Config, files: dict[str, list[Path]]) -> tuple[dict[str, Reader], dict[str, int]]:
    """A reader of each split's documents, and its bytes."""
    data = config.data

    def read(split: str) -> Reader:
        return lambda: read_documents(files[split], data.text_field)

    if data.val:
        return {split: read(split) for split in files}, {split: sum(_sizes(read(split))) for split in files}
    sizes = np.array(_sizes(read("train")), dtype=np.int64)
    if len(sizes) == 1:
        return _cut(next(read("train")()), data.val_fraction)
    held_out = hold_out(sizes, data.val_fraction, data.split_seed)
    readers: dict[str, Reader] = {
        "train": lambda: compress(read("train")(), ~held_out),
        "val": lambda: compress(read("train")(), held_out),
    }
    return readers, {"train": int(sizes[~held_out].sum()), "val": int(sizes[held_out].sum())}


def hold_out(sizes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose documents at random until they make `fraction` of the bytes: bool, one a document.

    A document that would overshoot to twice the aim is passed over; where all would, the smallest goes.
    """
    chosen, aim, held = np.zeros(len(sizes), dtype=bool), sizes.sum() * fraction, 0
    for i in np.random.default_rng(seed).permutation(len(sizes)):
        if held < aim and held + sizes[i] <= 2 * aim:
            chosen[i] = True
            held += int(sizes[i])
    if len(sizes) and not chosen.any():
        chosen[sizes.argmin()] = True
    return chosen


def _cut(document: Document, fraction: float) -> tuple[dict[str, Reader], dict[str, int]]:
    """A single document is cut at the line nearest to where the held-out part begins."""
    aim = int(len(document.text) * (1 - fraction))
    at = document.text.rfind("\n", 0, aim) + 1 or aim
    parts = {"train": document.text[:at], "val": document.text[at:]}
    readers: dict[str, Reader] = {
        split: (lambda text=text: iter([replace(document, text=text)])) for split, text in parts.items()
    }
    return readers, {split: _bytes(text) for split, text in parts.items()}


def _sizes(reader: Reader) -> list[int]:
    return [_bytes(document.text) for document in reader()]


def _bytes(text: str) -> int:
    return len(text.encode())


def _learn_from(documents: Iterable[Document], advance: Callable[[int], None]) -> Iterator[str]:
    left = LEARN_BYTES
    for document in _advancing(documents, advance):
        yield document.text
        left -= _bytes(document.text)
        if left <= 0:
            return


def _advancing(documents: Iterable[Document], advance: Callable[[int], None]) -> Iterator[Document]:
    for document in documents:
        yield document
        advance(_bytes(document.text))


def _encode(
    tokenizer: Tokenizer, documents: Iterable[Document], folder: Path, split: str, dtype: np.dtype[Any]
) -> dict[str, Any]:
    """Write the split's token files and document index; returns its part of the manifest."""
    shards: list[dict[str, Any]] = []
    starts: list[int] = []
    tokens = text_bytes = 0
    for texts in _batches(documents):
        for ids in tokenizer.encode_batch(texts, threads=os.cpu_count() or 1):
            if not shards or shards[-1]["tokens"] >= SHARD_TOKENS:
                shards.append({"file": f"{split}-{len(shards):05}.bin", "tokens": 0})
            row = np.array([tokenizer.special_tokens[END_OF_TEXT], *ids], dtype)
            with (folder / shards[-1]["file"]).open("ab") as file:
                row.tofile(file)
            starts.append(tokens)
            shards[-1]["tokens"] += len(row)
            tokens += len(row)
        text_bytes += sum(map(_bytes, texts))
    np.save(folder / f"{split}-documents.npy", np.array(starts, dtype=np.int64))
    for shard in shards:
        with (folder / shard["file"]).open("rb") as file:
            shard["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"documents": len(starts), "bytes": text_bytes, "tokens": tokens, "shards": shards}


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    batch: list[str] = []
    held = 0
    for document in documents:
        batch.append(document.text)
        held += len(document.text)
        if held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
