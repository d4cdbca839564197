"""The config.json of a GGUF file, from its metadata: what all architectures have; `Family.gguf` has the rest.

Sources: the keys of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and what llama.cpp does where one is
absent. Keys are without the architecture's name here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kiara.families.family import Family
from kiara.families.groups import FULL, SLIDING
from kiara.families.registry import FAMILIES
from kiara_runtime.errors import UserError

# Metadata by field of ModelConfig; the first key that is there counts.
_FIELDS = {
    "hidden_size": ("embedding_length",),
    "num_hidden_layers": ("block_count",),
    "num_attention_heads": ("attention.head_count",),
    "num_key_value_heads": ("attention.head_count_kv",),
    "intermediate_size": ("feed_forward_length",),
    "context_length": ("context_length",),
    "norm_eps": ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
    "head_dim": ("attention.key_length",),
}
_NEEDED = ("embedding_length", "block_count", "attention.head_count", "feed_forward_length", "context_length")
# Values by key of scaled positions in config.json.
_SCALING = {
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "attention_factor": "rope.scaling.yarn_attn_factor",
}
_KNOWN = (
    *(key for keys in _FIELDS.values() for key in keys),
    *_SCALING.values(),
    *"rope.freq_base rope.freq_base_swa rope.scaling.type rope.scaling.attn_factor rope.dimension_count".split(),
    *"attention.value_length vocab_size rope.scaling.finetuned".split(),
)
_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0  # turns in the original context; all models with this scaling have these
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")


def gguf_family(architecture: Any, metadata: Mapping[str, Any]) -> Family:
    """The family of a GGUF file, with its tensors as such files store them; raises UserError if there is none."""
    known = {family.gguf.architecture for family in FAMILIES.values() if family.gguf}
    if architecture not in known:
        remedy = f"use one of {', '.join(sorted(known))}"
        raise UserError("general.architecture", "is not supported", remedy, value=architecture)
    for family in FAMILIES.values():
        if family.gguf and family.gguf.architecture == architecture and family.gguf.fits(metadata):
            return replace(family, transposed=False, grouped_qkv=False, norm_offset=0.0)
    raise UserError("general.architecture", "has metadata of no known family", "use another file", value=architecture)


def gguf_keys(family: Family) -> set[str]:
    """The keys of metadata that are read."""
    return {*_KNOWN, *(family.gguf.keys if family.gguf else ())}


def gguf_config(
    family: Family, metadata: Mapping[str, Any], tensors: Collection[str], rope: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The config.json of a file, less its vocabulary. tensors: their names. rope: the values of ROPE_TENSORS."""
    norms = _FIELDS["norm_eps"]
    for key in (*_NEEDED, norms[0] if norms[1] not in metadata else norms[1]):
        metadata[key]  # so that an error names the key as it is in the file
    for key, value in metadata.items():
        if isinstance(value, list) and key in gguf_keys(family) and "pattern" not in key:
            raise UserError(key, "differs from layer to layer, which is not supported", "use another model")
    values: dict[str, Any] = {
        key: supported[0] for key, supported in family.switches.items() if supported[0] is not None
    }
    for field, keys in _FIELDS.items():
        found = next((metadata[key] for key in keys if key in metadata), None)
        if field in family.keys and found is not None:
            values[family.keys[field]] = found
    biases = {"attention_bias": ("attn_q", "attn_qkv"), "mlp_bias": ("ffn_down",)}
    for field, names in biases.items():
        if field in family.keys:
            values[family.keys[field]] = any(f"blk.0.{name}.bias" in tensors for name in names)
    values[family.keys["tie_word_embeddings"]] = "output.weight" not in tensors
    values["model_type"] = family.model_type
    if family.features["position"] == "rope":
        values["rope_parameters"] = _rope(family, metadata, rope)
    return {**values, **(family.gguf.read(metadata, tensors) if family.gguf else {})}


def _rope(family: Family, metadata: Mapping[str, Any], tensors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The `rope_parameters`."""
    head = metadata.get("attention.key_length", metadata["embedding_length"] // metadata["attention.head_count"])
    if metadata.get("attention.value_length", head) != head:
        raise UserError("attention.value_length", f"is not supported where a key has {head}", "use another model")
    base, rotated = metadata.get("rope.freq_base", 10000.0), metadata.get("rope.dimension_count", head)
    full = {"rope_theta": base, **_scaling(metadata, tensors, rotated, base)}
    if rotated != head:
        full["partial_rotary_factor"] = rotated / head
    local = metadata.get("rope.freq_base_swa")
    if family.rope_by_type:
        sliding = {} if local is None else {SLIDING: {"rope_type": "default", "rope_theta": local}}
        return {FULL: full, **sliding}
    if local not in (None, base):
        raise UserError("rope.freq_base_swa", f"is not supported beside rope.freq_base {base}", "use another model")
    return full


def _scaling(
    metadata: Mapping[str, Any], tensors: Mapping[str, Sequence[float]], rotated: int, base: float
) -> dict[str, Any]:
    """The type and parameters of scaled positions. rotated: elements of a head that are."""
    kind = metadata.get("rope.scaling.type", "linear")  # as in llama.cpp
    given = {key: metadata[theirs] for key, theirs in _SCALING.items() if theirs in metadata}
    if (short := tensors.get("rope_factors_short.weight")) is not None:
        factor = {"attention_factor": metadata.get("rope.scaling.attn_factor", 1.0)}
        original = {"original_max_position_embeddings": metadata["rope.scaling.original_context_length"]}
        long = list(tensors.get("rope_factors_long.weight", short))
        return {"rope_type": "longrope", "short_factor": list(short), "long_factor": long, **factor, **original}
    if (factors := tensors.get("rope_freqs.weight")) is not None:
        return _llama3(factors, rotated, base)
    if kind not in ("none", "linear", "yarn"):
        raise UserError("rope.scaling.type", "is not supported", "only none, linear and yarn are", value=kind)
    if kind == "none" or metadata.get("rope.scaling.factor", 1.0) in (0.0, 1.0):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": kind, "factor": given["factor"]}
    return {"rope_type": kind, **given}


def _llama3(factors: Sequence[float], rotated: int, base: float) -> dict[str, Any]:
    """The parameters of Llama 3's scaling that give these divisors of the frequencies; the file has no others."""
    factor, span = max(factors), _LLAMA3_HIGH - _LLAMA3_LOW
    lengths = [2 * math.pi * base ** (2 * i / rotated) for i in range(rotated // 2)]

    def divisor(length: float, original: float) -> float:
        kept = min(1.0, max(0.0, (original / length - _LLAMA3_LOW) / span))
        return 1 / ((1 - kept) / factor + kept)

    between = [(kept, length) for kept, length in zip(factors, lengths, strict=False) if 1 < kept < factor]
    kept, length = between[0] if between else (1.0, 0.0)
    original = round(length * (_LLAMA3_LOW + span * (1 / kept - 1 / factor) / (1 - 1 / factor))) if between else 8192
    expected = [divisor(length, original) for length in lengths]
    if len(factors) != len(expected) or any(abs(a - b) > 1e-4 * b for a, b in zip(factors, expected, strict=True)):
        problem = "these divisors of frequencies are not those of Llama 3"
        raise UserError("rope_freqs.weight", problem, "import the Hugging Face folder of the model")
    turns = {"low_freq_factor": _LLAMA3_LOW, "high_freq_factor": _LLAMA3_HIGH}
    return {"rope_type": "llama3", "factor": factor, **turns, "original_max_position_embeddings": original}
