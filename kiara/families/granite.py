"""Granite 3 and 4, dense: Llama with factors on embedding, residuals, scores and logits."""

from collections.abc import Collection, Mapping
from typing import Any

from kiara.families.family import BIASES, LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, SILU, Family, Gguf
from kiara.families.groups import attention_scale, numbers

_FACTORS = numbers(
    {
        "embedding_multiplier": ("embedding_scale", float),
        "residual_multiplier": ("residual_scale", float),
        "logits_scaling": ("logit_scale", lambda divisor: 1 / divisor),
    },
    {
        "embedding_multiplier": lambda config: config.embedding_scale,
        "residual_multiplier": lambda config: config.residual_scale,
        "logits_scaling": lambda config: 1 / config.logit_scale,
    },
)

_GGUF = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attention.scale": "attention_multiplier",
}


def _from_gguf(metadata: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """There, 0 stands for a factor of 1, or for the usual one of scores."""
    usual = (metadata["embedding_length"] / metadata["attention.head_count"]) ** -0.5
    found = {theirs: metadata[ours] for ours, theirs in _GGUF.items() if metadata.get(ours)}
    return {"attention_multiplier": usual, **found}


GRANITE = Family(
    "granite",
    "GraniteForCausalLM",
    {**LLAMA, "mlp": "swiglu"},
    {**LLAMA_KEYS, **BIASES},
    {**LLAMA_DEFAULTS, "attention_multiplier": 1.0},
    SILU,
    (_FACTORS, attention_scale("attention_multiplier", float, float)),
    gguf=Gguf("granite", _from_gguf, tuple(_GGUF), interleaved=True),
)
