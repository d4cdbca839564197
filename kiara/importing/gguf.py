"""GGUF files of the Llama family, read as the Hugging Face folder that they were made from.

Quantised tensors are dequantised to float32. llama.cpp stores the rows of the query and key projections in another
order, interleaved for its rotary positions; the original order is restored. Needs the optional package `gguf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiara.families import GGUF, GGUF_FIXED, GGUF_PREFIXES, check_keys
from kiara.importing.weights import Source
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import SPLIT_PATTERN, added_token, bpe_definition, byte_level_step, split_step

_PARTS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
}
_OPTIONAL = frozenset(("attention.head_count_kv", "rope.freq_base", "attention.key_length"))
_CONTROL, _USER_DEFINED = 3, 4  # token types
# End-of-generation tokens that llama.cpp recognises by name, as far as models of this family have them.
_END_NAMES = frozenset("<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|endoftext|> <|end_of_text|> <EOT> </s>".split())
_BOS_BY_DEFAULT = ("llama-bpe",)  # if add_bos_token is absent, as in llama.cpp


class GGUFFile:
    """config: as config.json. tensors: by Hugging Face name. definition, tokenizer_config: the tokenizer's files."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError:
            raise UserError(
                path, "reading a GGUF file needs the package gguf", "pip install 'kiara-slm[gguf]'"
            ) from None
        self.path, self._dequantize = path, gguf.quants.dequantize
        try:
            reader = gguf.GGUFReader(path)
            fields = _Fields({name: field.contents() for name, field in reader.fields.items()})
            known = {f"llama.{name}" for name in _KEYS.values()}
            check_keys("GGUF", fields, {*GGUF, *known}, GGUF_FIXED, lambda key: key.startswith(GGUF_PREFIXES))
            self.config = _config(fields, {tensor.name for tensor in reader.tensors})
            self.tensors = {source.name: source for source in map(self._source, reader.tensors)}
            self.definition, self.tokenizer_config = _tokenizer(fields)
        except UserError as error:
            raise error.inside(path) from None
        except (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError) as error:
            what = " ".join(str(error).split()) or type(error).__name__
            raise UserError(path, f"damaged or truncated ({what})", "download it again") from None

    def _source(self, tensor: Any) -> Source:
        name = _hugging_face_name(tensor.name)
        shape = [int(size) for size in reversed(tensor.shape)]
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        key = next((key for part, key in heads.items() if part in name), None)
        return Source(self.path, name, shape, lambda: self._read(tensor, shape, int(self.config[key]) if key else None))

    def _read(self, tensor: Any, shape: list[int], heads: int | None) -> Tensor:
        try:
            values = np.array(self._dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError:
            raise UserError(
                self.path,
                f"{tensor.name} is quantised as {tensor.tensor_type.name}, which the package gguf cannot read",
                "use a file of another quantisation, such as Q8_0",
            ) from None
        values = values.reshape(shape)
        if heads is not None:  # rows of a head: (half, 2) there, (2, half) here
            halves = values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)
        return torch.from_numpy(values)


class _Fields(dict[str, Any]):
    """A file's metadata; a missing key raises UserError with its name."""

    def require(self, key: str) -> None:
        self[key]

    def __missing__(self, key: str) -> Any:
        raise UserError(
            key, "the key is missing, as in files of older converters", "convert the model again, or use a newer file"
        )


def _hugging_face_name(name: str) -> str:
    head, _, last = name.rpartition(".")
    if head.startswith("blk."):
        _, number, part = head.split(".")
        return f"model.layers.{number}.{_PARTS.get(part, part)}.{last}"
    return f"{_PARTS.get(head, head)}.{last}"


def _config(fields: _Fields, tensors: set[str]) -> dict[str, Any]:
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise UserError("general.architecture", "is not supported", "only 'llama' is", value=architecture)
    for name in set(_KEYS.values()) - _OPTIONAL:
        fields.require(f"llama.{name}")  # so that an error has its name, not that of config.json
    for name in _KEYS.values():
        if isinstance(fields.get(f"llama.{name}"), list):
            raise UserError(f"llama.{name}", "differs from layer to layer, which is not supported", "use another model")
    heads = fields["llama.attention.head_count"]
    head_dim = fields.get("llama.attention.key_length", fields["llama.embedding_length"] // heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if fields.get(key, head_dim) != head_dim:
            raise UserError(key, f"{fields[key]} is not supported where a head is {head_dim} wide", "use another model")
    given = {key: fields[f"llama.{name}"] for key, name in _KEYS.items() if f"llama.{name}" in fields}
    tied, embedding = "output.weight" not in tensors, len(fields["tokenizer.ggml.tokens"])
    ids = {"bos_token_id": fields.get("tokenizer.ggml.bos_token_id"), "eos_token_id": _ends(fields)}
    fixed = {"model_type": "llama", "hidden_act": "silu", "vocab_size": embedding, "tie_word_embeddings": tied}
    return {**fixed, **given, **ids}


def _ends(fields: Mapping[str, Any]) -> list[int]:
    """Tokens that end a text in llama.cpp (`llama_vocab::impl::load`): from the keys, and control tokens by name."""
    named = (fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
    keyed = [int(i) for i in named if i is not None]
    if not keyed:
        raise UserError("tokenizer.ggml.eos_token_id", "the key is missing", "convert the model again")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    by_name = [i for i, name in enumerate(tokens) if types[i] == _CONTROL and name in _END_NAMES]
    return sorted({*keyed, *by_name})


def _tokenizer(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json, from the file's token list and merges."""
    if (kind := fields["tokenizer.ggml.model"]) != "gpt2":
        raise UserError("tokenizer.ggml.model", "is not supported", "only byte-level BPE ('gpt2') is", value=kind)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    added = [
        {**added_token(name, i), "special": types[i] == _CONTROL}
        for i, name in enumerate(tokens)
        if types[i] in (_CONTROL, _USER_DEFINED)
    ]
    pre = str(fields["tokenizer.ggml.pre"])
    definition = bpe_definition(
        vocab={name: i for i, name in enumerate(tokens)},
        merges=[merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        added=added,
        steps=_steps(pre),
        ignore_merges=pre == "llama-bpe",
    )
    named = {kind: fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos")}
    config: dict[str, Any] = {f"{kind}_token": tokens[i] for kind, i in named.items() if i is not None}
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"]
    if fields.get("tokenizer.ggml.add_bos_token", pre in _BOS_BY_DEFAULT):
        config["kiara_prompt_prefix"] = [int(fields["tokenizer.ggml.bos_token_id"])]
    return definition, config


def _steps(pre: str) -> list[dict[str, Any]]:
    """Pre-tokenizer steps for tokenizer.json that split text as llama.cpp's `pre` does."""
    if pre in ("gpt-2", "default"):
        return [byte_level_step(use_regex=True)]
    if pre == "smollm":
        return [{"type": "Digits", "individual_digits": True}, byte_level_step(use_regex=True)]
    if pre == "llama-bpe":
        return [split_step(SPLIT_PATTERN), byte_level_step(use_regex=False)]
    raise UserError("tokenizer.ggml.pre", "is not supported", "only gpt-2, smollm and llama-bpe are", value=pre)
