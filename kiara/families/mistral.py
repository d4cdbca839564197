"""Mistral: Llama, in older models with a sliding window in all layers."""

from kiara.families.family import LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, NO_BIAS, SILU, Family
from kiara.families.groups import windows

MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    {**LLAMA, "mlp": "swiglu", **NO_BIAS},
    LLAMA_KEYS,
    LLAMA_DEFAULTS,
    SILU,
    (windows(default=4096),),
)
