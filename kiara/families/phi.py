"""Phi-1.5 and Phi-2: parallel blocks with one layer norm. Phi-3, 3.5 and 4-mini: Llama with packed matrices."""

from kiara.families.family import (
    ABSENT,
    LAYER_NORM_KEYS,
    LLAMA,
    LLAMA_DEFAULTS,
    LLAMA_KEYS,
    NO_BIAS,
    PACKED,
    SILU,
    Family,
    Gguf,
)
from kiara.families.groups import GGUF_WINDOWS, gguf_windows, partial_rotary, windows

PHI = Family(
    "phi",
    "PhiForCausalLM",
    {
        "norm": "layer",
        "position": "rope",
        "qk_norm": False,
        "mlp": "gelu",
        "parallel": "one_norm",
        "attention_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "head_bias": True,
    },
    {field: key for field, key in LAYER_NORM_KEYS.items() if field != "head_dim"},
    {"rope_theta": 10000.0, "tie_word_embeddings": False, "layer_norm_eps": 1e-5},
    {"hidden_act": ("gelu_new", ABSENT), "qk_layernorm": (False, ABSENT)},
    (partial_rotary(0.5),),
    names={
        "self_attn.o_proj": "self_attn.dense",
        "mlp.up_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
        "norm": "final_layernorm",
    },
    gguf=Gguf("phi2"),
)
PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    {**LLAMA, "mlp": "swiglu", **NO_BIAS},
    {field: key for field, key in LLAMA_KEYS.items() if field != "head_dim"},
    {**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5},
    SILU,
    (partial_rotary(), windows()),
    packed=PACKED,
    gguf=Gguf("phi3", gguf_windows, GGUF_WINDOWS),
)
