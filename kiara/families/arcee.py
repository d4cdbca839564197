"""Arcee: the shape that Kiara trains."""

from kiara.families.family import ABSENT, BIASES, LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, Family, Gguf

ARCEE = Family(
    "arcee",
    "ArceeForCausalLM",
    {**LLAMA, "mlp": "relu2"},
    {**LLAMA_KEYS, **BIASES},
    LLAMA_DEFAULTS,
    {"hidden_act": ("relu2", ABSENT)},
    gguf=Gguf("arcee", interleaved=True),
)
