"""Map config.json of Hugging Face families to `kiara.config.ModelConfig`, and back.

An entry of FAMILIES says which fields of ModelConfig a family fixes, how its config.json names the others, which values
of further keys are supported, and how its tensors are named. Reading and writing use the same entry, so an imported
checkpoint opens in `transformers` again. A key that an entry does not cover is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kiara.config import ModelConfig, own_error
from kiara.families.arcee import ARCEE
from kiara.families.exaone4 import EXAONE4
from kiara.families.falcon import FALCON
from kiara.families.family import ABSENT, Family
from kiara.families.gemma import GEMMA2, GEMMA3
from kiara.families.gpt2 import GPT2
from kiara.families.gpt_neox import GPT_NEOX
from kiara.families.granite import GRANITE, GRANITE4
from kiara.families.groups import NO_WINDOWS
from kiara.families.known_keys import CONFIG, CONFIG_FIXED, check_keys
from kiara.families.llama import LLAMA
from kiara.families.mistral import MISTRAL
from kiara.families.olmo import OLMO2, OLMO3
from kiara.families.phi import PHI, PHI3
from kiara.families.qwen2 import QWEN2
from kiara.families.qwen3 import QWEN3
from kiara.families.rope import OLD_NAMES, rope_fields, rope_parameters, with_rope
from kiara.families.smollm3 import SMOLLM3
from kiara.families.stablelm import STABLELM
from kiara.families.starcoder2 import STARCODER2
from kiara_runtime.errors import UserError

# Keys of config.json that separate functions handle.
_ELSEWHERE = (
    *OLD_NAMES,
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)


# A checkpoint is written as the first family that fits: Arcee before all others, Llama before similar ones.
FAMILIES = {
    family.model_type: family
    for family in (
        ARCEE, LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, GRANITE, GRANITE4, SMOLLM3, PHI3, PHI, STABLELM, GPT_NEOX, OLMO2,
        OLMO3, EXAONE4, GEMMA2, GEMMA3, FALCON, STARCODER2,
    )
}  # fmt: skip


_MIXTURE = "mixtures of experts are not: use a dense model, such as "
_STATES = "state-space layers are not: use a model with attention only, such as "
_TEXT = "models with other inputs than text are not: save its text model alone, as "
# What comes nearest to models that people will try.
_INSTEAD = {
    "mixtral": _MIXTURE + "mistral",
    "qwen2_moe": _MIXTURE + "qwen2",
    "qwen3_moe": _MIXTURE + "qwen3",
    "olmoe": _MIXTURE + "olmo2",
    "phimoe": _MIXTURE + "phi3",
    "granitemoe": _MIXTURE + "granite",
    "mamba": _STATES + "llama",
    "mamba2": _STATES + "llama",
    "falcon_mamba": _STATES + "falcon",
    "falcon_h1": _STATES + "falcon",
    "jamba": _STATES + "llama",
    "gemma": "its successors are: gemma2, gemma3_text",
    "gemma3": _TEXT + "gemma3_text",
    "mistral3": _TEXT + "mistral",
    "mllama": _TEXT + "llama",
    "qwen2_vl": _TEXT + "qwen2",
    "qwen2_5_vl": _TEXT + "qwen2",
    "qwen3_vl": _TEXT + "qwen3",
}


def family_of(values: Mapping[str, Any]) -> Family:
    """The family that a config.json names; raises UserError if it is not supported."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        remedy = _INSTEAD.get(str(name), f"use one of {', '.join(FAMILIES)}")
        raise UserError("config.json", f"model_type {name!r} is not supported", remedy)
    return FAMILIES[name]


def read_config(values: Mapping[str, Any]) -> tuple[ModelConfig, int]:
    """ModelConfig and vocabulary size of a config.json; raises UserError with the unsupported key."""
    family = family_of(values)
    groups = (*family.groups, NO_WINDOWS) if not any("layer_types" in g.keys for g in family.groups) else family.groups
    grouped = [key for group in groups for key in group.keys]
    check_keys(
        "config.json", values, {*family.keys.values(), *family.switches, *grouped, *CONFIG, *_ELSEWHERE}, CONFIG_FIXED
    )
    values = {**family.defaults, **with_rope(values, family.rope_by_type)}
    for key, supported in family.switches.items():
        if values.get(key, ABSENT) not in supported:
            raise UserError("config.json", f"{key} {values.get(key)!r} is not supported", f"only {supported[0]!r} is")
    if "partial_rotary_factor" not in grouped and values.get("partial_rotary_factor", 1.0) not in (1, None):
        given = values["partial_rotary_factor"]
        raise UserError("config.json", f"partial_rotary_factor {given!r} is not supported", "only 1.0 is")
    found = {name: values[key] for name, key in family.keys.items() if values.get(key) is not None}
    fields = {**_derived(family, found), **found, **rope_fields(values), **family.features}
    missing = [key for name, key in family.keys.items() if name not in fields]
    if missing:
        raise UserError("config.json", f"the field {missing[0]} is missing", "copy the whole folder again")
    fields.setdefault("attention_out_bias", fields["attention_bias"])
    for group in groups:
        fields.update(group.read(values, fields))
    vocab_size = values.get("vocab_size")
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or not 1 <= vocab_size <= 1 << 24:
        raise UserError(
            "config.json",
            f"vocab_size {vocab_size!r} is not a vocabulary size",
            "set it to the number of rows of the embedding",
        )
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


def write_config(config: ModelConfig, vocab_size: int, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the model, as the first family that fits it; token_ids: its fields of BOS, EOS, padding."""
    for family in FAMILIES.values():
        written = {**_written(family, config), "vocab_size": vocab_size, **token_ids, "dtype": "float32"}
        if _reads_as(written, config):
            return written
    raise UserError(
        "model", "no Hugging Face family has this combination of norm, position, mlp and biases", "change one of them"
    )


def _written(family: Family, config: ModelConfig) -> dict[str, Any]:
    written = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key: supported[0] for key, supported in family.switches.items() if supported[0] is not None},
        **{key: getattr(config, field) for field, key in family.keys.items()},
    }
    if config.position == "rope":
        written["rope_parameters"] = rope_parameters(config, family.rope_by_type)
    for group in family.groups:
        written.update(group.write(config))
    if "partial_rotary_factor" in written:
        written["rope_parameters"]["partial_rotary_factor"] = written.pop("partial_rotary_factor")
    return written


def _reads_as(written: Mapping[str, Any], config: ModelConfig) -> bool:
    try:
        return _essential(read_config(written)[0]) == _essential(config)
    except UserError:
        return False


def _essential(config: ModelConfig) -> dict[str, Any]:
    """The fields that matter: those of rotary positions only if the model has some."""
    fields = config.model_dump()
    return fields if config.position == "rope" else {k: v for k, v in fields.items() if not k.startswith("rope_")}


def _derived(family: Family, found: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that config.json may omit, computed from other fields."""
    heads, width = found.get("num_attention_heads"), found.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(width, int) or heads < 1:
        return {}
    return {"num_key_value_heads": heads, "head_dim": width // heads, "intermediate_size": 4 * width}
