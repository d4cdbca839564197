"""Granite 3 and 4, dense: Llama with factors on embedding, residuals, scores and logits."""

from kiara.families.family import BIASES, LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, SILU, Family
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

GRANITE = Family(
    "granite",
    "GraniteForCausalLM",
    {**LLAMA, "mlp": "swiglu"},
    {**LLAMA_KEYS, **BIASES},
    {**LLAMA_DEFAULTS, "attention_multiplier": 1.0},
    SILU,
    (_FACTORS, attention_scale("attention_multiplier", float, float)),
)
