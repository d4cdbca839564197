"""Llama, and other models with its model_type."""

from kiara.families.family import BIASES, LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, SILU, Family, Gguf
from kiara.families.groups import has_window

LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    {**LLAMA, "mlp": "swiglu"},
    {**LLAMA_KEYS, **BIASES},
    LLAMA_DEFAULTS,
    SILU,
    gguf=Gguf("llama", fits=lambda metadata: not has_window(metadata), interleaved=True),
)
