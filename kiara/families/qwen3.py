"""Qwen3: Llama with a norm of each query and key head."""

from kiara.families.family import LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, SILU, Family, Gguf
from kiara.families.groups import QWEN_WINDOWS

QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    {**LLAMA, "mlp": "swiglu", "mlp_bias": False, "qk_norm": True},
    {**LLAMA_KEYS, "attention_bias": "attention_bias"},
    {**LLAMA_DEFAULTS, "head_dim": 128},
    SILU,
    (QWEN_WINDOWS,),
    gguf=Gguf("qwen3"),
)
