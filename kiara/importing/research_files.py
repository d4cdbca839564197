"""Checkpoints of two programs that people learn with: nanoGPT's `.pt`, and llama2.c's `.bin` and `.pt`.

https://github.com/karpathy/nanoGPT/blob/master/train.py and https://github.com/karpathy/llama2.c/blob/master/export.py.
A `.pt` file is a pickle: it is read with `weights_only`, which makes tensors and plain values and runs nothing.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiara.config import ModelConfig
from kiara.families import Family, expected_tensors, family_of, model_shapes, read_config
from kiara.importing.weights import Source, unpaired
from kiara_runtime.errors import UserError

SUFFIXES = (".pt", ".bin")
_MAGIC, _HEADER = 0x616B3432, 256  # of version 1
_LLAMA = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
Weights = dict[str, Source]
Read = tuple[dict[str, Any], Weights, Family]


def read_file(path: Path) -> Read:
    """config.json, tensors by Hugging Face name, and how they are stored; raises UserError for any other file."""
    if path.suffix == ".bin":
        return _llama2c(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        given, state = dict(saved["model_args"]), dict(saved["model"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        raise _pickled(path) from None
    state = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(path, "has weights that are not tensors", "convert it to safetensors")
    read = _nanogpt if "n_embd" in given else _llama2c_state
    try:
        return read(path, given, state)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(path, f"model_args are not complete ({error!r:.80})", "save the checkpoint again") from None


def _pickled(path: Path) -> UserError:
    problem = "pickled weights, which can run code, are not read, except plain ones of nanoGPT and llama2.c"
    return UserError(path, problem, "convert them to model.safetensors")


def _nanogpt(path: Path, given: Mapping[str, Any], state: Mapping[str, Tensor]) -> Read:
    """GPT-2 with exact GELU; absent biases are zeros, and matrices are stored as (outputs, inputs)."""
    names = {"n_embd": "n_embd", "n_layer": "n_layer", "n_head": "n_head", "block_size": "n_positions"}
    config: dict[str, Any] = {theirs: int(given[ours]) for ours, theirs in names.items()}
    config |= {"model_type": "gpt2", "activation_function": "gelu", "vocab_size": int(given["vocab_size"])}
    family = replace(family_of(config), transposed=False)
    found = {name: _source(path, name, tensor) for name, tensor in state.items()}
    shapes = expected_tensors(family, *_shapes(path, config))
    for name, shape in shapes.items():
        if name.endswith(".bias") and name not in found and not given.get("bias", True):
            found[name] = _source(path, name, torch.zeros(shape))
    return config, found, family


def _llama2c_state(path: Path, given: Mapping[str, Any], state: Mapping[str, Tensor]) -> Read:
    heads = int(given["n_heads"])
    keys = int(given.get("n_kv_heads") or heads)
    hidden = int(state["layers.0.feed_forward.w1.weight"].shape[0])
    config = _llama(path, int(given["dim"]), hidden, int(given["n_layers"]), heads, keys, int(given["max_seq_len"]))
    embedding, head = state["tok_embeddings.weight"], state.get("output.weight")
    config["vocab_size"] = int(embedding.shape[0])
    config["tie_word_embeddings"] = head is None or torch.equal(head, embedding)
    arrays = {name: tensor.float().numpy() for name, tensor in state.items() if not name.startswith("freqs_")}
    return config, _renamed(path, arrays, heads, keys), family_of(config)


def _llama2c(path: Path) -> Read:
    """A `.bin` file of version 0 or 1: a header, then float32 weights in a fixed order."""
    (dim, hidden, layers, heads, keys, vocab, length), shared, newer = _header(path)
    config = _llama(path, dim, hidden, layers, heads, keys, length)
    config |= {"vocab_size": vocab, "tie_word_embeddings": shared}
    return config, _renamed(path, _arrays(path, config, newer), heads, keys), family_of(config)


def _header(path: Path) -> tuple[list[int], bool, bool]:
    """The sizes, whether embedding and head are one, and whether the file is of version 1 rather than 0."""
    with path.open("rb") as file:
        start = file.read(_HEADER)
    if start[:2] in (b"PK", b"\x80\x02"):
        raise _pickled(path)
    if len(start) < 28:
        raise UserError(path, "is too short for a file of llama2.c", "name another file")
    magic, version, *sizes = struct.unpack("<Ii7i", start.ljust(36, b"\0")[:36])
    if magic == _MAGIC:
        if version != 1:
            raise UserError(path, f"is of version {version}, which is quantised", "export it with --version 0 or 1")
        return sizes, start[36:37] != b"\0", True
    *sizes, vocab, length = struct.unpack("<7i", start[:28])
    return [*sizes, abs(vocab), length], vocab > 0, False


def _arrays(path: Path, config: Mapping[str, Any], newer: bool) -> dict[str, NDArray[np.float32]]:
    """The weights by llama2.c's names, mapped from the file."""
    dim, hidden, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    keys = config["num_key_value_heads"] * config["head_dim"]
    block = {
        "attention_norm": (dim,), "attention.wq": (dim, dim), "attention.wk": (keys, dim), "attention.wv": (keys, dim),
        "attention.wo": (dim, dim), "ffn_norm": (dim,), "feed_forward.w1": (hidden, dim),
        "feed_forward.w2": (dim, hidden), "feed_forward.w3": (hidden, dim),
    }  # fmt: skip
    rotations = (config["max_position_embeddings"], config["head_dim"])  # cosines and sines, which are computed anew
    whole = {"norm": (dim,), "tok_embeddings": (vocab, dim), "output": (vocab, dim), "": rotations}
    norms = ("attention_norm", "ffn_norm")
    order = ["tok_embeddings", *block, "norm", ""]
    if newer:
        order = [*norms, "norm", "tok_embeddings", *(name for name in block if name not in norms)]
    values = np.memmap(path, "<f4", "r", _HEADER if newer else 28)
    arrays: dict[str, NDArray[np.float32]] = {}
    at = 0
    for name in [*order, *([] if config["tie_word_embeddings"] else ["output"])]:
        shape, count = block.get(name) or whole[name], config["num_hidden_layers"] if name in block else 1
        size = count * math.prod(shape)
        if len(values) < at + size:
            raise UserError(path, "is shorter than its header says, or no file of llama2.c", "name another file")
        for i, one in enumerate(values[at : at + size].reshape(count, *shape)):
            arrays[f"layers.{i}.{name}.weight" if name in block else f"{name}.weight"] = one
        at += size
    arrays.pop(".weight", None)
    return arrays


