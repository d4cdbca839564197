"""Rotary settings of a config.json: `rope_parameters`, of all layers or of each kind, or the older `rope_scaling`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kiara.config import ModelConfig
from kiara.families.groups import FULL, SLIDING
from kiara.families.known_keys import check_keys
from kiara_runtime.errors import UserError

_PLAIN = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_ORIGINAL = {"original_max_position_embeddings": "rope_original_context"}
_FACTOR = {"factor": "rope_factor"}
# Fields by key; those that config.json may omit have defaults in ModelConfig.
_KINDS: dict[str, dict[str, str]] = {
    "default": {},
    "dynamic": {},  # changes nothing within the context
    "linear": _FACTOR,
    "llama3": {
        **_FACTOR,
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
        **_ORIGINAL,
    },
    "yarn": {
        **_FACTOR,
        **_ORIGINAL,
        "beta_fast": "rope_beta_fast",
        "beta_slow": "rope_beta_slow",
        "attention_factor": "rope_attention_factor",
    },
    "longrope": {
        **_ORIGINAL,
        "short_factor": "rope_short_factors",
        "attention_factor": "rope_attention_factor",
    },
}
_OPTIONAL = ("beta_fast", "beta_slow", "attention_factor", *_ORIGINAL)
_UNUSED = {"linear": (), "dynamic": ("factor", *_ORIGINAL), "longrope": ("long_factor", "factor")}
_OLD_KINDS = {"su": "longrope"}  # in the first files of Phi-3
OLD_NAMES = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}  # in those of GPT-NeoX
_FIXED: dict[str, tuple[Any, ...]] = {"truncate": (True,), "mscale": (None,), "mscale_all_dim": (None,)}


def with_rope(values: Mapping[str, Any], by_type: bool) -> dict[str, Any]:
    """The values, with rotary settings as `rope_theta`, `partial_rotary_factor`, `rope_local_base_freq` and `rope`.

    `rope` has the type and parameters of scaled positions, if there are any. Refuses unsupported ones. by_type: whether
    `rope_parameters` are given for each kind of layer.
    """
    merged = {OLD_NAMES.get(key, key): value for key, value in values.items()}
    if merged.get("rope_scaling") and merged.get("rope_parameters"):
        problem = "rope_scaling is given beside rope_parameters"
        raise UserError("config.json", problem, "delete the one that the model was not trained with")
    given = merged.get("rope_parameters")
    if by_type and given and not (isinstance(given, dict) and FULL in given):
        problem = "rope_parameters are not given for each kind of layer"
        raise UserError("config.json", problem, f"give those of {FULL} and {SLIDING}")
    for key in ("rope_scaling", "rope_parameters"):
        given = merged.pop(key, None) or {}
        if isinstance(given, dict) and FULL in given:
            given = _of_full_layers(key, given, merged)
        kind = given.get("rope_type", given.get("type", "default")) if isinstance(given, dict) else given
        kind = _OLD_KINDS.get(str(kind), kind)
        if kind not in _KINDS:
            raise UserError("config.json", f"{key} {kind!r} is not supported", f"use one of {', '.join(_KINDS)}")
        known = (*_PLAIN, *_KINDS[kind], *_UNUSED.get(kind, ()))
        check_keys(f"config.json: {key}", given, known, _FIXED)
        merged.update({name: given[name] for name in ("rope_theta", "partial_rotary_factor") if name in given})
        if kind not in ("default", "dynamic"):
            merged["rope"] = {**given, "rope_type": kind}
    for key in ("rope_theta", "rope_local_base_freq"):
        if isinstance(merged.get(key), int) and not isinstance(merged[key], bool):
            merged[key] = float(merged[key])
    return merged


def _of_full_layers(key: str, given: Mapping[str, Any], merged: dict[str, Any]) -> Any:
    """The settings of full layers; the base of sliding ones is merged."""
    check_keys(f"config.json: {key}", given, (FULL, SLIDING), {})
    full, sliding = given[FULL], given.get(SLIDING)
    if isinstance(sliding, dict):
        if sliding.get("rope_type", "default") != "default" or set(sliding) - {"rope_type", "rope_theta"}:
            problem = f"{key} of sliding layers is {sliding.get('rope_type')!r:.40}, which is not supported"
            raise UserError("config.json", problem, "only plain rotary positions are")
        if "rope_theta" in sliding:
            merged["rope_local_base_freq"] = sliding["rope_theta"]
    return full or {}


def rope_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig fields of scaled positions, from what `with_rope` returns."""
    rope = values.get("rope")
    if rope is None:
        return {}
    kind, context = rope["rope_type"], values.get("max_position_embeddings")
    names = _KINDS[kind]
    original = values.get("original_max_position_embeddings", context)
    rope = {**({"original_max_position_embeddings": original} if _ORIGINAL.keys() <= names.keys() else {}), **rope}
    missing = [key for key in names if key not in rope and key not in _OPTIONAL]
    if missing:
        raise UserError("config.json", f"{missing[0]} of {kind!r} is missing", f"give {', '.join(names)}")
    found = {field: rope[key] for key, field in names.items() if rope.get(key) is not None}
    for name, value in found.items():
        if isinstance(value, int) and not isinstance(value, bool) and name != "rope_original_context":
            found[name] = float(value)
    if kind == "longrope":
        found.update(_within_original(found, rope, context))
    return {"rope_scaling": kind, **found}


def _within_original(found: Mapping[str, Any], rope: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """longrope has other factors beyond the original context, also for keys in the cache: the context ends there."""
    original = found["rope_original_context"]
    factors = found["rope_short_factors"]
    whole = isinstance(original, int) and isinstance(context, int) and original > 1
    if not whole or not isinstance(factors, list) or not all(isinstance(factor, int | float) for factor in factors):
        raise UserError("config.json", "the fields of 'longrope' are not numbers", "copy the whole folder again")
    longer = max(1.0, context / original)
    factor = found.get("rope_attention_factor") or (1 + math.log(longer) / math.log(original)) ** 0.5
    return {
        "context_length": min(original, context),
        "rope_attention_factor": factor,
        "rope_short_factors": tuple(float(factor) for factor in factors),
    }


def rope_parameters(config: ModelConfig, by_type: bool) -> dict[str, Any]:
    """The `rope_parameters` of a config.json. by_type: of each kind of layer."""
    kind = "default" if config.rope_scaling == "none" else config.rope_scaling
    scaling = {key: getattr(config, field) for key, field in _KINDS[kind].items()}
    if kind == "longrope":
        scaling = {
            **scaling,
            "short_factor": list(scaling["short_factor"]),
            "long_factor": list(scaling["short_factor"]),
        }
    scaling = {key: value for key, value in scaling.items() if value is not None}
    found = {"rope_type": kind, "rope_theta": config.rope_theta, **scaling}
    if not by_type:
        return found
    sliding = {"rope_type": "default", "rope_theta": config.sliding_rope_theta or config.rope_theta}
    return {FULL: found, SLIDING: sliding}
