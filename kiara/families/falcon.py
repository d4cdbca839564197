"""Falcon, dense and with rotary positions: parallel blocks with one layer norm, one key/value head."""

from collections.abc import Mapping
from typing import Any

from kiara.config import ModelConfig
from kiara.families.family import ABSENT, PACKED, Family, Gguf, Group
from kiara_runtime.errors import UserError


def _read(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    heads, several = fields.get("num_attention_heads"), not values.get("multi_query", True)
    if several and fields.get("num_key_value_heads", heads) != heads:
        raise UserError("config.json", "num_kv_heads differs from the heads, but multi_query is off", "make them agree")
    return {"num_key_value_heads": heads if several else 1}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"multi_query": config.num_key_value_heads == 1 < config.num_attention_heads}


FALCON = Family(
    "falcon",
    "FalconForCausalLM",
    {
        "norm": "layer",
        "position": "rope",
        "qk_norm": False,
        "mlp": "gelu_exact",
        "parallel": "one_norm",
        "attention_bias": False,
        "mlp_bias": False,
    },
    {
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "intermediate_size": "ffn_hidden_size",
        "context_length": "max_position_embeddings",
        "norm_eps": "layer_norm_epsilon",
        "rope_theta": "rope_theta",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    {"rope_theta": 10000.0, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048},
    {
        "activation": ("gelu", ABSENT),
        "alibi": (False, ABSENT),
        "new_decoder_architecture": (False, ABSENT),
        "parallel_attn": (True, ABSENT),
        "bias": (False, ABSENT),
        "num_ln_in_parallel_attn": (None, 1, ABSENT),
    },
    (Group(("multi_query", "num_kv_heads"), _read, _write),),
    names={
        "embed_tokens": "word_embeddings",
        "layers": "h",
        "self_attn.qkv_proj": "self_attention.query_key_value",
        "self_attn.o_proj": "self_attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
        "norm": "ln_f",
    },
    prefix="transformer.",
    packed=PACKED,
    grouped_qkv=True,
    gguf=Gguf(
        "falcon",
        lambda metadata, _: {"multi_query": metadata.get("attention.head_count_kv", 1) == 1},
        ("tensor_data_layout",),
    ),
)
