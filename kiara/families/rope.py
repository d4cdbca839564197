"""RoPE settings of a config.json: unscaled, or scaled as in Llama 3.1 and later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kiara.config import ModelConfig
from kiara.families.known_keys import check_keys
from kiara_runtime.errors import UserError

_PLAIN = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_LLAMA3 = {
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_freq_factor",
    "high_freq_factor": "rope_high_freq_factor",
    "original_max_position_embeddings": "rope_original_context",
}


def with_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `rope_scaling` or `rope_parameters` merged into the top level; refuses unsupported positions."""
    merged = dict(values)
    for key in ("rope_scaling", "rope_parameters"):
        rope = merged.pop(key, None) or {}
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
        if kind not in ("default", "llama3"):
            problem = f"{key} {kind!r} is not supported"
            raise UserError("config.json", problem, "only plain rotary positions and 'llama3' are")
        check_keys(f"config.json: {key}", rope, (*_PLAIN, *(_LLAMA3 if kind == "llama3" else ())), {})
        merged.update({name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope})
        if kind == "llama3":
            merged["llama3"] = rope
    if merged.get("partial_rotary_factor", 1.0) not in (1, None):
        given = merged["partial_rotary_factor"]
        raise UserError("config.json", f"partial_rotary_factor {given!r} is not supported", "only 1.0 is")
    if isinstance(merged.get("rope_theta"), int) and not isinstance(merged["rope_theta"], bool):
        merged["rope_theta"] = float(merged["rope_theta"])
    return merged


def rope_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig fields of scaled RoPE, from what `with_rope` returns."""
    if "llama3" not in values:
        return {}
    given = {field: values["llama3"][key] for key, field in _LLAMA3.items() if key in values["llama3"]}
    if len(given) < len(_LLAMA3):
        raise UserError("config.json", "rope_scaling lacks a field of 'llama3'", f"give {', '.join(_LLAMA3)}")
    floats = {name: float(value) for name, value in given.items() if name != "rope_original_context"}
    return {"rope_scaling": "llama3", **given, **floats}


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """The `rope_parameters` of a config.json."""
    if config.rope_scaling == "none":
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    scaling = {key: getattr(config, field) for key, field in _LLAMA3.items()}
    return {"rope_type": "llama3", "rope_theta": config.rope_theta, **scaling}
