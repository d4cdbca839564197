"""Qwen2: Llama with biases on the queries, keys and values."""

from kiara.families.family import LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, SILU, Family, Gguf
from kiara.families.groups import QWEN_WINDOWS

QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    {**LLAMA, "mlp": "swiglu", "attention_bias": True, "attention_out_bias": False, "mlp_bias": False},
    LLAMA_KEYS,
    LLAMA_DEFAULTS,
    SILU,
    (QWEN_WINDOWS,),
    gguf=Gguf("qwen2"),
)
