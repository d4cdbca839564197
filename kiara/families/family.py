"""Description of a Hugging Face family: how its config.json and tensor names map to `kiara.model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ABSENT = object()


@dataclass(frozen=True)
class Family:
    """features: fields of ModelConfig that the family fixes. keys: the key in config.json of each other field.

    defaults: values of keys that config.json may omit. switches: further keys with their supported values, the first of
    which is written; ABSENT means no such key. window: attention window if config.json has no `sliding_window`; None
    if the family does not use that key. names: the family's names for our modules; if empty, they are ours, with packed
    matrices stored separately. prefix: of all tensor names but the head's. transposed: whether matrices are stored as
    (inputs, outputs).
    """

    model_type: str
    architecture: str
    features: Mapping[str, Any]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "model."
    transposed: bool = False
    window: int | None = None


# Shared by Llama and similar families.
LLAMA_KEYS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "context_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tie_word_embeddings": "tie_word_embeddings",
}
BIASES = {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}
LLAMA_DEFAULTS = {"rope_theta": 10000.0, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False}
LLAMA = {"norm": "rms", "position": "rope", "qk_norm": False}
SILU = {"hidden_act": ("silu", ABSENT)}
QWEN_WINDOW = {"use_sliding_window": (False, ABSENT)}
