"""Mistral: Llama, in older models with a sliding window in all layers."""

from kiara.families.family import LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, NO_BIAS, SILU, Family, Gguf
from kiara.families.groups import GGUF_WINDOWS, gguf_windows, has_window, windows

MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    {**LLAMA, "mlp": "swiglu", **NO_BIAS},
    LLAMA_KEYS,
    LLAMA_DEFAULTS,
    SILU,
    (windows(default=4096),),
    gguf=Gguf("llama", gguf_windows, GGUF_WINDOWS, has_window, interleaved=True),
)
