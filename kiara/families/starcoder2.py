"""StarCoder2: layer norms, biases, an MLP with GELU, and a sliding window in all layers."""

from kiara.families.family import ABSENT, LAYER_NORM_KEYS, LLAMA_DEFAULTS, Family, Gguf, Group
from kiara.families.groups import GGUF_WINDOWS, gguf_windows, windows

_WINDOW = Group(
    ("sliding_window",),
    lambda values, fields: windows().read({**values, "layer_types": None}, fields),
    lambda config: {"sliding_window": config.sliding_window},
)

STARCODER2 = Family(
    "starcoder2",
    "Starcoder2ForCausalLM",
    {"norm": "layer", "position": "rope", "qk_norm": False, "mlp": "gelu"},
    {
        **{field: key for field, key in LAYER_NORM_KEYS.items() if field != "head_dim"},
        "norm_eps": "norm_epsilon",
        "attention_bias": "use_bias",
        "mlp_bias": "use_bias",
    },
    {**LLAMA_DEFAULTS, "use_bias": True, "norm_epsilon": 1e-5, "tie_word_embeddings": True},
    {
        "hidden_act": ("gelu_pytorch_tanh", ABSENT),
        "residual_dropout": (0.0, 0.1, ABSENT),
        "embedding_dropout": (0.0, 0.1, ABSENT),
    },
    (_WINDOW,),
    names={"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"},
    gguf=Gguf("starcoder2", gguf_windows, GGUF_WINDOWS),
)
