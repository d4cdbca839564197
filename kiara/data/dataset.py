"""A prepared folder: token shards on disk, opened as splits.

A prepared folder holds `dataset.json`, the tokenizer, and for each split memory-mapped token files
(`train-00000.bin`, little-endian uint16 or uint32), in which an end-of-text token begins each document.
`kiara.data.prepare` writes it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from kiara.data.chat_split import ChatSplit, PairSplit
from kiara.data.sequences import Split
from kiara.data.token_ids import TokenIds
from kiara.files import DATASET_FILE as MANIFEST
from kiara.files import GENERATION_FILE
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Tokenizer


class Dataset:
    """A prepared folder, opened."""

    def __init__(self, folder: Path, manifest: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.folder, self.manifest, self.tokenizer = folder, manifest, tokenizer
        older = not (folder / GENERATION_FILE).is_file()
        self.token_ids = TokenIds.of(tokenizer) if older else TokenIds.read(folder)
        self.train, self.val = (self._open(name) for name in ("train", "val"))

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        manifest = read_manifest(folder)
        if manifest is None:
            raise UserError(
                folder, f"is not a prepared folder ({MANIFEST} is missing)", "make one with `kiara prepare`"
            )
        tokenizer = Tokenizer.load(folder)
        if tokenizer.vocab_size != manifest["vocab_size"]:
            raise UserError(folder, "its tokenizer does not match its token files", "prepare the folder again")
        return cls(folder, manifest, tokenizer)

    @property
    def sha256(self) -> str:
        """Hash over the shards of both splits, in hexadecimal; identifies the data of a run."""
        shards = [shard["sha256"] for split in self.manifest["splits"].values() for shard in split["shards"]]
        return hashlib.sha256(" ".join(shards).encode()).hexdigest()

    def _open(self, name: str) -> Split:
        entry = self.manifest["splits"][name]
        shards = [self._map(shard, self.manifest["dtype"]) for shard in entry["shards"]]
        if "chat" not in entry:
            return Split(name, shards)
        chat = entry["chat"]
        learned = self._map({**chat["learned"], "tokens": entry["tokens"]}, "u1")
        begins = self._map({**chat["begins"], "tokens": entry["conversations"] + 1}, "<i8")
        kind = PairSplit if entry["conversations"] > entry["documents"] else ChatSplit
        return kind(name, shards, None, learned, begins, self.manifest["settings"]["data.overlong"])

    def _map(self, shard: dict[str, Any], kind: str) -> np.ndarray:
        path, dtype = self.folder / Path(shard["file"]).name, np.dtype(kind)
        if not path.is_file() or path.stat().st_size != shard["tokens"] * dtype.itemsize:
            raise UserError(path, f"is missing or does not have {shard['tokens']} tokens", "prepare the folder again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                raise UserError(path, "damaged, its SHA-256 differs from the recorded one", "prepare the folder again")
        return np.memmap(path, dtype, mode="r")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read `dataset.json` of a prepared folder; None if there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text("utf-8"))
        _ = manifest["fingerprint"], manifest["source"], manifest["vocab_size"], np.dtype(manifest["dtype"])
        for split in ("train", "val"):
            _ = [(shard["file"], shard["sha256"], shard["tokens"] + 0) for shard in manifest["splits"][split]["shards"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(path, "damaged", "delete the folder and prepare it again") from None
    return manifest
