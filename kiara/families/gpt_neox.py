"""GPT-NeoX and Pythia: parallel blocks with two layer norms, rotary positions in a part of each head."""

from collections.abc import Mapping
from typing import Any

from kiara.families.family import ABSENT, LAYER_NORM_KEYS, PACKED, Family, Gguf, Group
from kiara.families.groups import partial_rotary


def _read(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"parallel": "two_norms"} if values.get("use_parallel_residual", True) else {}


GPT_NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    {"norm": "layer", "position": "rope", "qk_norm": False, "mlp": "gelu_exact", "mlp_bias": True},
    {
        **{field: key for field, key in LAYER_NORM_KEYS.items() if field not in ("head_dim", "num_key_value_heads")},
        "attention_bias": "attention_bias",
    },
    {"rope_theta": 10000.0, "tie_word_embeddings": False, "attention_bias": True, "layer_norm_eps": 1e-5},
    {"hidden_act": ("gelu", ABSENT)},
    (
        partial_rotary(0.25),
        Group(("use_parallel_residual",), _read, lambda config: {"use_parallel_residual": config.parallel != "none"}),
    ),
    names={
        "embed_tokens": "embed_in",
        "self_attn.qkv_proj": "attention.query_key_value",
        "self_attn.o_proj": "attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
        "norm": "final_layer_norm",
    },
    prefix="gpt_neox.",
    head="embed_out",
    aliases={"lm_head.weight": "embed_out.weight"},
    packed=PACKED,
    grouped_qkv=True,
    gguf=Gguf(
        "gptneox",
        lambda metadata, _: {"use_parallel_residual": metadata["use_parallel_residual"]},
        ("use_parallel_residual",),
    ),
)