def _llama(path: Path, dim: int, hidden: int, layers: int, heads: int, keys: int, length: int) -> dict[str, Any]:
    if min(dim, hidden, layers, heads, keys, length) < 1 or dim % heads or max(dim, hidden, layers, length) > 1 << 24:
        raise UserError(path, "has no sizes of a model in its header", "name a checkpoint of llama2.c")
    return {
        "model_type": "llama", "hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": dim // heads,
        "max_position_embeddings": length, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        # Its own program ends a text at the BOS token, by which the next one of the training text begins.
        "bos_token_id": 1, "eos_token_id": [1, 2],
    }  # fmt: skip


def _renamed(path: Path, arrays: Mapping[str, NDArray[np.float32]], heads: int, keys: int) -> Weights:
    """Sources by Hugging Face name; the rows of queries and keys are in the pairs that are rotated together."""
    found: Weights = {}
    for theirs, values in arrays.items():
        stem = theirs.removesuffix(".weight")
        layer, part = ("", stem) if not stem.startswith("layers.") else (stem.split(".")[1], stem.split(".", 2)[2])
        name = f"model.layers.{layer}.{_LLAMA[part]}.weight" if layer else f"{_LLAMA[part]}.weight"
        paired = {"attention.wq": heads, "attention.wk": keys}.get(part)
        found[name] = Source(path, name, list(values.shape), partial(_values, values, paired))
    return found


def _values(values: NDArray[np.float32], heads: int | None) -> Iterator[Tensor]:
    yield torch.from_numpy(np.array(values) if heads is None else unpaired(values, heads))


def _source(path: Path, name: str, tensor: Tensor) -> Source:
    return Source(path, name, list(tensor.shape), lambda: [tensor])


def _shapes(path: Path, config: Mapping[str, Any]) -> tuple[ModelConfig, dict[str, list[int]]]:
    try:
        read, vocab_size = read_config(config)
    except UserError as error:
        raise error.inside(path) from None
    return read, model_shapes(read, vocab_size)
