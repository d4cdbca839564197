"""Gemma 2 and 3 (text): norms on both sides of a sublayer, gated GELU, windows in most layers.

Gemma 2 limits scores and logits; Gemma 3 normalises queries and keys instead.
"""

from typing import Any

from kiara.config import ModelConfig
from kiara.families.family import ABSENT, LLAMA, LLAMA_KEYS, Family, Group
from kiara.families.groups import attention_scale, numbers, windows

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
)
