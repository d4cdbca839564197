"""OLMo 2 and 3: norms after each sublayer, and of all queries and all keys together; OLMo 3 has windows."""

from kiara.families.family import LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, SILU, Family, Gguf
from kiara.families.groups import GGUF_WINDOWS, gguf_windows, has_window, windows

_FEATURES = {
    **LLAMA,
    "mlp": "swiglu",
    "mlp_bias": False,
    "norm_position": "after",
    "qk_norm": True,
    "qk_norm_width": "all",
}
_NAMES = {"attention_output_norm": "post_attention_layernorm", "mlp_output_norm": "post_feedforward_layernorm"}
_KEYS = {**{field: key for field, key in LLAMA_KEYS.items() if field != "head_dim"}, "attention_bias": "attention_bias"}
_DEFAULTS = {**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5}

OLMO2 = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    _FEATURES,
    _KEYS,
    _DEFAULTS,
    SILU,
    names=_NAMES,
    gguf=Gguf("olmo2", keys=GGUF_WINDOWS, fits=lambda metadata: not has_window(metadata)),
)
OLMO3 = Family(
    "olmo3",
    "Olmo3ForCausalLM",
    {**_FEATURES, "sliding_rope_scaled": False},
    _KEYS,
    {**_DEFAULTS, "rope_theta": 500000.0},
    SILU,
    (windows(4, default=4096, kinds_differ=True),),
    rope_by_type=True,
    names=_NAMES,
    gguf=Gguf("olmo2", gguf_windows, GGUF_WINDOWS, has_window),
)
