"""Groups of keys in config.json that several families share: windows, partial rotation, scales, soft-caps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from kiara.config import ModelConfig
from kiara.families.family import Group
from kiara_runtime.errors import UserError

Values = Mapping[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"
_WINDOW_KEYS = ("sliding_window", "layer_types", "sliding_window_pattern", "_sliding_window_pattern")


def windows(every: int | None = None, *, default: int | None = None, kinds_differ: bool = False) -> Group:
    """Sliding windows.

    every: without layer_types, each so many-th layer is a full one; None: no layer is, and layer_types is not written.
    default: the window if there is no such key. kinds_differ: whether sliding layers have other rotary positions.
    """

    def read(values: Values, fields: Values) -> dict[str, Any]:
        window, context = values.get("sliding_window", default), fields.get("context_length")
        layers, listed = fields.get("num_hidden_layers"), values.get("layer_types")
        pattern = values.get("sliding_window_pattern", values.get("_sliding_window_pattern")) or every
        if isinstance(pattern, str):  # EXAONE's: a letter per layer, L for a local one
            pattern = len(pattern)
        if isinstance(window, bool) or not isinstance(window, int | None):
            raise UserError("config.json", f"sliding_window {window!r} is not a number of tokens", "give one, or null")
        if not isinstance(layers, int) or not isinstance(pattern, int | None):
            return {}
        if listed is None and pattern is not None:
            listed = [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(layers)]
        types = _types(listed, layers)
        if window is None or (isinstance(context, int) and window >= context):
            return {"sliding_window": None, "layer_types": types if kinds_differ else None}
        if types is not None and SLIDING not in types and not kinds_differ:
            return {"sliding_window": None, "layer_types": None}
        whole = not kinds_differ and types is not None and FULL not in types
        return {"sliding_window": window, "layer_types": None if whole else types}

    def write(config: ModelConfig) -> dict[str, Any]:
        window = config.sliding_window or (None if every is None else config.context_length)
        if every is None and config.layer_types is None:
            return {"sliding_window": window}
        kinds = [SLIDING if config.slides(i) else FULL for i in range(config.num_hidden_layers)]
        return {"sliding_window": window, "layer_types": kinds}

    return Group(_WINDOW_KEYS, read, write)


def _types(listed: Any, layers: int) -> tuple[str, ...] | None:
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) != layers or set(listed) - {FULL, SLIDING}:
        problem = f"layer_types {listed!r:.60} is not supported"
        raise UserError("config.json", problem, f"give {FULL!r} or {SLIDING!r} for each of {layers} layers")
    return tuple(listed)


def no_windows(values: Values, fields: Values) -> dict[str, Any]:
    """Refuse layers that are not full ones, in a family that has no others."""
    listed = values.get("layer_types")
    if listed is not None and set(listed if isinstance(listed, list) else [listed]) - {FULL}:
        raise UserError("config.json", f"layer_types {listed!r:.60} is not supported", f"only {FULL!r} is")
    return {}


NO_WINDOWS = Group(("layer_types", "sliding_window"), no_windows, lambda _: {})


def _read_qwen(values: Values, fields: Values) -> dict[str, Any]:
    """Windows in the layers from max_window_layers on."""
    if not values.get("use_sliding_window", False):
        return no_windows(values, fields)
    layers, first = fields.get("num_hidden_layers"), values.get("max_window_layers", 28)
    kinds = values.get("layer_types") or [FULL if i < first else SLIDING for i in range(int(layers or 0))]
    return windows(default=4096).read({**values, "layer_types": kinds}, fields)


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None:
        return {"use_sliding_window": False}
    kinds = [SLIDING if config.slides(i) else FULL for i in range(config.num_hidden_layers)]
    return {"use_sliding_window": True, "sliding_window": config.sliding_window, "layer_types": kinds}


GGUF_WINDOWS = ("attention.sliding_window", "attention.sliding_window_pattern")


def gguf_windows(metadata: Values, tensors: Collection[str] = ()) -> dict[str, Any]:
    """The keys of windows in config.json, from GGUF_WINDOWS: 0 means no window, a pattern has a flag for each layer."""
    pattern = metadata.get("attention.sliding_window_pattern")
    found: dict[str, Any] = {"sliding_window": metadata.get("attention.sliding_window") or None}
    if isinstance(pattern, list):
        found["layer_types"] = [SLIDING if slides else FULL for slides in pattern]
    elif pattern is not None:
        found["sliding_window_pattern"] = pattern
    return found


def has_window(metadata: Values) -> bool:
    return bool(metadata.get("attention.sliding_window"))


QWEN_WINDOWS = Group(("use_sliding_window", "max_window_layers", *_WINDOW_KEYS[:2]), _read_qwen, _write_qwen)


def partial_rotary(default: float = 1.0) -> Group:
    """partial_rotary_factor: the part of a head that is rotated."""

    def read(values: Values, fields: Values) -> dict[str, Any]:
        size, part = fields.get("head_dim"), values.get("partial_rotary_factor", default)
        if not isinstance(size, int) or not isinstance(part, int | float) or not 0 < part <= 1:
            raise UserError("config.json", f"partial_rotary_factor {part!r} is not supported", "give 0 to 1")
        return {"rotary_dim": None if part == 1 else int(size * part)}

    def write(config: ModelConfig) -> dict[str, Any]:
        return {"partial_rotary_factor": (config.rotary_dim or config.head_dim) / config.head_dim}

    return Group(("partial_rotary_factor",), read, write)


def numbers(
    read: Mapping[str, tuple[str, Callable[[float], float]]], write: Mapping[str, Callable[[ModelConfig], Any]]
) -> Group:
    """Numbers that are converted. read: by key, the field and its value; null and absent ones are left out."""

    def take(values: Values, fields: Values) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, (field, convert) in read.items():
            if (value := values.get(key)) is not None:
                if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                    raise UserError("config.json", f"{key} {value!r} is not supported", "give a number above 0")
                found[field] = convert(float(value))
        return found

    return Group(tuple(read), take, lambda config: {key: value(config) for key, value in write.items()})


def attention_scale(key: str, to_scale: Callable[[float], float], from_scale: Callable[[float], float]) -> Group:
    """The factor on the attention's scores, or a number that stands for it."""

    def write(config: ModelConfig) -> float:
        scale = config.attention_scale or config.head_dim**-0.5
        exact, whole = from_scale(scale), round(from_scale(scale))
        return whole if whole > 0 and to_scale(whole) == scale else exact  # some keys must be integers

    return numbers({key: ("attention_scale", to_scale)}, {key: write})
