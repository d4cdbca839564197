"""`kiara import`: convert a Hugging Face folder or a GGUF file to an ordinary checkpoint with the same logits.

Every shape is checked against the configuration before anything is written. Tensors are converted one at a time, and
large ones in pieces, so that little memory is used beside that of the program and the tokenizer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiara.checkpoints import STATE_FILE, WEIGHTS_FILE, check_finite, write_json
from kiara.config import ModelConfig
from kiara.console import logger, progress
from kiara.data import TokenIds
from kiara.families import (
    Family,
    expected_tensors,
    family_of,
    model_shapes,
    read_config,
    stored_alike,
    tensor_names,
    to_ours,
    to_theirs,
    write_config,
)
from kiara.files import claim, copy_licences, new_folder
from kiara.importing.hub import PREFIX
from kiara.importing.opened import Opened, open_source
from kiara.importing.weights import Source
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file
from kiara_runtime.tokens import Tokenizer

# Buffers in older files, which the configuration determines.
IGNORED = (
    ".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias",
)  # fmt: skip
GPT2_PREFIX = "transformer."  # absent in the first GPT-2 files


def import_model(source: Path | str, out: Path, tokenizer: Path | None = None) -> None:
    """Write the checkpoint `out` from a Hugging Face folder, a GGUF file, or a model of the hub, `hf:OWNER/NAME`.

    Also from a checkpoint of nanoGPT or llama2.c, with a tokenizer's folder or file beside it.
    Raises UserError, and writes nothing, if the model is not supported or its files do not match.
    """
    inputs = [] if str(source).startswith(PREFIX) else [Path(source)]
    claim(out, "imported model", inputs)
    opened = open_source(source, tokenizer)
    values, vocabulary = opened.config, opened.tokenizer
    try:
        values = _with_own_head(opened)
        config, vocab_size = read_config(values)
        matched = _match(opened.tensors, opened.family, config, vocab_size)
        tensors = _as_written(matched, opened.family, config, vocab_size)
        if vocabulary.vocab_size > vocab_size:
            raise UserError(
                "config.json",
                f"vocab_size {vocab_size}, but tokenizer.json has {vocabulary.vocab_size}",
                "use both from the same model",
            )
        ids = _token_ids((opened.generation, values), vocabulary, vocab_size)
    except UserError as error:
        raise error.inside(source) from None
    weights = sum(torch.Size(tensor.shape).numel() for tensor in tensors.values())
    size = f"{weights / 1e6:.1f}M weights, {4 * weights / 1e6:,.0f} MB as float32"
    logger.info("Importing %s: %s, %s", source, values["model_type"], size)
    with new_folder(out, "imported model", inputs) as new:
        _write_tensors(new / WEIGHTS_FILE, tensors)
        vocabulary.save(new)
        write_json(new / "config.json", write_config(config, vocab_size, ids.json()))
        write_json(new / "generation_config.json", ids.json())
        if opened.licences is not None:
            copy_licences(opened.licences, new)
        hashes = {path.name: hash_file(path) for path in sorted(new.iterdir())}
        origin = {"imported": values["model_type"], "step": 0, "epoch": 0, "seed": None, "data_sha256": None}
        write_json(new / STATE_FILE, {**origin, "source": opened.source, "sha256": hashes})
    logger.info("Imported %s, tokenizer engine %s", out, vocabulary.engine)


def _with_own_head(opened: Opened) -> dict[str, Any]:
    """The configuration, with the LM head untied if the file has one that differs from the embedding.

    `transformers` keeps such a head, too.
    """
    family, values, found = opened.family, opened.config, opened.tensors
    head = found.get(f"{family.head}.weight")
    name = family.prefix + family.names.get("embed_tokens", "embed_tokens") + ".weight"
    embedding = found.get(name) or found.get(name.removeprefix(GPT2_PREFIX))
    tied = values.get("tie_word_embeddings", family.defaults["tie_word_embeddings"])
    if not tied or head is None or embedding is None or head.shape != embedding.shape:
        return values
    return values if torch.equal(head.read(), embedding.read()) else {**values, "tie_word_embeddings": False}


def _as_written(found: dict[str, Source], family: Family, config: ModelConfig, vocab_size: int) -> dict[str, Source]:
    """The tensors under the names, and stored in the way, of the family that the checkpoint is written as."""
    target = family_of(write_config(config, vocab_size, {}))
    if target.layout == family.layout:
        return found
    written: dict[str, Source] = {}
    for name, shape in model_shapes(config, vocab_size).items():
        parts = [found[part] for part in tensor_names(family, config, name)]
        for part, stored in expected_tensors(target, config, {name: shape}).items():
            same = parts[0].shape == stored and len(parts) == 1 and stored_alike(family, target, config, name)
            pieces = parts[0].pieces if same else partial(_converted, parts, family, target, config, name, part)
            written[part] = Source(parts[0].file, part, stored, pieces)
    return written


def _converted(
    parts: list[Source], family: Family, target: Family, config: ModelConfig, name: str, part: str
) -> list[Tensor]:
    ours = to_ours(family, config, name, [source.read() for source in parts])
    return [to_theirs(target, config, name, ours)[part]]


def _match(found: dict[str, Source], family: Family, config: ModelConfig, vocab_size: int) -> dict[str, Source]:
    """The source of each of the family's tensors; refuses missing, misshapen and unknown ones."""
    shapes = model_shapes(config, vocab_size)
    bare = family.prefix == GPT2_PREFIX and not any(name.startswith(GPT2_PREFIX) for name in found)
    rest, matched = dict(found), {}
    for name, shape in expected_tensors(family, config, shapes).items():
        tensor = rest.pop(name.removeprefix(GPT2_PREFIX) if bare else name, None)
        if tensor is None:
            raise UserError(name, "the weight is missing", "use the complete files of one model")
        if tensor.shape != shape:
            raise UserError(
                tensor.file.name,
                f"{tensor.name} has shape {tensor.shape}, config.json needs {shape}",
                "use both from the same model",
            )
        matched[name] = tensor
    head = {f"{family.head}.weight"} if config.tie_word_embeddings else set()
    unknown = [name for name in rest if not name.endswith(IGNORED) and name not in head]
    if unknown:
        raise UserError(unknown[0], "the weight is not part of this model", "use the config.json of the same model")
    return matched


