"""Rotary position embeddings (Su et al. 2021): the rotation frequency of each dimension pair of a head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kiara.config import ModelConfig


def frequencies(config: ModelConfig) -> NDArray[np.float64]:
    """Radians per position, float64 (E / 2,)."""
    plain = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    if config.rope_scaling == "none":
        return plain
    # As in Llama 3.1: divided by rope_factor, kept, or in between, by the number of turns in the original context.
    turns = config.rope_original_context * plain / (2 * np.pi)
    span = config.rope_high_freq_factor - config.rope_low_freq_factor
    kept = np.clip((turns - config.rope_low_freq_factor) / span, 0.0, 1.0)
    return plain * (kept + (1 - kept) / config.rope_factor)
