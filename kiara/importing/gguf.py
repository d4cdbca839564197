"""GGUF files, read as the Hugging Face folder that they were made from. Needs the optional package `gguf`.

Quantised tensors are dequantised to float32. llama.cpp stores the rows of the query and key projections of some
families in another order, in the pairs that are rotated together; the original order is restored.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiara.families import (
    GGUF,
    GGUF_ARCHITECTURE_FIXED,
    GGUF_FIXED,
    GGUF_PREFIXES,
    ROPE_TENSORS,
    check_keys,
    expected_tensors,
    gguf_config,
    gguf_family,
    gguf_keys,
    model_shapes,
    read_config,
)
from kiara.importing.gguf_container import Container, StoredTensor
from kiara.importing.gguf_tokenizer import end_tokens, gguf_tokenizer
from kiara.importing.weights import Source, unpaired
from kiara_runtime.errors import UserError

_PART = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\.gguf)")


class GGUFFile:
    """A file, or the first of several parts.

    family: how its tensors are stored. config: as config.json. tensors: by Hugging Face name. definition,
    tokenizer_config: the tokenizer's files.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError:
            raise UserError(
                path, "reading a GGUF file needs the package gguf", "pip install 'kiara-slm[gguf]'"
            ) from None
        self.path, self._gguf = path, gguf
        try:
            self._read()
        except UserError as error:
            raise error.inside(path) from None
        except (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError, struct.error) as error:
            what = " ".join(str(error).split()) or type(error).__name__
            raise UserError(path, f"damaged or truncated ({what})", "download it again") from None

    def _read(self) -> None:
        files = {part: Container(part) for part in _parts(self.path)}
        fields = _Fields({name: _plain(value) for name, value in files[self.path].metadata.items()})
        if fields.get("split.count", 0) not in (0, len(files)):
            raise UserError("split.count", f"has parts in {fields['split.count']} files", "give the first of them")
        architecture = str(fields["general.architecture"])
        start = f"{architecture}."
        metadata = _Fields({name.removeprefix(start): fields[name] for name in fields if name.startswith(start)}, start)
        general = {name: value for name, value in fields.items() if not name.startswith(start)}
        self.family = gguf_family(architecture, metadata)
        check_keys("GGUF", general, GGUF, GGUF_FIXED, lambda key: key.startswith(GGUF_PREFIXES))
        check_keys(f"GGUF: {architecture}", metadata, gguf_keys(self.family), GGUF_ARCHITECTURE_FIXED)
        found = {name: (part, tensor) for part, file in files.items() for name, tensor in file.tensors.items()}
        rope = {name: _plain(next(found.pop(name)[1].pieces()).tolist()) for name in ROPE_TENSORS if name in found}
        self.definition, self.tokenizer_config = gguf_tokenizer(fields)
        ids = {"bos_token_id": fields.get("tokenizer.ggml.bos_token_id"), "eos_token_id": end_tokens(fields)}
        size = {"vocab_size": int(_Fields(found)["token_embd.weight"][1].shape[0])}
        self.config = {**gguf_config(self.family, metadata, found.keys(), rope), **size, **ids}
        names = self._names(architecture, int(metadata["block_count"]))
        sources = (self._source(part, tensor, names.get(name, name)) for name, (part, tensor) in found.items())
        self.tensors = {source.name: source for source in sources}

    def _names(self, architecture: str, layers: int) -> dict[str, str]:
        """The names in Hugging Face's files, by those in this one."""
        kinds = {name: kind for kind, name in self._gguf.MODEL_ARCH_NAMES.items()}
        table = self._gguf.get_tensor_name_map(kinds[architecture], layers)
        config, vocab_size = read_config(self.config)
        theirs = expected_tensors(self.family, config, model_shapes(config, vocab_size))
        found = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in theirs}
        return {str(theirs): name for name, theirs in found.items() if theirs is not None}

    def _source(self, part: Path, tensor: StoredTensor, name: str) -> Source:
        keys = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        key = next((key for kind, key in keys.items() if f".{kind}." in name), None)
        paired = self.family.gguf is not None and self.family.gguf.interleaved and key is not None
        heads = int(self.config[key]) if paired and key else None
        return Source(part, name, tensor.shape, lambda: self._pieces(part, tensor, heads))

    def _pieces(self, part: Path, tensor: StoredTensor, heads: int | None) -> Iterator[Tensor]:
        pieces = tensor.pieces() if heads is None else iter([unpaired(np.concatenate([*tensor.pieces()]), heads)])
        try:
            yield from map(torch.from_numpy, pieces)
        except NotImplementedError:
            raise UserError(
                part,
                f"{tensor.name} is quantised as {tensor.kind.name}, which the package gguf cannot read",
                "use a file of another quantisation, such as Q8_0",
            ) from None


class _Fields(dict[str, Any]):
    """A file's metadata; a missing key raises UserError with its name. start: of the names, left out."""

    def __init__(self, values: Mapping[str, Any], start: str = "") -> None:
        super().__init__(values)
        self._start = start

    def __missing__(self, key: str) -> Any:
        raise UserError(
            self._start + key,
            "the key is missing, as in files of older converters",
            "convert the model again, or use a newer file",
        )


def part_names(name: str) -> list[str]:
    """The names of all parts of a model, from the name of one; that name alone if it is in one file."""
    named = _PART.fullmatch(name)
    if named is None:
        return [name]
    before, _, between, count, end = named.groups()
    return [f"{before}{i:05}{between}{count}{end}" for i in range(1, int(count) + 1)]


def _parts(path: Path) -> list[Path]:
    """The files of a model, this one first; raises UserError if it is not the first, or if one is missing."""
    names = part_names(path.name)
    if names[0] != path.name:
        raise UserError(path, "is not the first part", f"give {names[0]}")
    parts = [path.with_name(name) for name in names]
    for part in parts:
        if not part.is_file():
            raise UserError(part, "there is no such file", "copy all parts of the model into one folder")
    return parts


def _plain(value: Any) -> Any:
    """The value, with the shortest decimals that give the file's 32-bit floats: 0.000001, not 0.00000099999999."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value