def _write_tensors(path: Path, tensors: Mapping[str, Source]) -> None:
    """Write a float32 safetensors file, tensor by tensor: 8 bytes of header length, a JSON header, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * torch.Size(tensor.shape).numel()
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, progress("Importing weights", len(tensors)) as advance:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for values in tensor.pieces():
                if not values.is_floating_point():
                    problem = f"{tensor.name} holds {values.dtype}, not floating-point weights"
                    raise UserError(tensor.file, problem, "use unquantised weights")
                values = values.float()
                check_finite(f"{tensor.file}: {tensor.name}", values)
                file.write(values.contiguous().numpy().data)
            advance(1)


def _token_ids(given: tuple[dict[str, Any], ...], tokenizer: Tokenizer, vocab_size: int) -> TokenIds:
    """Token ids that begin and end a text: from generation_config.json, else config.json, else tokenizer names."""

    def pick(kind: str) -> Any:
        named = tokenizer.special_tokens.get(str(tokenizer.config.get(f"{kind}_token")))
        ids = (values.get(f"{kind}_token_id") for values in given)
        return next((i for i in ids if i is not None), named)

    eos = pick("eos")
    ends = eos if isinstance(eos, list) else [eos]
    start: Any = pick("bos")
    bos: Any = ends[0] if start is None and ends else start
    if not ends or not all(type(i) is int and 0 <= i < vocab_size for i in (*ends, bos)):
        raise UserError(
            "eos_token_id",
            f"{eos!r} or bos_token_id {bos!r} is not an id below {vocab_size}",
            "fix generation_config.json",
        )
    return TokenIds(bos, frozenset(ends))
