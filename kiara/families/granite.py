"""Granite 3 and 4, dense: Llama with factors on embedding, residuals, scores and logits.

Granite 4 has the class of its mixtures with state-space layers; a dense one has none of these.
"""

from collections.abc import Collection, Mapping
from typing import Any

from kiara.families.family import ABSENT, BIASES, LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, SILU, Family, Gguf, Group
from kiara.families.groups import FULL, attention_scale, numbers
from kiara_runtime.errors import UserError

_FACTORS = numbers(
    {
        "embedding_multiplier": ("embedding_scale", float),
        "residual_multiplier": ("residual_scale", float),
        "logits_scaling": ("logit_scale", lambda divisor: 1 / divisor),
    },
    {
        "embedding_multiplier": lambda config: config.embedding_scale,
        "residual_multiplier": lambda config: config.residual_scale,
        "logits_scaling": lambda config: 1 / config.logit_scale,
    },
)

_GGUF = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attention.scale": "attention_multiplier",
}


def _from_gguf(metadata: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """There, 0 stands for a factor of 1, or for the usual one of scores."""
    usual = (metadata["embedding_length"] / metadata["attention.head_count"]) ** -0.5
    found = {theirs: metadata[ours] for ours, theirs in _GGUF.items() if metadata.get(ours)}
    return {"attention_multiplier": usual, **found}


_LAYERS = ("attention", FULL)
_MAMBA = (
    *"mamba_n_heads mamba_n_groups mamba_d_state mamba_d_head mamba_d_conv mamba_expand mamba_chunk_size".split(),
    *"mamba_conv_bias mamba_proj_bias time_step_limit router_aux_loss_coef num_experts_per_tok".split(),
)


def _dense(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse layers that are not attention; what describes the others, and experts, has no effect."""
    kinds = values.get("layer_types")
    if not isinstance(kinds, list) or not set(kinds) <= set(_LAYERS):
        remedy = "state-space layers are not supported: use a dense model of this generation, or granite"
        raise UserError("config.json", f"layer_types {kinds!r:.60} are not attention only", remedy)
    return {}


GRANITE = Family(
    "granite",
    "GraniteForCausalLM",
    {**LLAMA, "mlp": "swiglu"},
    {**LLAMA_KEYS, **BIASES},
    {**LLAMA_DEFAULTS, "attention_multiplier": 1.0},
    SILU,
    (_FACTORS, attention_scale("attention_multiplier", float, float)),
    gguf=Gguf("granite", _from_gguf, tuple(_GGUF), interleaved=True),
)
GRANITE4 = Family(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    {**LLAMA, "mlp": "swiglu", "mlp_bias": False},
    {**LLAMA_KEYS, "intermediate_size": "shared_intermediate_size", "attention_bias": "attention_bias"},
    GRANITE.defaults,
    {
        **SILU,
        "num_local_experts": (0,),
        "position_embedding_type": ("rope",),
        "normalization_function": ("rmsnorm", ABSENT),
        "output_router_logits": (False, ABSENT),
    },
    (
        *GRANITE.groups,
        Group(
            ("layer_types", "intermediate_size", *_MAMBA),
            _dense,
            lambda config: {"layer_types": [FULL] * config.num_hidden_layers},
        ),
    ),
    names={"mlp.gate_up_proj": "shared_mlp.input_linear", "mlp.down_proj": "shared_mlp.output_linear"},
    packed=("gate_up_proj",),
)
