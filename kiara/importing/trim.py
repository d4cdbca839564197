"""`kiara trim`: a checkpoint without the vocabulary entries that a text never uses.

The text is tokenized as before, and the logits of the kept entries are the same; any other text can still be tokenized.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from kiara.checkpoints import (
    STATE_FILE,
    WEIGHTS_FILE,
    find_checkpoint,
    load_model,
    read_json,
    to_hugging_face,
    write_json,
)
from kiara.console import progress
from kiara.data import Dataset, TokenIds, read_documents, read_manifest, resolve_source
from kiara.families import write_config
from kiara.files import GENERATION_FILE, claim, copy_licences, new_folder
from kiara.importing.vocabulary import kept_ids, trimmed_tokenizer
from kiara.model import GPT
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file
from kiara_runtime.tokens import Tokenizer


@dataclass(frozen=True)
class Trimmed:
    """kept: the original ids of the trimmed model's entries, ascending. used: how many the text uses."""

    kept: list[int]
    used: int
    original: GPT
    model: GPT


def trim(source: Path, text: str, out: Path) -> Trimmed:
    """Write the checkpoint `out` from a checkpoint or a run's best one. text: a source, or a prepared folder.

    Raises UserError, and writes nothing, if the text would be tokenized in another way.
    """
    folder = find_checkpoint(source)
    claim(out, "imported model", [folder])
    model, tokenizer = load_model(folder)
    used, ids = _used(tokenizer, text), TokenIds.read(folder)
    kept = kept_ids(tokenizer, used, {ids.bos, *ids.eos})
    smaller = trimmed_tokenizer(tokenizer, kept)
    if read_manifest(Path(text)) is None:
        _check_same(tokenizer, smaller, kept, text)
    trimmed = _with_rows(model, torch.tensor(kept))
    new = {old: i for i, old in enumerate(kept)}
    ends = TokenIds(new[ids.bos], frozenset(new[i] for i in ids.eos))
    origin = read_json(folder / STATE_FILE) if (folder / STATE_FILE).is_file() else {}
    with new_folder(out, "imported model", [folder]) as written:
        save_file(to_hugging_face(trimmed), written / WEIGHTS_FILE, {"format": "pt"})
        smaller.save(written)
        config = write_config(trimmed.config, trimmed.vocab_size, ends.json())
        write_json(written / "config.json", config)
        write_json(written / GENERATION_FILE, ends.json())
        copy_licences(folder, written)
        hashes = {path.name: hash_file(path) for path in sorted(written.iterdir())}
        state = {"imported": origin.get("imported") or config["model_type"], "step": 0, "epoch": 0, "seed": None}
        trimmed_from = {
            "trimmed_from": {"checkpoint": str(source), "vocab_size": model.vocab_size, "text": text},
            "source": origin.get("source"),
        }
        write_json(written / STATE_FILE, {**state, "data_sha256": None, **trimmed_from, "sha256": hashes})
    return Trimmed(kept, len(used), model, trimmed)


def _used(tokenizer: Tokenizer, text: str) -> set[int]:
    """The ids that the text uses."""
    if read_manifest(Path(text)) is not None:
        dataset = Dataset.open(Path(text))
        if dataset.tokenizer.definition != tokenizer.definition:
            raise UserError("--to", "was prepared with another tokenizer", "prepare it with --tokenizer", value=text)
        return {int(i) for split in (dataset.train, dataset.val) for part in split.shards for i in np.unique(part)}
    used = set[int]()
    for document in _texts(text):
        used.update(tokenizer.encode(document))
    return used


def _texts(source: str) -> Iterator[str]:
    files = resolve_source(source)
    with progress("Reading", sum(file.stat().st_size for file in files)) as advance:
        for document in read_documents(files):
            text = document.read()
            yield text
            advance(len(text.encode()))


def _check_same(before: Tokenizer, after: Tokenizer, kept: list[int], text: str) -> None:
    """Tokenize the text again; raise UserError if any of it gives other tokens."""
    old = np.array(kept)
    for document in _texts(text):
        if old[after.encode(document)].tolist() != before.encode(document):
            problem = "is tokenized in another way with fewer entries, because of how this tokenizer works"
            raise UserError("--to", problem, "keep the whole vocabulary", value=text)


def _with_rows(model: GPT, rows: Tensor) -> GPT:
    """The model with these rows of its embedding and LM head."""
    with torch.device("meta"):
        smaller = GPT(model.config, len(rows))
    tables = ("embed_tokens.weight", "lm_head.weight", "lm_head.bias")
    state = {name: weight[rows] if name in tables else weight for name, weight in model.state_dict().items()}
    smaller.load_state_dict(state, assign=True)
    smaller.make_tables()
    return smaller.eval()
