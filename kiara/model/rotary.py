"""Rotary position embeddings (Su et al. 2021): the rotation frequency of each dimension pair of a head.

Shape letters: B batch, S tokens, E head size, R dimensions that are rotated, C context length.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiara.config import ModelConfig

Frequencies = NDArray[np.float64]


def rope_tables(config: ModelConfig, sliding: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, each float32 (C, R / 2). sliding: of sliding layers."""
    turns = torch.tensor(frequencies(config, sliding), dtype=torch.float64)
    angles = torch.arange(config.context_length, dtype=torch.float64)[:, None] * turns
    factor = table_factor(config, sliding)
    return (factor * angles.cos()).float(), (factor * angles.sin()).float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the first R dimensions of each head (the non-interleaved form).

    x (B, heads, S, E), tables (S, R / 2).
    """
    turned, rest = x.split((2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).type_as(x)


def frequencies(config: ModelConfig, sliding: bool = False) -> Frequencies:
    """Radians per position, float64 (R / 2,), where R dimensions of a head are rotated. sliding: of sliding layers."""
    size = config.rotary_dim or config.head_dim
    theta = config.sliding_rope_theta if sliding else None
    plain = (theta or config.rope_theta) ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    return _SCALED[_scaling(config, sliding)](config, plain)


def table_factor(config: ModelConfig, sliding: bool = False) -> float:
    """Factor on cosines and sines, which scales the attention's scores by its square."""
    scaling = _scaling(config, sliding)
    if scaling in ("yarn", "longrope") and config.rope_attention_factor is not None:
        return config.rope_attention_factor
    return 0.1 * math.log(config.rope_factor) + 1 if scaling == "yarn" else 1.0


def _scaling(config: ModelConfig, sliding: bool) -> str:
    return "none" if sliding and not config.sliding_rope_scaled else config.rope_scaling


def _llama3(config: ModelConfig, plain: Frequencies) -> Frequencies:
    """As in Llama 3.1: divided, kept, or in between, by the number of turns in the original context."""
    turns = config.rope_original_context * plain / (2 * np.pi)
    span = config.rope_high_freq_factor - config.rope_low_freq_factor
    kept = np.clip((turns - config.rope_low_freq_factor) / span, 0.0, 1.0)
    return plain * (kept + (1 - kept) / config.rope_factor)


def _yarn(config: ModelConfig, plain: Frequencies) -> Frequencies:
    """YaRN (Peng et al. 2023): kept, divided, or in between, linearly in the number of the pair."""
    size = 2 * len(plain)

    def pair(turns: float) -> float:
        """The pair that turns so often in the original context."""
        return size * math.log(config.rope_original_context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    first = max(math.floor(pair(config.rope_beta_fast)), 0)
    last = min(math.ceil(pair(config.rope_beta_slow)), size - 1)
    divided = np.clip((np.arange(len(plain)) - first) / max(last - first, 0.001), 0.0, 1.0)
    return plain * (1 - divided + divided / config.rope_factor)


_SCALED = {
    "none": lambda config, plain: plain,
    "linear": lambda config, plain: plain / config.rope_factor,
    "llama3": _llama3,
    "yarn": _yarn,
    # LongRoPE (Ding et al. 2024), within the original context.
    "longrope": lambda config, plain: plain / np.array(config.rope_short_factors),
}
