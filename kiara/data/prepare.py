"""Make a prepared folder from text: read, split by document, learn the tokenizer, encode.

The files are read three times, so that no pass holds more than a batch of text: to measure them, to learn the merges,
and to write the tokens. The folder appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kiara.config import Config, is_default
from kiara.console import logger, progress
from kiara.data.dataset import MANIFEST, SHARD_TOKENS, Dataset, read_manifest
from kiara.data.documents import Document, is_json_lines, read_documents
from kiara.data.sources import resolve_source
from kiara.data.split import TOLERANCE, divide, held_out, measure, trained
from kiara.data.tokenizer_training import LEARN_BYTES, train_tokenizer
from kiara.files import claim, new_folder
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import END_OF_TEXT, Tokenizer

RECIPE = 2  # raised when the same files and settings give a different folder, so that it is prepared again
BATCH_CHARACTERS = 1 << 21

Files = dict[str, list[Path]]
Reader = Callable[[], Iterator[Document]]


def prepare(config: Config, out: Path, files: Files | None = None) -> bool:
    """Write the prepared folder `out`; returns False if it was up to date already.

    files: of the source, if known already.
    """
    files = files or _files(config)
    fingerprint = _fingerprint(config, files)
    known = read_manifest(out) if out.exists() else None
    if known and known["fingerprint"] == fingerprint:
        return False
    inputs = [file for found in files.values() for file in found]
    claim(out, "prepared folder", inputs)
    if known and known["source"] != config.data.train:
        raise UserError(
            f"--out {out}", f"was prepared from {known['source']}", "choose another, or delete it if unused"
        )
    with new_folder(out, "prepared folder", inputs) as folder:
        written = _write(config, files, folder)
        if _fingerprint(config, files) != fingerprint:
            raise UserError(config.data.train, "a file changed while it was read", "run the same command again")
        manifest = {
            "fingerprint": fingerprint, "source": config.data.train, "settings": shaping_settings(config), **written
        }  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return True


def prepare_folder(config: Config, out: Path, files: Files | None = None) -> Dataset:
    """Prepare `out` if it is not up to date, log its contents, and open it."""
    fresh = prepare(config, out, files)
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
    """The data of a configuration: the prepared folder that it names, or one prepared from the source that it names."""
    named = Path(config.data.train)
    if read_manifest(named) is not None:
        as_prepared(config)
        return Dataset.open(named)
    files = _files(config)
    name = re.sub(r"[^A-Za-z0-9]+", "-", config.data.train).strip("-")[-40:] or "text"
    out = Path(config.data.prepared_dir, f"{name}-{_fingerprint(config, files)[:8]}")
    return prepare_folder(config, out, files)


def as_prepared(config: Config) -> Config:
    """The configuration, with the settings of the prepared folder that data.train names, if it names one.

    Raises UserError if a given setting differs from the folder's, because it would have no effect.
    """
    manifest = read_manifest(Path(config.data.train))
    if manifest is None:
        return config
    if config.data.val and config.data.val != manifest.get("settings", {}).get("data.val"):
        raise UserError("data.val", "the prepared folder has its own validation split", "set this to null")
    settings = {"tokenizer.vocab_size": manifest["vocab_size"], **manifest.get("settings", {})}
    for path, there in settings.items():
        section, _, name = path.partition(".")
        part = getattr(config, section)
        given = getattr(part, name)
        made = manifest["vocab_size"] if name == "vocab_size" else there
        if name in part.model_fields_set and given not in (there, made):
            raise UserError(
                path,
                f"is {given!r}, but {config.data.train} was prepared with {there!r}",
                "remove it, or prepare the text again with it",
            )
        config = config.model_copy(update={section: part.model_copy(update={name: there})})
    return config


def shaping_settings(config: Config) -> dict[str, Any]:
    """The settings that a prepared folder depends on, by dotted path."""
    data = config.data.model_dump(exclude={"prepared_dir", "train"})
    return {f"data.{name}": value for name, value in data.items()} | {
        f"tokenizer.{name}": value for name, value in config.tokenizer.model_dump().items()
    }


def _files(config: Config) -> Files:
    data = config.data
    files = {"train": resolve_source(data.train), "val": _val_files(data.val) if data.val else []}
    for name in ("val_fraction", "split_seed"):
        if data.val and not is_default(data, name):
            raise UserError(
                f"data.{name}", f"{getattr(data, name)} has no effect together with data.val", "set only one"
            )
    if not is_default(data, "text_field") and not any(map(is_json_lines, [*files["train"], *files["val"]])):
        raise UserError(
            "data.text_field", "has no effect, because no file is .jsonl", "remove it", value=data.text_field
        )
    return files


def _val_files(source: str) -> list[Path]:
    try:
        return resolve_source(source)
    except UserError as error:
        raise error.inside("data.val") from None


def _fingerprint(config: Config, files: Files) -> str:
    """A hash that changes with the files (name, size, time) and with every setting that the folder depends on."""
    stats = {
        split: [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in found]
        for split, found in files.items()
    }
    shape = [RECIPE, stats, config.data.train, shaping_settings(config)]
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def _write(config: Config, files: Files, folder: Path) -> dict[str, Any]:
    readers, sizes = _split(config, files)
    for split, size in sizes.items():
        if not size:
            source = config.data.val if split == "val" and config.data.val else config.data.train
            raise UserError(
                source, f"has no text, or too little to hold some out, for the {split} split", "give more text"
            )
    tokenizer = _tokenizer(config, readers["train"](), sizes["train"])
    tokenizer.save(folder)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with progress("Encoding", sum(sizes.values())) as advance:
        splits = {
            split: _encode(tokenizer, reader(), folder, split, dtype, advance) for split, reader in readers.items()
        }
    return {"vocab_size": tokenizer.vocab_size, "dtype": dtype.str, "splits": splits}


def _tokenizer(config: Config, documents: Iterable[Document], size: int) -> Tokenizer:
    wanted = config.tokenizer.vocab_size
    with progress("Learning the tokenizer", min(LEARN_BYTES, size)) as advance:

        def texts() -> Iterator[str]:
            for part in (part for document in documents for part in document.parts):
                yield part
                advance(_bytes(part))

        def waiting(seconds: float) -> None:
            advance(0, f"merging pairs, {seconds:.0f} s")

        tokenizer = train_tokenizer(texts(), wanted, waiting)
    if tokenizer.vocab_size != wanted:
        logger.warning(
            "The text has enough pairs for only %d vocabulary entries, not %d.", tokenizer.vocab_size, wanted
        )
    return tokenizer


def _split(config: Config, files: Files) -> tuple[dict[str, Reader], dict[str, int]]:
    """For each split, a reader of its documents and its size in bytes."""
    data = config.data

    def read(split: str) -> Iterator[Document]:
        return read_documents(files[split], data.text_field)

    sizes, hashes = measure(read("train"))
    if data.val:
        val_sizes, val_hashes = measure(read("val"))
        _warn_of_shared(hashes[sizes > 0], val_hashes[val_sizes > 0])
        readers: dict[str, Reader] = {
            "train": lambda: trained(read("train"), sizes, sizes),
            "val": lambda: held_out(read("val"), val_sizes, np.zeros_like(val_sizes)),
        }
        return readers, {"train": int(sizes.sum()), "val": int(val_sizes.sum())}
    heads = divide(
        sizes, hashes, data.val_fraction, data.split_seed, lambda index: next(islice(read("train"), index, None))
    )
    readers = {
        "train": lambda: trained(read("train"), sizes, heads),
        "val": lambda: held_out(read("train"), sizes, heads),
    }
    train, val = int(heads.sum()), int((sizes - heads).sum())
    if train and val and abs(val / (train + val) / data.val_fraction - 1) > TOLERANCE + 1e-9:
        logger.warning(
            "%.3g %% of the text is held out, not the %.3g %% of data.val_fraction: documents allow no other split.",
            100 * val / (train + val), 100 * data.val_fraction,
        )  # fmt: skip
    return readers, {"train": train, "val": val}


def _warn_of_shared(train: np.ndarray, val: np.ndarray) -> None:
    if shared := int(np.isin(val, train).sum()):
        logger.warning(
            "%s of the %s documents of data.val are also in data.train, so validation partly measures memorisation.",
            f"{shared:,}", f"{len(val):,}",
        )  # fmt: skip


def _bytes(text: str) -> int:
    return len(text.encode())


def _encode(
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    folder: Path,
    split: str,
    dtype: np.dtype[Any],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Write the split's token files; returns its entry in the manifest."""
    shards: list[dict[str, Any]] = []
    documents_read = tokens = text_bytes = 0
    end = np.array([tokenizer.special_tokens[END_OF_TEXT]], dtype)
    for batch in _batches(documents):
        rows: list[np.ndarray] = []
        encoded = tokenizer.encode_batch([part for _, part in batch], threads=os.cpu_count() or 1)
        for (begins, _), ids in zip(batch, encoded, strict=True):
            if begins:
                documents_read += 1
                rows.append(end)
            rows.append(np.array(ids, dtype))
            tokens += len(ids) + begins
        _append(folder, split, shards, np.concatenate(rows))
        read = sum(_bytes(part) for _, part in batch)
        text_bytes += read
        advance(read)
    for shard in shards:
        with (folder / shard["file"]).open("rb") as file:
            shard["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"documents": documents_read, "bytes": text_bytes, "tokens": tokens, "shards": shards}


def _append(folder: Path, split: str, shards: list[dict[str, Any]], tokens: np.ndarray) -> None:
    if not shards or shards[-1]["tokens"] >= SHARD_TOKENS:
        shards.append({"file": f"{split}-{len(shards):05}.bin", "tokens": 0})
    with (folder / shards[-1]["file"]).open("ab") as file:
        tokens.tofile(file)
    shards[-1]["tokens"] += len(tokens)


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
