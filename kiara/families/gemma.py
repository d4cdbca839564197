"""Gemma 2 and 3 (text): norms on both sides of a sublayer, gated GELU, windows in most layers.

Gemma 2 limits scores and logits; Gemma 3 normalises queries and keys instead.
"""

from collections.abc import Collection, Mapping
from typing import Any

from kiara.config import ModelConfig
from kiara.families.family import ABSENT, LLAMA, LLAMA_KEYS, Family, Gguf, Group
from kiara.families.groups import FULL, GGUF_WINDOWS, attention_scale, gguf_windows, has_window, numbers, windows

_FEATURES = {**LLAMA, "mlp": "geglu", "mlp_bias": False, "norm_position": "both"}
_NAMES = {
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
_KEYS = {**LLAMA_KEYS, "attention_bias": "attention_bias"}
_DEFAULTS: dict[str, Any] = {
    "rope_theta": 10000.0, "head_dim": 256, "query_pre_attn_scalar": 256, "tie_word_embeddings": True,
    "attention_bias": False, "rms_norm_eps": 1e-6,
}  # fmt: skip
_SWITCHES = {
    "hidden_activation": ("gelu_pytorch_tanh", None, ABSENT),
    "hidden_act": ("gelu_pytorch_tanh", "gelu", ABSENT),  # is not read
    "use_bidirectional_attention": (False, None, ABSENT),
}
_EMBEDDING = Group((), lambda _, fields: {"embedding_scale": float(fields["hidden_size"]) ** 0.5}, lambda _: {})
_SCALE = attention_scale("query_pre_attn_scalar", lambda scalar: scalar**-0.5, lambda scale: scale**-2)
_SOFTCAPS = numbers(
    {
        "attn_logit_softcapping": ("attention_softcap", float),
        "final_logit_softcapping": ("logit_softcap", float),
    },
    {
        "attn_logit_softcapping": lambda config: config.attention_softcap,
        "final_logit_softcapping": lambda config: config.logit_softcap,
    },
)


def _scalar(metadata: Mapping[str, Any], largest: int) -> dict[str, Any]:
    """The largest model of a generation scales scores by the width of its heads in the embedding."""
    width = metadata["embedding_length"] // metadata["attention.head_count"]
    return {"query_pre_attn_scalar": width if metadata["block_count"] == largest else metadata["attention.key_length"]}


_GGUF_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def _gemma2(metadata: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    given = {key: metadata[key] for key in _GGUF_SOFTCAPS if key in metadata}
    return {**given, **_scalar(metadata, 46), **(gguf_windows(metadata) if has_window(metadata) else {})}


def _gemma3(metadata: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    kinds = {} if has_window(metadata) else {"layer_types": [FULL] * metadata["block_count"]}
    caps = {key: metadata.get(key) or None for key in _GGUF_SOFTCAPS[1:]}
    return {**caps, **_scalar(metadata, 62), **gguf_windows(metadata), **kinds}


def _local(config: ModelConfig) -> float:
    return config.sliding_rope_theta or config.rope_theta


GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    _FEATURES,
    _KEYS,
    {**_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    _SWITCHES,
    (windows(2, default=4096), _EMBEDDING, _SCALE, _SOFTCAPS),
    names=_NAMES,
    norm_offset=1.0,
    gguf=Gguf("gemma2", _gemma2, (*_GGUF_SOFTCAPS, *GGUF_WINDOWS)),
)
GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    {**_FEATURES, "qk_norm": True, "sliding_rope_scaled": False},
    _KEYS,
    {**_DEFAULTS, "rope_theta": 1e6, "rope_local_base_freq": 10000.0},
    _SWITCHES,
    (
        windows(6, default=4096, kinds_differ=True),
        _EMBEDDING,
        _SCALE,
        _SOFTCAPS,
        numbers({"rope_local_base_freq": ("sliding_rope_theta", float)}, {"rope_local_base_freq": _local}),
    ),
    rope_by_type=True,
    names=_NAMES,
    norm_offset=1.0,
    gguf=Gguf("gemma3", _gemma3, (*_GGUF_SOFTCAPS, *GGUF_WINDOWS)),
)
