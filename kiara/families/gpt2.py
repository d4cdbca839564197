"""GPT-2: layer norms, learned positions, biases everywhere, and its own names."""

from collections.abc import Mapping
from typing import Any

from kiara.config import ModelConfig
from kiara.families.family import ABSENT, PACKED, Family, Gguf, Group
from kiara_runtime.errors import UserError

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

_KINDS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}


def _read(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    kind = values.get("activation_function", "gelu_new")
    if kind not in _KINDS:
        raise UserError(
            "config.json", f"activation_function {kind!r} is not supported", f"only {', '.join(_KINDS)} are"
        )
    return {"mlp": _KINDS[kind]}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"activation_function": "gelu" if config.mlp == "gelu_exact" else "gelu_new"}


_ACTIVATION = Group(("activation_function",), _read, _write)
GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    {
        "norm": "layer",
        "position": "learned",
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
        "scale_attn_weights": (True, ABSENT),
        "scale_attn_by_inverse_layer_idx": (False, ABSENT),
        "add_cross_attention": (False, ABSENT),
    },
    (_ACTIVATION,),
    names=NAMES,
    prefix="transformer.",
    packed=PACKED,
    transposed=True,
    gguf=Gguf("gpt2"),
)
