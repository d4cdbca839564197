"""Mistral, if its attention window covers the whole context."""

from kiara.families.family import LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, SILU, Family

MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    {**LLAMA, "mlp": "swiglu", "attention_bias": False, "mlp_bias": False},
    LLAMA_KEYS,
    LLAMA_DEFAULTS,
    SILU,
    window=4096,
)
