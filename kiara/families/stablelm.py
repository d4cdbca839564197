"""StableLM: Llama with layer norms, and rotary positions in a part of each head."""

from collections.abc import Mapping
from typing import Any

from kiara.families.family import LAYER_NORM_KEYS, LLAMA_DEFAULTS, SILU, Family, Gguf, Group
from kiara.families.groups import partial_rotary


def _read(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"parallel": "one_norm"} if values.get("use_parallel_residual", False) else {}


STABLELM = Family(
    "stablelm",
    "StableLmForCausalLM",
    {
        "norm": "layer",
        "position": "rope",
        "qk_norm": False,
        "mlp": "swiglu",
        "attention_out_bias": False,
        "mlp_bias": False,
    },
    {**{field: key for field, key in LAYER_NORM_KEYS.items() if field != "head_dim"}, "attention_bias": "use_qkv_bias"},
    {**LLAMA_DEFAULTS, "use_qkv_bias": False, "layer_norm_eps": 1e-5},
    {**SILU, "qk_layernorm": (False,)},
    (
        partial_rotary(0.25),
        Group(("use_parallel_residual",), _read, lambda config: {"use_parallel_residual": config.parallel != "none"}),
    ),
    gguf=Gguf(
        "stablelm",
        # The key of this name is not reliable: llama.cpp, too, looks for the second norm.
        lambda _, tensors: {"use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors},
        ("use_parallel_residual",),
    ),
)
