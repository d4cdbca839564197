"""EXAONE 4: norms after each sublayer and of each head; full layers have no rotary positions if others slide."""

from collections.abc import Mapping
from typing import Any

from kiara.families.family import LLAMA, LLAMA_DEFAULTS, LLAMA_KEYS, NO_BIAS, SILU, Family, Gguf, Group
from kiara.families.groups import GGUF_WINDOWS, gguf_windows, windows

_WINDOWS = windows(4, default=4096, kinds_differ=True)


def _read(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without a window all layers are full ones, and rotate."""
    if values.get("sliding_window", 4096) is None:
        return {}
    return {**_WINDOWS.read(values, fields), "full_attention_rope": False}


EXAONE4 = Family(
    "exaone4",
    "Exaone4ForCausalLM",
    {**LLAMA, "mlp": "swiglu", **NO_BIAS, "norm_position": "after", "qk_norm": True},
    LLAMA_KEYS,
    {**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5},
    SILU,
    (
        Group(
            _WINDOWS.keys,
            _read,
            lambda config: {
                **_WINDOWS.write(config),
                **({"sliding_window": None} if config.layer_types is None else {}),
            },
        ),
    ),
    names={"attention_output_norm": "post_attention_layernorm", "mlp_output_norm": "post_feedforward_layernorm"},
    gguf=Gguf("exaone4", gguf_windows, GGUF_WINDOWS),
)
