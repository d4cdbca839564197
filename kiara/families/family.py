"""What a family is: how a Hugging Face config.json and its tensors spell the one model of `kiara.model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ABSENT = object()


@dataclass(frozen=True)
class Family:
    """features: fields of ModelConfig that it fixes. keys: config.json's name of each other field that it has.

    defaults: values of keys that config.json may leave out. switches: further keys with the values that are supported,
    the first of which is written out; ABSENT stands for a key that is not there. window: how far its attention reaches
    where config.json has no `sliding_window`. names: its names for parts of ours; where there are none, they are ours,
    with packed matrices apart. prefix: before all names but the head's. transposed: whether its matrices are stored as
    inputs by outputs.
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


# What Llama and its likes have in common.
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
