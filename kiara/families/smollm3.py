"""SmolLM3: Llama with no rotary positions in every fourth layer."""

from collections.abc import Mapping
from typing import Any

from kiara.config import ModelConfig
from kiara.families.family import BIASES, LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, SILU, Family, Gguf, Group
from kiara.families.groups import FULL, SLIDING, no_windows
from kiara_runtime.errors import UserError


def _read(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Layers with rotary positions are sliding ones without a window here."""
    no_windows(values, fields)
    layers, listed = fields.get("num_hidden_layers"), values.get("no_rope_layers")
    every = values.get("no_rope_layer_interval", 4)
    if listed is None and isinstance(layers, int) and isinstance(every, int) and every > 0:
        listed = [int((i + 1) % every != 0) for i in range(layers)]
    if not isinstance(listed, list) or set(listed) - {0, 1}:
        raise UserError("config.json", f"no_rope_layers {listed!r:.40} is not supported", "give 1 or 0 for each layer")
    if all(listed):
        return {}
    return {"layer_types": tuple(SLIDING if rotates else FULL for rotates in listed), "full_attention_rope": False}


def _write(config: ModelConfig) -> dict[str, Any]:
    rotates = [int(config.full_attention_rope or config.slides(i)) for i in range(config.num_hidden_layers)]
    return {"no_rope_layers": rotates, "layer_types": [FULL] * config.num_hidden_layers}


_NO_ROPE = Group(("no_rope_layers", "no_rope_layer_interval", "layer_types", "sliding_window"), _read, _write)

SMOLLM3 = Family(
    "smollm3",
    "SmolLM3ForCausalLM",
    {**LLAMA, "mlp": "swiglu"},
    {**LLAMA_KEYS, **BIASES},
    {**LLAMA_DEFAULTS, "rope_theta": 2000000.0, "tie_word_embeddings": True, "rms_norm_eps": 1e-6},
    {**SILU, "use_sliding_window": (False,)},
    (_NO_ROPE,),
    gguf=Gguf("smollm3", interleaved=True),
)
