"""Description of a Hugging Face family: how its config.json and tensor names map to `kiara.model`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from kiara.config import ModelConfig

ABSENT = object()


@dataclass(frozen=True)
class Group:
    """Keys of config.json that do not stand for one field each.

    keys: that it covers. read: (config.json, fields so far) -> further fields of ModelConfig. write: the keys.
    """

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


@dataclass(frozen=True)
class Gguf:
    """How llama.cpp's GGUF files describe and store a family.

    architecture: `general.architecture`. read: (metadata, names of tensors) -> values of config.json that
    `kiara.families.gguf` does not read for every family; it may use the keys `keys`. Keys are without the
    architecture's name. fits: whether metadata is this family's, where several have one architecture. interleaved:
    whether the rows of a query or key head are stored in the pairs that are rotated together.
    """

    architecture: str
    read: Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]] = lambda metadata, tensors: {}
    keys: tuple[str, ...] = ()
    fits: Callable[[Mapping[str, Any]], bool] = lambda metadata: True
    interleaved: bool = False


@dataclass(frozen=True)
class Family:
    """features: fields of ModelConfig that the family fixes. keys: the key in config.json of each other field.

    defaults: values of keys that config.json may omit. switches: further keys with their supported values, the first of
    which is written; ABSENT means no such key. groups: keys that stand for several fields, or for parts of one.
    rope_by_type: whether rotary settings are written for each kind of layer.

    names: the family's names for our modules, where they differ; head: for the LM head. prefix: of all tensor names but
    the head's. aliases: other names for a tensor, in some files.

    packed: those of our packed matrices that are packed there, too; grouped_qkv:
    with the rows of q, k and v of one key/value head together. transposed: whether matrices are stored as (inputs,
    outputs). norm_offset: what is added to the stored weights of RMS norms. gguf: None if not read from such files.
    """

    model_type: str
    architecture: str
    features: Mapping[str, Any]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    rope_by_type: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "model."
    head: str = "lm_head"
    aliases: Mapping[str, str] = field(default_factory=dict)
    packed: tuple[str, ...] = ()
    grouped_qkv: bool = False
    transposed: bool = False
    norm_offset: float = 0.0
    gguf: Gguf | None = None

    @property
    def layout(self) -> tuple[Any, ...]:
        """All that decides how tensors are named and stored."""
        flags = (self.packed, self.grouped_qkv, self.transposed, self.norm_offset)
        return (dict(self.names), self.prefix, self.head, *flags)


PACKED = ("qkv_proj", "gate_up_proj")
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
LAYER_NORM_KEYS = {**LLAMA_KEYS, "norm_eps": "layer_norm_eps"}
BIASES = {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}
LLAMA_DEFAULTS = {"rope_theta": 10000.0, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False}
LLAMA = {"norm": "rms", "position": "rope", "qk_norm": False}
NO_BIAS = {"attention_bias": False, "mlp_bias": False}
SILU = {"hidden_act": ("silu", ABSENT)}
