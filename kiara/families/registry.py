"""Map config.json and tensor names of Hugging Face families to `kiara.model.gpt`, and back.

An entry of FAMILIES says which fields of ModelConfig a family fixes, how its config.json names the others, which values
of further keys are supported, and how its tensors are named. Reading and writing use the same entry, so an imported
checkpoint opens in `transformers` again. A key that an entry does not cover is refused, not ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kiara.config import ModelConfig, own_error
from kiara.families.arcee import ARCEE
from kiara.families.family import ABSENT, Family
from kiara.families.gpt2 import GPT2
from kiara.families.known_keys import CONFIG, CONFIG_FIXED, check_keys
from kiara.families.llama import LLAMA
from kiara.families.mistral import MISTRAL
from kiara.families.qwen2 import QWEN2
from kiara.families.qwen3 import QWEN3
from kiara.families.rope import rope_fields, rope_parameters, with_rope
from kiara.model import packed
from kiara_runtime.errors import UserError

# Keys of config.json that separate functions handle.
_ELSEWHERE = ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor", "sliding_window", "layer_types")


# A checkpoint is written as the first family that fits: Arcee before all others, Llama before similar ones.
FAMILIES = {family.model_type: family for family in (ARCEE, LLAMA, MISTRAL, QWEN2, QWEN3, GPT2)}


def family_of(values: Mapping[str, Any]) -> Family:
    """The family that a config.json names; raises UserError if it is not supported."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError("config.json", f"model_type {name!r} is not supported", f"use one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def read_config(values: Mapping[str, Any]) -> tuple[ModelConfig, int]:
    """ModelConfig and vocabulary size of a config.json; raises UserError with the unsupported key."""
    family = family_of(values)
    known = {*family.keys.values(), *family.switches, *CONFIG, *_ELSEWHERE}
    check_keys("config.json", values, known, CONFIG_FIXED)
    values = {**family.defaults, **with_rope(values)}
    for key, supported in family.switches.items():
        if values.get(key, ABSENT) not in supported:
            raise UserError("config.json", f"{key} {values.get(key)!r} is not supported", f"only {supported[0]!r} is")
    found = {name: values[key] for name, key in family.keys.items() if values.get(key) is not None}
    fields = {**_derived(family, found), **rope_fields(values), **found, **family.features}
    missing = [key for name, key in family.keys.items() if name not in fields]
    if missing:
        raise UserError("config.json", f"the field {missing[0]} is missing", "copy the whole folder again")
    fields.setdefault("attention_out_bias", fields["attention_bias"])
    vocab_size = values.get("vocab_size")
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or not 1 <= vocab_size <= 1 << 24:
        raise UserError(
            "config.json",
            f"vocab_size {vocab_size!r} is not a vocabulary size",
            "set it to the number of rows of the embedding",
        )
    _check_window(family, values)
    try:
        return ModelConfig(**fields), vocab_size
    except ValidationError as error:
        first = error.errors()[0]
        if (ours := own_error(first)) is not None:
            raise ours.inside("config.json") from None
        name = str(first["loc"][0])
        raise UserError(
            "config.json", f"{family.keys.get(name, name)} {fields.get(name)!r} cannot be used", first["msg"]
        ) from None


def _check_window(family: Family, values: Mapping[str, Any]) -> None:
    """Refuse attention that does not cover the whole context."""
    layers = values.get("layer_types")
    if layers is not None and set(layers if isinstance(layers, list) else [layers]) - {"full_attention"}:
        raise UserError("config.json", f"layer_types {layers!r:.60} is not supported", "only 'full_attention' is")
    if family.window is None:  # Qwen's is in QWEN_WINDOW, other families have none
        return
    window, context = values.get("sliding_window", family.window), values.get(family.keys["context_length"])
    if window is not None and not (isinstance(window, int) and isinstance(context, int) and window >= context):
        raise UserError(
            "config.json",
            f"sliding_window {window!r} is not supported: it is shorter than the context, {context!r}",
            f"set max_position_embeddings to {window!r} to import the model with a shorter context",
        )


def write_config(config: ModelConfig, vocab_size: int, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the model, as the first family that fits it; token_ids: its fields of BOS, EOS, padding."""
    name, family = _family_for(config)
    return {
        "architectures": [family.architecture],
        "model_type": name,
        **{key: supported[0] for key, supported in family.switches.items() if supported[0] is not None},
        **{key: getattr(config, field) for field, key in family.keys.items()},
        **({"rope_parameters": rope_parameters(config)} if config.position == "rope" else {}),
        "vocab_size": vocab_size,
        **token_ids,
        "dtype": "float32",
    }


def tensor_names(family: Family, config: ModelConfig, name: str) -> dict[str, int | None]:
    """The family's names for our tensor `name`, several if packed, each with its number of rows; None means all."""
    if name == "lm_head.weight":
        return {name: None}
    for ours, theirs in family.names.items():
        name = re.sub(rf"(?<![a-z_]){re.escape(ours)}(?![a-z_])", theirs, name)
    parts = () if family.names else packed(config, name)
    if not parts:
        return {family.prefix + name: None}
    *layer, _, kind = name.split(".")
    return {family.prefix + ".".join([*layer, part, kind]): rows for part, rows in parts}


def is_transposed(family: Family, name: str) -> bool:
    """Whether the family stores this matrix as (inputs, outputs), as GPT-2 does."""
    return family.transposed and name.endswith("_proj.weight")


def expected_tensors(family: Family, config: ModelConfig, shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The family's tensor names and shapes, from our names and shapes."""
    expected: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        for part, rows in tensor_names(family, config, name).items():
            stored = [rows or shape[0], *shape[1:]]
            expected[part] = stored[::-1] if is_transposed(family, name) else stored
    return expected


def _family_for(config: ModelConfig) -> tuple[str, Family]:
    for name, family in FAMILIES.items():
        fields = config.model_dump(exclude=set(family.keys))
        follows_bias = "attention_out_bias" in family.features or config.attention_out_bias == config.attention_bias
        expected = {
            **family.features,
            "attention_out_bias": family.features.get("attention_out_bias", config.attention_bias),
        }
        if follows_bias and all(expected.get(field, value) == value for field, value in fields.items()):
            return name, family
    raise UserError(
        "model", "no Hugging Face family has this combination of norm, position, mlp and biases", "change one of them"
    )


def _derived(family: Family, found: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that config.json may omit, computed from other fields."""
    heads, width = found.get("num_attention_heads"), found.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(width, int) or heads < 1:
        return {}
    derived = {"num_key_value_heads": heads, "head_dim": width // heads}
    return {**derived, "intermediate_size": 4 * width} if family.transposed else derived
