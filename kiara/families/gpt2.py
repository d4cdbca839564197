"""GPT-2: layer norms, learned positions, biases everywhere, and its own names."""

from kiara.families.family import ABSENT, PACKED, Family, Gguf

NAMES = {
    "embed_tokens": "wte",
    "embed_positions": "wpe",
    "layers": "h",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.qkv_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
    "norm": "ln_f",
}

GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    {
        "norm": "layer",
        "position": "learned",
        "mlp": "gelu",
        "attention_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
    },
    {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "context_length": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    {"n_inner": None, "layer_norm_epsilon": 1e-05, "tie_word_embeddings": True},
    {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", ABSENT),
        "scale_attn_weights": (True, ABSENT),
        "scale_attn_by_inverse_layer_idx": (False, ABSENT),
        "add_cross_attention": (False, ABSENT),
    },
    names=NAMES,
    prefix="transformer.",
    packed=PACKED,
    transposed=True,
    gguf=Gguf("gpt2"),
)
