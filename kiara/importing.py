"""`kiara import`: a Hugging Face folder to an ordinary checkpoint, saying just what it said before.

The source is untrusted: plain files inside the folder only, safetensors only, every shape held against the
configuration before anything is written. Tensors go through one at a time, so that the peak of memory is one
tensor above the program itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kiara.checkpoint import STATE_FILE, WEIGHTS_FILE, TokenIds, read_json, write_json
from kiara.config import ModelConfig
from kiara.console import logger, progress
from kiara.families import Family, expected_tensors, family_of, read_config, write_config
from kiara.files import new_folder
from kiara.import_tokenizer import import_tokenizer
from kiara.model import GPT
from kiara_runtime.bundle import hash_file
from kiara_runtime.errors import UserError

INDEX_FILE = "model.safetensors.index.json"
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
# Buffers that older files carry along; they follow from the configuration.
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
PREFIX = "transformer."  # that GPT-2's first files lack


@dataclass(frozen=True)
class Source:
    """One tensor in one file of the source."""

    file: Path
    name: str
    shape: list[int]


def import_folder(source: Path, out: Path) -> ModelConfig:
    """Write the checkpoint `out` from the Hugging Face folder `source`; raises UserError for what does not fit."""
    if not source.is_dir():
        raise UserError(f"{source}: there is no such folder; name one with config.json, safetensors and tokenizer.json")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / STATE_FILE).is_file():
        raise UserError(f"--out {out}: exists and is no checkpoint; name another or move it away")
    values = read_json(_inside(source, "config.json"))
    try:
        config, vocab_size = read_config(values)
    except UserError as error:
        raise UserError(f"{source}/{error}") from None
    tensors = _match(source, family_of(values), config, vocab_size)
    tokenizer = import_tokenizer(source)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{source}: config.json says vocab_size {vocab_size}, tokenizer.json has {tokenizer.vocab_size}"
        )
    ids = _token_ids(source, values, tokenizer.special_tokens, tokenizer.config, vocab_size)
    with new_folder(out) as new:
        _write_tensors(new / WEIGHTS_FILE, tensors)
        tokenizer.save(new)
        write_json(new / "config.json", write_config(config, vocab_size, ids.json()))
        write_json(new / "generation_config.json", ids.json())
        hashes = {path.name: hash_file(path) for path in sorted(new.iterdir())}
        origin = {"imported": values["model_type"], "step": 0, "epoch": 0, "seed": None, "data_sha256": None}
        write_json(new / STATE_FILE, {**origin, "sha256": hashes})
    logger.info("Imported %s as %s: %s, %s tokenizer", source, out, values["model_type"], tokenizer.engine)
    return config


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder by its base name, not reached through a link that leaves the folder."""
    path = folder / name
    if name != Path(name).name or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: leaves the folder; copy the file itself into it")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; the folder is not complete")
    return path


def _match(source: Path, family: Family, config: ModelConfig, vocab_size: int) -> dict[str, Source]:
    """Each tensor that the checkpoint will hold, with where it lies; refuses missing, misshapen and unknown ones."""
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in GPT(config, vocab_size).state_dict().items()}
    found = {tensor.name: tensor for file in _weight_files(source) for tensor in _tensors_of(file)}
    bare = family.gpt2_names and not any(name.startswith(PREFIX) for name in found)
    expected = expected_tensors(family, config, shapes)
    matched: dict[str, Source] = {}
    for name, shape in expected.items():
        tensor = found.pop(name.removeprefix(PREFIX) if bare else name, None)
        if tensor is None:
            raise UserError(f"{source}: the weight {name} is missing")
        if tensor.shape != shape:
            raise UserError(f"{tensor.file}: {tensor.name} is {tensor.shape} where config.json asks for {shape}")
        matched[name] = tensor
    unknown = [name for name in found if not name.endswith(IGNORED) and not _is_tied_head(name, config)]
    if unknown:
        raise UserError(f"{source}: the weight {unknown[0]} has no place in this model")
    return matched


def _is_tied_head(name: str, config: ModelConfig) -> bool:
    return name == "lm_head.weight" and config.tie_word_embeddings


def _weight_files(source: Path) -> list[Path]:
    if (source / WEIGHTS_FILE).exists():
        return [_inside(source, WEIGHTS_FILE)]
    if (source / INDEX_FILE).exists():
        names = read_json(_inside(source, INDEX_FILE)).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise UserError(f"{source / INDEX_FILE}: weight_map is no map of weights to files")
        return [_inside(source, name) for name in sorted(set(names.values()))]
    if any(path for pattern in PICKLED for path in source.glob(pattern)):
        raise UserError(f"{source}: pickled weights, which can run code, are not read; convert them to {WEIGHTS_FILE}")
    raise UserError(f"{source / WEIGHTS_FILE}: there is no such file, and no {INDEX_FILE}")


def _tensors_of(file: Path) -> Iterable[Source]:
    try:
        with safe_open(file, framework="pt") as opened:
            return [Source(file, name, list(opened.get_slice(name).get_shape())) for name in opened.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged or cut short ({error}); fetch it again") from None


def _write_tensors(path: Path, tensors: Mapping[str, Source]) -> None:
    """A safetensors file in float32, written tensor by tensor: 8 bytes of length, a JSON header, the data."""
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
            with safe_open(tensor.file, framework="pt") as opened:
                values = opened.get_tensor(tensor.name)
            if not values.is_floating_point():
                raise UserError(f"{tensor.file}: {tensor.name} holds {values.dtype}, not floating-point weights")
            file.write(values.float().contiguous().numpy().data)
            advance(1)


def _token_ids(
    source: Path, values: Mapping[str, Any], special: Mapping[str, int], config: Mapping[str, Any], vocab_size: int
) -> TokenIds:
    """What begins and ends a text: from generation_config.json, else config.json, else the tokenizer's names."""
    path = source / "generation_config.json"
    generation = read_json(_inside(source, path.name)) if path.exists() else {}

    def pick(kind: str) -> Any:
        named = special.get(str(config.get(f"{kind}_token")))
        return next(
            (v[f"{kind}_token_id"] for v in (generation, values) if v.get(f"{kind}_token_id") is not None), named
        )

    eos = pick("eos")
    ends = eos if isinstance(eos, list) else [eos]
    start: Any = pick("bos")
    bos: Any = ends[0] if start is None and ends else start
    if not ends or not all(type(i) is int and 0 <= i < vocab_size for i in (*ends, bos)):
        raise UserError(f"{source}: eos_token_id {eos!r} or bos_token_id {bos!r} is no id below {vocab_size}")
    return TokenIds(bos, frozenset(ends))
